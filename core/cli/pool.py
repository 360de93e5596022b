"""`blockyard pool …`: create, info, df, key."""

from pathlib import Path

import click

from core.cli.keys import key
from core.cli.openers import NewSlot, new_slot_options
from core.cli.options import json_option, with_session
from core.cli.output import Row, format_time, print_facts, print_json
from core.cli.session import Session
from core.config import PoolSettings
from core.crypto.aead import Algorithm
from core.errors import UsageError
from core.filesystem.filesystems import filesystem_names
from core.pool.key_files import KeyFile, default_key_path, save_key_file
from core.pool.keyring import NewOpener, slots_of
from core.pool.pool import Pool, create_pool
from core.store.factory import open_store
from core.units import format_size
from core.volume.images import image_names

_ALGORITHMS = {"aes-256-gcm": Algorithm.AES_256_GCM, "chacha20-poly1305": Algorithm.CHACHA20_POLY1305}


def algorithm_name(algorithm: Algorithm) -> str:
    """Give an algorithm as the command line spells it."""
    return next(name for name, value in _ALGORITHMS.items() if value is algorithm)


@click.group()
def pool() -> None:
    """Make pools and look at them; manage their keys."""


pool.add_command(key)


class _KeyFileWriter:
    """Stores the first key file of a pool, and takes it back if the pool does not come to be."""

    def __init__(self, path: Path | None) -> None:
        self._wanted = path
        self.path: Path | None = None

    def __call__(self, made: KeyFile) -> None:
        path = self._wanted or default_key_path(made.pool_id)
        save_key_file(path, made)
        self.path = path

    def take_back(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@pool.command()
@click.argument("pool", metavar="POOL")
@click.option("--algorithm", type=click.Choice(list(_ALGORITHMS)), default="aes-256-gcm", show_default=True)
@click.option("--label", default="", help="What to call the first key slot.")
@json_option
@new_slot_options
@with_session
def create(session: Session, new: NewSlot, pool: str, algorithm: str, label: str, as_json: bool) -> None:
    """Make a pool, and a key file for it in your keyring directory (or what a --new-... option says)."""
    settings = session.settings(pool)
    passphrase = new.passphrase()
    _refuse_unlock_options(session, settings)
    writer = _KeyFileWriter(new.key_file or settings.key_file)
    opener: NewOpener = passphrase or writer
    store = open_store(settings.url, mirror=settings.mirror)
    try:
        made = create_pool(store, opener, session.world, algorithm=_ALGORITHMS[algorithm], label=label)
    except BaseException:
        writer.take_back()
        store.close()
        raise
    facts: Row = {
        "id": made.id.hex(),
        "url": made.store.url,
        "slot": made.slot_id,
        "key_file": str(writer.path) if writer.path else None,
    }
    made.close()
    if as_json:
        print_json(facts)
        return
    click.echo(f"made the pool {facts['id']} at {facts['url']}")
    if writer.path:
        click.echo(f"its key is in {writer.path}; keep a copy elsewhere: without a key nobody can read the pool")
    else:
        click.echo("it opens with the passphrase; without it nobody can read the pool")


@pool.command()
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def info(session: Session, pool: str, as_json: bool) -> None:
    """Show what a pool is and what your key may do."""
    with session.pool(pool) as opened:
        facts: Row = {
            "id": opened.id.hex(),
            "url": opened.store.url,
            "created": format_time(opened.description.created),
            "revision": opened.description.revision,
            "algorithm": algorithm_name(opened.algorithm),
            "role": opened.role.value,
            "writers": sum(each.retired is None for each in opened.description.writers),
            "slots": len(slots_of(opened)),
            "images": len(image_names(opened)),
            "filesystems": len(filesystem_names(opened)),
        }
    if as_json:
        print_json(facts)
    else:
        print_facts([(name, str(value)) for name, value in facts.items()])


@pool.command()
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def df(session: Session, pool: str, as_json: bool) -> None:
    """Show how much a pool stores and how much room its store has. Lists every object of the pool."""
    with session.pool(pool) as opened:
        objects, stored_bytes = _stored(opened)
        space = opened.store.space()
    facts: Row = {
        "objects": objects,
        "stored_bytes": stored_bytes,
        "total_bytes": space.total_bytes,
        "free_bytes": space.free_bytes,
    }
    if as_json:
        print_json(facts)
        return
    print_facts(
        [
            ("objects", str(objects)),
            ("stored", format_size(stored_bytes)),
            ("total", "unknown" if space.total_bytes is None else format_size(space.total_bytes)),
            ("free", "unknown" if space.free_bytes is None else format_size(space.free_bytes)),
        ]
    )


def _stored(opened: Pool) -> tuple[int, int]:
    objects = stored_bytes = 0
    for each in opened.store.list(""):
        objects += 1
        stored_bytes += each.size_bytes
    return objects, stored_bytes


def _refuse_unlock_options(session: Session, settings: PoolSettings) -> None:
    """Refuse what would be silently ignored: a passphrase meant to open a pool that does not exist yet."""
    if settings.passphrase_file is not None or settings.passphrase_fd is not None or session.arguments.key_file:
        raise UsageError(
            "a new pool has no key yet: say what is to open it with --new-key-file, --new-passphrase, "
            "--new-passphrase-file or --new-passphrase-fd"
        )
