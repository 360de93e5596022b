"""How commands name what is backed up, backups, and where they go back to."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import click

from core.backup.catalog import Catalog, Query
from core.backup.manifest import Manifest
from core.cli.options import PATH
from core.cli.session import Session
from core.config import Settings, split_image_reference
from core.errors import NotFoundError, UsageError
from core.pool.description import newest_revision
from core.pool.pool import Pool
from core.store.factory import open_store

P = ParamSpec("P")
R = TypeVar("R")
LATEST = "latest"


@dataclass(frozen=True)
class Place:
    """A path of this host, a pool, or something in a pool."""

    path: Path | None = None
    pool: str | None = None
    name: str | None = None


def parse_place(session: Session, text: str) -> Place:
    """Read a path (it begins with `/`, `./`, `../` or is `.`), POOL, or POOL/NAME; a URL is a pool if there is one at it."""
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return Place(path=Path(text))
    if "://" not in text and "/" not in text:
        return Place(pool=text)
    if "://" in text and _is_pool(session, text):
        return Place(pool=text)
    pool, name = split_image_reference(text)
    return Place(pool=pool, name=name)


def _is_pool(session: Session, url: str) -> bool:
    store = open_store(session.settings(url).url)
    try:
        return newest_revision(store) is not None
    finally:
        store.close()


def parse_time(text: str) -> int:
    """Read a moment as ISO 8601; without an offset it is this machine's time. A day alone is its last second."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time; write it as 2026-11-22T10:00 or 2026-11-22T10:00:00Z") from None
    if len(text) == len("2026-11-22"):
        moment = moment.replace(hour=23, minute=59, second=59)
    return int(moment.timestamp())


def choose(catalog: Catalog, text: str, at: int | None, generation: int | None) -> Manifest:
    """Find the backup that `text` names: an id, a source's name, or `latest`; of several the newest, up to a time or generation."""
    query = Query(name=None if text == LATEST else text, until=at, last_generation=generation)
    named = [each for each in catalog.manifests if query.takes(each)]
    if named:
        return named[-1]
    if any(text in (LATEST, each.source.name) for each in catalog.manifests):
        raise NotFoundError(f"no backup of {text!r} is that old; `blockyard backup ls` shows what there is")
    return catalog.get(text)


def with_vault_key(function: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """Give a command that has two pools the options that unlock the one with the backups; its first argument becomes both sessions'."""

    @click.option("--vault-key-file", type=PATH, help="Key file that opens the pool with the backups.")
    @click.option("--vault-passphrase-file", type=PATH, help="File with the passphrase that opens it.")
    @click.option("--vault-passphrase-fd", type=int, help="Open file descriptor to read that passphrase from.")
    @functools.wraps(function)
    def command(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        key_file, file = kwargs.pop("vault_key_file"), kwargs.pop("vault_passphrase_file")
        descriptor = kwargs.pop("vault_passphrase_fd")
        assert key_file is None or isinstance(key_file, Path)
        assert file is None or isinstance(file, Path)
        assert descriptor is None or isinstance(descriptor, int)
        click.get_current_context().meta[_VAULT_SETTINGS] = Settings(
            key_file=key_file, passphrase_file=file, passphrase_fd=descriptor
        )
        return function(session, *args, **kwargs)

    return command


_VAULT_SETTINGS = "core.cli.backup_places.vault"


@contextmanager
def vault_pool(session: Session, reference: str) -> Iterator[Pool]:
    """Open the pool with the backups for the block; what unlocks the source does not count for it."""
    settings = click.get_current_context().meta.get(_VAULT_SETTINGS, Settings())
    with replace(session, arguments=settings).pool(reference) as pool:
        yield pool


def status_of_failure(function: Callable[P, R]) -> Callable[P, R]:
    """Keep exit status 3 for what was done but for something that could not be read: what is not found ends with 2 here."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except NotFoundError as error:
            raise UsageError(str(error)) from error

    return command


def is_directory(path: Path) -> bool:
    """Say whether a path leads to a directory; UsageError if it leads nowhere."""
    if not path.exists():
        raise UsageError(f"{os.fspath(path)} is not there")
    return path.is_dir()
