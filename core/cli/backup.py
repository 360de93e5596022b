"""`blockyard backup …`: the group, and ls, show and restore: what there is, and getting it back."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from core.backup.catalog import Catalog, Query, check_chain, load_catalog
from core.backup.manifest import Manifest
from core.backup.restore import Progress, restore_file, restore_image, restore_stream
from core.backup.summary import summarize
from core.backup.tree_restore import restore_tree
from core.backup.trust import Standing, refuse_late, standing
from core.backup.vault import Vault, open_vault
from core.backup.visit import Visit, reading
from core.cli.backup_care import forget_verb, prune_verb, systemd, verify_verb
from core.cli.backup_places import (
    Place,
    choose,
    parse_place,
    parse_time,
    status_of_failure,
    vault_pool,
    with_vault_key,
)
from core.cli.backup_run import INCOMPLETE, manifest_row, run_verb
from core.cli.options import json_option, with_session
from core.cli.output import Value, format_time, print_facts, print_json, print_table, progress_bar
from core.cli.session import Session
from core.errors import UsageError
from core.units import format_size, parse_size
from core.volume.images import image_options

_STANDARD = "-"


@click.group()
def backup() -> None:
    """Back images, filesystems and whole pools up into another pool; see, verify, restore and forget backups.

    A backup is named POOL/ID (the first digits of its id suffice), POOL/NAME for the newest of the source NAME, or POOL/latest.
    Exit status 3 means: done, but something could not be read.
    """


for each in (run_verb, verify_verb, forget_verb, prune_verb, systemd):
    backup.add_command(each)


@backup.command("ls")
@click.argument("pool", metavar="POOL")
@click.option("--source", help="Only backups of the source of this name.")
@click.option("--parent", help="Only children of this backup.")
@click.option("--latest", is_flag=True, help="Only the newest of those asked for: of each source, or of a parent.")
@click.option("--since", help="Not older than this time (ISO 8601).")
@click.option("--until", help="Not newer than this time.")
@click.option("--from-generation", type=int, help="Not below this generation.")
@click.option("--to-generation", type=int, help="Not above this generation.")
@json_option
@with_session
@status_of_failure
def list_(
    session: Session,
    pool: str,
    source: str | None,
    parent: str | None,
    latest: bool,
    since: str | None,
    until: str | None,
    from_generation: int | None,
    to_generation: int | None,
    as_json: bool,
) -> None:
    """List the backups in a pool, oldest first."""
    with session.pool(pool) as opened:
        vault = open_vault(opened)
        catalog = load_catalog(vault)
        signed = {each.id: standing(vault, each) for each in catalog.manifests}
    query = Query(
        name=source,
        parent=catalog.get(parent).id if parent is not None else None,
        since=parse_time(since) if since is not None else None,
        until=parse_time(until) if until is not None else None,
        first_generation=from_generation,
        last_generation=to_generation,
    )
    found = [each for each in catalog.manifests if query.takes(each)]
    if latest:
        found = list({each.source.key: each for each in found}.values())
    if as_json:
        print_json([{**manifest_row(each), "signer": signed[each.id].value} for each in found])
        return
    told = any(signed[each.id] is not Standing.ACTIVE for each in found)
    columns = ("id", "created", "source", "kind", "mode", "generation", "size", "new", "stored", "parent")
    print_table(
        (*columns, "signer") if told else columns,
        [
            (
                each.key_part[:8],
                format_time(each.created),
                each.source.name,
                each.source.kind.value,
                each.mode.value,
                str(each.generation),
                format_size(each.size_bytes),
                format_size(each.statistics.new_bytes),
                format_size(each.statistics.stored_bytes),
                each.parent.hex()[:8] if each.parent is not None else "",
                *((signed[each.id].value,) if told else ()),
            )
            for each in found
        ],
        right=("generation", "size", "new", "stored"),
    )


@backup.command()
@click.argument("backup", metavar="POOL[/BACKUP]")
@click.option("--at", help="The newest not after this time (ISO 8601).")
@click.option("--generation", type=int, help="The newest not above this generation.")
@json_option
@with_session
@status_of_failure
def show(session: Session, backup: str, at: str | None, generation: int | None, as_json: bool) -> None:
    """Show one backup and check its chain; or, for a pool, what its vault holds and what deduplication saves."""
    place = parse_place(session, backup)
    if place.pool is None:
        raise UsageError(f"{backup!r} names no backup; write POOL/ID, POOL/NAME or POOL/latest")
    with session.pool(place.pool) as opened:
        vault = open_vault(opened)
        catalog = load_catalog(vault)
        if place.name is None:
            facts = _vault_facts(vault, catalog)
        else:
            found = choose(catalog, place.name, parse_time(at) if at is not None else None, generation)
            facts = {**manifest_row(found), "chain": check_chain(catalog, found)}
            facts["signer"] = standing(vault, found).value
            facts["children"] = [each.key_part for each in catalog.children(found.id)]
    if as_json:
        print_json(facts)
    else:
        print_facts([(name, _shown(name, value)) for name, value in facts.items()])


@backup.command()
@click.argument("backup", metavar="POOL/BACKUP")
@click.argument("target", metavar="TARGET")
@click.option("--at", help="The newest not after this time (ISO 8601).")
@click.option("--generation", type=int, help="The newest not above this generation.")
@click.option("--range", "span", help="Only these bytes, as OFFSET:LENGTH (such as 1G:64M); into a file or `-`.")
@click.option("--path", "inner", help="Only what stands at this path of a tree of files.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@with_session
@with_vault_key
@status_of_failure
def restore(
    session: Session,
    backup: str,
    target: str,
    at: str | None,
    generation: int | None,
    span: str | None,
    inner: str | None,
    overwrite: bool,
) -> None:
    """Restore a backup into TARGET: a new image (POOL/NAME), a file, or the standard output (`-`); a tree of files into a directory.

    The target gets its name when all of it is there and durable, and every chunk was checked.
    """
    with _chosen(session, backup, at, generation) as (vault, found):
        bounds = _span(span, found.size_bytes)
        place = Place(path=Path(target)) if target == _STANDARD else parse_place(session, target)
        with reading(vault) as visit, progress_bar(f"restore {found.source.name}") as report:
            if found.source.kind.is_tree:
                _restore_tree(visit, found, place, inner, report)
            elif inner is not None:
                raise UsageError(f"backup {found.key_part[:8]} is of {found.source.kind.value} bytes: it has no paths")
            elif target == _STANDARD:
                restore_stream(visit, found, sys.stdout.buffer, bounds, report)
            elif place.path is not None:
                restore_file(visit, found, place.path, bounds, report, overwrite=overwrite)
            elif place.pool is None or place.name is None:
                raise UsageError(f"{target!r} names a pool; write POOL/NAME for the image that is to be made")
            elif span is not None:
                raise UsageError("a range is restored into a file or to `-`, not into an image")
            else:
                with session.pool(place.pool) as pool:
                    options = image_options(session.settings(place.pool))
                    restore_image(visit, found, pool, place.name, options, report)
    if target != _STANDARD:
        click.echo(f"restored backup {found.key_part[:8]} of {found.source.name} to {target}")


def _restore_tree(visit: Visit, found: Manifest, place: Place, inner: str | None, report: Progress) -> None:
    if place.path is None or str(place.path) == _STANDARD:
        raise UsageError("a tree of files is restored into a directory; name one by a path such as ./restored")
    done = restore_tree(visit, found, os.fsencode(inner or ""), place.path, report)
    for each in done.complaints:
        click.echo(f"blockyard: {each}", err=True)
    if done.complaints:
        click.echo(f"restored {done.entries} entries, {len(done.complaints)} not in full", err=True)
        raise click.exceptions.Exit(INCOMPLETE)


@contextmanager
def _chosen(session: Session, backup: str, at: str | None, generation: int | None) -> Iterator[tuple[Vault, Manifest]]:
    """Open the vault of a backup's reference, and find the backup."""
    place = parse_place(session, backup)
    if place.pool is None or place.name is None:
        raise UsageError(f"{backup!r} names no backup; write POOL/ID, POOL/NAME or POOL/latest")
    with vault_pool(session, place.pool) as opened:
        vault = open_vault(opened)
        found = choose(load_catalog(vault), place.name, parse_time(at) if at is not None else None, generation)
        if refuse_late(vault, found) is Standing.RETIRED:
            click.echo(
                f"blockyard: backup {found.key_part[:8]} is signed by a writer who was retired since: whether it is theirs of before, "
                "the signature does not tell",
                err=True,
            )
        yield vault, found


def _span(text: str | None, size_bytes: int) -> tuple[int, int]:
    """Read OFFSET:LENGTH; all of a backup where nothing is said."""
    if text is None:
        return 0, size_bytes
    offset, colon, length = text.partition(":")
    if not colon:
        raise UsageError(f"{text!r} is no range; write OFFSET:LENGTH, such as 1G:64M")
    return parse_size(offset), parse_size(length)


def _vault_facts(vault: Vault, catalog: Catalog) -> dict[str, Value]:
    found = summarize(vault, catalog)
    return {
        "id": vault.volume_id.hex(),
        "backups": found.backups,
        "sources": found.sources,
        "logical_bytes": found.logical_bytes,
        "stored_bytes": found.stored_bytes,
        "saved_bytes": found.saved_bytes,
        "ratio": round(found.ratio, 2),
        "chunk_bytes": found.chunk_bytes,
        "table_bytes": found.table_bytes,
        "chunks": found.chunks,
        "packs": found.packs,
    }


def _shown(name: str, value: Value) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    if isinstance(value, list | tuple):
        return ", ".join(value)
    return "" if value is None else str(value)
