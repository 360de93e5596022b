"""`blockyard backup run`: one source, a job of the configuration file, or all of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from core.backup.catalog import load_catalog
from core.backup.forget import forget, judge
from core.backup.image_source import image_opener
from core.backup.jobs import Job, find_job, read_jobs
from core.backup.manifest import Manifest, Mode
from core.backup.run import Progress, RunOptions, run_backup
from core.backup.sources import FileSource
from core.backup.tree_run import TreeOpener, run_tree_backup
from core.backup.tree_source import DirectorySource
from core.backup.vault import Vault, open_or_create_vault
from core.backup.visit import Visit
from core.cli.backup_care import prune_with_bar
from core.cli.backup_places import Place, is_directory, parse_place, status_of_failure, vault_pool, with_vault_key
from core.cli.lazy import entry_points
from core.cli.options import json_option, with_session
from core.cli.output import Value, format_time, print_json, progress_bar
from core.cli.session import Session
from core.errors import BlockyardError, UsageError
from core.format.compression import Compression
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.units import format_size

SOURCES = "blockyard.backup_sources"
"""Entry point group by which other packages open what images are not: a function of session, pool and name that gives a TreeOpener."""
INCOMPLETE = 3
"""Exit status of what was done but for something that could not be read."""


@click.command("run")
@click.argument("source", metavar="[SOURCE]", required=False)
@click.argument("target", metavar="[POOL]", required=False)
@click.option("--job", help="Make the backup that [backup.NAME] of the configuration file describes.")
@click.option("--all", "every", is_flag=True, help="Make all backups that the configuration file describes.")
@click.option("--full", is_flag=True, help="Read everything, and begin a new chain.")
@click.option("--differential", is_flag=True, help="Make it a child of the newest full backup.")
@click.option(
    "--chunker",
    type=click.Choice(["fixed", "cdc"]),
    help="How files of a tree are cut: every 64 KiB, or by their content.",
)
@click.option("--compression", help="Such as zstd:1, zstd:9, lz4 or none. [default: zstd:2]")
@json_option
@with_session
@with_vault_key
@status_of_failure
def run_verb(
    session: Session,
    source: str | None,
    target: str | None,
    job: str | None,
    every: bool,
    full: bool,
    differential: bool,
    compression: str | None,
    chunker: str | None,
    as_json: bool,
) -> None:
    """Back SOURCE up into the vault of POOL.

    SOURCE is an image or a filesystem (POOL/NAME), a snapshot of an image (POOL/NAME@SNAPSHOT), a whole pool, a directory, or a
    raw file. The first backup of a source is full, later ones read and store only what changed. An interrupted run leaves no
    backup, and the next one goes on from what it had stored. A [backup.NAME] of the configuration file has source, target,
    schedule, and keep-daily and the like, which are applied after each run.
    """
    if full and differential:
        raise UsageError("a backup is full or differential, not both")
    mode = Mode.FULL if full else Mode.DIFFERENTIAL if differential else Mode.INCREMENTAL
    made: list[Manifest] = []
    failed: BlockyardError | None = None
    for one in _jobs(session, source, target, job, chunker, every=every):
        chosen = Compression.parse(compression) if compression is not None else one.compression
        outcome = _do(session, one, RunOptions(mode=mode, compression=chosen), alone=not every)
        made += outcome.made
        failed = failed or outcome.failed
    if as_json:
        print_json([manifest_row(each) for each in made])
    else:
        for each in made:
            click.echo(_sentence(each))
    if failed is not None:
        raise failed
    if any(each.statistics.unreadable for each in made):
        raise click.exceptions.Exit(INCOMPLETE)


def _jobs(
    session: Session, source: str | None, target: str | None, job: str | None, chunker: str | None, *, every: bool
) -> list[Job]:
    """Say what is to be done: what the arguments name, or what the configuration file describes."""
    named = source is not None and target is not None
    if [named, job is not None, every].count(True) != 1 or (source is not None and target is None):
        raise UsageError("name a source and a pool, or a job of the configuration file by --job, or give --all")
    if source is not None and target is not None:
        return [Job("", source, target, chunker=chunker or "fixed")]
    config = session.config()
    jobs = read_jobs(config.path, config.backups)
    return jobs if job is None else [find_job(jobs, job)]


@dataclass
class _Outcome:
    """What was made, and the first failure."""

    made: list[Manifest] = field(default_factory=list)
    failed: BlockyardError | None = None


def _do(session: Session, job: Job, options: RunOptions, *, alone: bool) -> _Outcome:
    """Carry one job out: backups of its sources, one failing or not, then what its policy says."""
    outcome = _Outcome()
    try:
        with vault_pool(session, job.target) as pool:
            vault = open_or_create_vault(pool)
            for each in _runs(session, vault, parse_place(session, job.source), options, job.chunker):
                if isinstance(each, Manifest):
                    outcome.made.append(each)
                else:
                    outcome.failed = outcome.failed or each
            if not job.policy.says_nothing():
                _apply_policy(vault, job, outcome.made)
            if job.prune:
                prune_with_bar(vault, dry_run=False)
    except BlockyardError as error:
        if alone:
            raise
        click.echo(f"blockyard: backup {job.name}: {error}", err=True)
        outcome.failed = outcome.failed or error
    return outcome


def _apply_policy(vault: Vault, job: Job, made: list[Manifest]) -> None:
    """Forget what the policy does not keep, of the sources that were backed up now."""
    keys = {each.source.key for each in made}
    verdicts = [each for each in judge(load_catalog(vault), job.policy) if each.manifest.source.key in keys]
    forget(vault, [each.manifest for each in verdicts if not each.keep])


def _runs(
    session: Session, vault: Vault, place: Place, options: RunOptions, chunker: str
) -> Iterator[Manifest | BlockyardError]:
    if place.path is not None:
        if is_directory(place.path):
            with progress_bar(f"back up {place.path}") as report:
                tree = partial(_opened_directory, place.path, session)
                yield run_tree_backup(vault, tree, options, report, _complain, chunker)
            return
        with progress_bar(f"back up {place.path}") as report:
            yield run_backup(vault, partial(_opened_file, place.path, session), options, report)
        return
    assert place.pool is not None, "a place is a path or in a pool"
    with session.pool(place.pool) as pool:
        names = [place.name] if place.name is not None else _everything(pool)
        for name in names:
            try:
                with progress_bar(f"back up {name}") as report:
                    yield _volume_backup(session, pool, name, vault, options, chunker, report)
            except BlockyardError as error:
                if place.name is not None:
                    raise
                click.echo(f"blockyard: {name}: {error}", err=True)
                yield error


def _everything(pool: Pool) -> list[str]:
    """Name what of a pool is backed up."""
    return [each.name for each in pool.names.everything() if each.kind is not VolumeKind.VAULT]


def _volume_backup(
    session: Session, pool: Pool, name: str, vault: Vault, options: RunOptions, chunker: str, report: Progress
) -> Manifest:
    found = pool.names.find(name.partition("@")[0])
    if found is None or found.kind is VolumeKind.IMAGE:
        return run_backup(vault, image_opener(pool, name), options, report)
    for each in entry_points(group=SOURCES, name=found.kind.value):
        tree: TreeOpener = each.load()(session, pool, name)
        return run_tree_backup(vault, tree, options, report, _complain, chunker)
    raise UsageError(f"{name!r} is {found.kind.with_article}, and nothing installed here can back it up")


def _opened_directory(path: Path, session: Session, visit: Visit) -> DirectorySource:
    return DirectorySource(path, visit.vault.pool.id, session.world.hostname)


def _complain(path: bytes, error: OSError) -> None:
    """Say what could not be read; the run goes on."""
    reason = error.strerror or str(error)
    click.echo(f"blockyard: cannot read {path.decode(errors='replace') or '.'}: {reason}", err=True)


def _opened_file(path: Path, session: Session, visit: Visit) -> FileSource:
    return FileSource(path, visit.vault.pool.id, session.world.hostname)


def _sentence(each: Manifest) -> str:
    figures = each.statistics
    text = (
        f"backup {each.key_part[:8]} of {each.source.name} ({each.mode.value}): {format_size(each.size_bytes)}, "
        f"read {format_size(figures.read_bytes)}, new {format_size(figures.new_bytes)}, "
        f"stored {format_size(figures.stored_bytes)}, already there {format_size(figures.duplicate_bytes)}"
    )
    return text + (f"; {figures.unreadable} entries could not be read" if figures.unreadable else "")


def manifest_row(each: Manifest) -> dict[str, Value]:
    """Tell of a backup for JSON and for people."""
    return {
        "id": each.key_part,
        "created": format_time(each.created),
        "source": each.source.name,
        "kind": each.source.kind.value,
        "mode": each.mode.value,
        "generation": each.generation,
        "size_bytes": each.size_bytes,
        "parent": each.parent.hex() if each.parent is not None else None,
        "digest": each.digest.hex(),
        "source_pool": each.source.pool_id.hex(),
        "source_volume": each.source.volume_id.hex(),
        "chunker": each.chunker,
        **{name: getattr(each.statistics, name) for name in type(each.statistics).__dataclass_fields__},
    }
