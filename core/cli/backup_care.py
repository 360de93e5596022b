"""`blockyard backup verify|forget|prune|systemd`: whether backups can be trusted, and how long they stay."""

import shutil
import sys
from dataclasses import fields
from pathlib import Path

import click

from core.backup.catalog import Catalog, load_catalog
from core.backup.forget import Verdict, forget, judge
from core.backup.jobs import find_job, read_jobs, units
from core.backup.manifest import Manifest
from core.backup.prune import PruneReport, prune
from core.backup.retention import Policy
from core.backup.run import DEFAULT_COMPRESSION
from core.backup.tree_restore import tree_recovery_test
from core.backup.vault import Vault, open_vault
from core.backup.verify import Finding, recovery_test, verify
from core.backup.visit import reading
from core.cli.backup_places import choose, parse_place, status_of_failure
from core.cli.options import PATH, json_option, with_session
from core.cli.output import Row, Value, format_time, print_facts, print_json, print_table, progress_bar
from core.cli.session import Session
from core.config import default_config_path
from core.errors import IntegrityError, UsageError
from core.units import format_size
from core.volume.images import image_options

RETENTION = tuple(each.name for each in fields(Policy))


@click.command("verify")
@click.argument("backup", metavar="POOL[/BACKUP]")
@click.option("--no-data", is_flag=True, help="Check chains and tables alone; read no chunk.")
@click.option(
    "--restore", is_flag=True, help="Also restore each into a scratch image of the pool, or a directory, and compare."
)
@json_option
@with_session
@status_of_failure
def verify_verb(session: Session, backup: str, no_data: bool, restore: bool, as_json: bool) -> None:
    """Check one backup, or all of a pool: its chain of signed manifests, its tables, and every chunk by its id.

    Nothing of the source is needed. Ends with status 7 if anything is wrong, naming each backup that is hurt.
    """
    place = parse_place(session, backup)
    if place.pool is None:
        raise UsageError(f"{backup!r} names no backup; write POOL, POOL/ID or POOL/NAME")
    with session.pool(place.pool) as opened:
        vault = open_vault(opened)
        catalog = load_catalog(vault)
        chosen = list(catalog.manifests) if place.name is None else [choose(catalog, place.name, None, None)]
        with reading(vault) as visit:
            with progress_bar("verify") as report:
                found = verify(visit, catalog, chosen, report, data=not no_data)
            tested = 0
            hurt = {each.manifest.id for each in found.findings}
            for each in chosen if restore else []:
                if each.id in hurt:
                    continue
                try:
                    with progress_bar(f"recovery test of {each.key_part[:8]}") as report:
                        if each.source.kind.is_tree:
                            tree_recovery_test(visit, each, report)
                        else:
                            recovery_test(visit, each, opened, image_options(session.settings(place.pool)), report)
                    tested += 1
                except IntegrityError as error:
                    found.findings.append(Finding(each, str(error)))
    facts: dict[str, Value] = {
        "backups": found.backups,
        "chunks": found.chunks,
        "chunk_bytes": found.chunk_bytes,
        "read": not no_data,
        "restored": tested,
        "signed_by_retired": found.retired,
        "damaged": len({each.manifest.id for each in found.findings}),
    }
    if as_json:
        print_json({**facts, "findings": [f"{each.manifest.key_part}: {each.what}" for each in found.findings]})
    else:
        print_facts([(name, str(value)) for name, value in facts.items()])
        for finding in found.findings:
            click.echo(f"{finding.manifest.key_part[:8]} ({finding.manifest.source.name}): {finding.what}")
    if found.findings:
        raise IntegrityError(f"{facts['damaged']} of {found.backups} backups are damaged")


@click.command("forget")
@click.argument("pool", metavar="POOL")
@click.argument("backups", metavar="[BACKUP]...", nargs=-1)
@click.option("--source", help="Only backups of the source of this name.")
@click.option("--keep-last", type=click.IntRange(0), default=0, help="Keep the newest N.")
@click.option("--keep-hourly", type=click.IntRange(0), default=0, help="Keep the newest of each of N hours.")
@click.option("--keep-daily", type=click.IntRange(0), default=0, help="Keep the newest of each of N days.")
@click.option("--keep-weekly", type=click.IntRange(0), default=0, help="Keep the newest of each of N weeks.")
@click.option("--keep-monthly", type=click.IntRange(0), default=0, help="Keep the newest of each of N months.")
@click.option("--keep-yearly", type=click.IntRange(0), default=0, help="Keep the newest of each of N years.")
@click.option("--dry-run", is_flag=True, help="Only show what would be forgotten.")
@click.option("--prune", "and_prune", is_flag=True, help="Delete at once what no backup needs any more.")
@json_option
@with_session
@status_of_failure
def forget_verb(
    session: Session,
    /,
    pool: str,
    backups: tuple[str, ...],
    source: str | None,
    dry_run: bool,
    and_prune: bool,
    as_json: bool,
    **keep: int,
) -> None:
    """Forget backups: those named, or those of each source that no --keep rule keeps. `prune` gives their room back.

    Children of a forgotten backup stay restorable, and their chain stays verifiable.
    """
    policy = Policy(**{name: keep[f"keep_{name}"] for name in RETENTION})
    if backups and not policy.says_nothing():
        raise UsageError("name the backups to forget, or give --keep rules, not both")
    with session.pool(pool) as opened:
        vault = open_vault(opened)
        catalog = load_catalog(vault)
        verdicts = _named(catalog, backups) if backups else judge(catalog, policy, source)
        gone = [each.manifest for each in verdicts if not each.keep]
        if not dry_run:
            forget(vault, gone)
        pruned = prune_with_bar(vault, dry_run=dry_run) if and_prune else None
    if as_json:
        rows: list[Row] = [
            {"id": each.manifest.key_part, "keep": each.keep, "reasons": list(each.reasons)} for each in verdicts
        ]
        print_json(rows)
        return
    _show(verdicts)
    click.echo(f"{'would forget' if dry_run else 'forgot'} {len(gone)} of {len(verdicts)} backups")
    if pruned is not None:
        click.echo(_pruned(pruned, dry_run=dry_run))


@click.command("prune")
@click.argument("pool", metavar="POOL")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--max-unused", type=click.FloatRange(0), help="Share of unneeded bytes that may stay in packs. [default: 0.1]"
)
@click.option("--carry-over", is_flag=True, help="Also write anew what stands under old keys of the vault.")
@json_option
@with_session
@status_of_failure
def prune_verb(
    session: Session, pool: str, dry_run: bool, max_unused: float | None, carry_over: bool, as_json: bool
) -> None:
    """Delete chunks that no backup needs, and pack sparse packs together. Backups and restores may go on meanwhile.

    After `blockyard key rotate-volume POOL/.vault`, --carry-over writes all chunks anew under the new key.
    """
    with session.pool(pool) as opened:
        report = prune_with_bar(open_vault(opened), dry_run=dry_run, unused=max_unused, carry_over=carry_over)
    if as_json:
        print_json({name: getattr(report, name) for name in type(report).__dataclass_fields__})
    else:
        click.echo(_pruned(report, dry_run=dry_run))


@click.command()
@click.argument("job", required=False)
@click.option("--write", "directory", type=PATH, help="Write the units into this directory instead of printing them.")
@click.option("--program", help="The blockyard command that the service runs. [default: the one found now]")
@with_session
@status_of_failure
def systemd(session: Session, job: str | None, directory: Path | None, program: str | None) -> None:
    """Print systemd's service and timer for the backups of the configuration file, [backup.NAME], or for one of them."""
    path = (session.config_path or default_config_path(session.environment)).absolute()
    jobs = read_jobs(path, session.config().backups)
    chosen = [find_job(jobs, job)] if job is not None else jobs
    if not chosen:
        raise UsageError(f"{path} has no [backup.NAME] table; write one with source, target and schedule")
    command = program or shutil.which("blockyard") or sys.argv[0]
    for each in chosen:
        for name, text in units(each, command, path).items():
            if directory is None:
                click.echo(f"# /etc/systemd/system/{name}\n{text}")
            else:
                (directory / name).write_text(text, encoding="utf-8")
                click.echo(f"wrote {directory / name}")


def prune_with_bar(
    vault: Vault, *, dry_run: bool, unused: float | None = None, carry_over: bool = False
) -> PruneReport:
    """Prune with a bar that counts packs."""
    with progress_bar("prune") as report:
        return prune(vault, DEFAULT_COMPRESSION, report, dry_run=dry_run, unused=unused, carry_over=carry_over)


def _named(catalog: Catalog, backups: tuple[str, ...]) -> list[Verdict]:
    found = {each.id: each for each in (catalog.get(text) for text in backups)}
    return [Verdict(each, keep=False) for each in found.values()]


def _show(verdicts: list[Verdict]) -> None:
    def row(each: Manifest, keep: bool, reasons: tuple[str, ...]) -> tuple[str, ...]:
        return (
            each.key_part[:8],
            format_time(each.created),
            each.source.name,
            "keep" if keep else "forget",
            ", ".join(reasons),
        )

    print_table(
        ("id", "created", "source", "", "because of"),
        [row(each.manifest, each.keep, each.reasons) for each in verdicts],
    )


def _pruned(report: PruneReport, *, dry_run: bool) -> str:
    if dry_run:
        return (
            f"would delete {report.dead_packs} packs and copy {report.repacked_packs} together: "
            f"{format_size(report.deleted_bytes)} go, {format_size(report.live_bytes)} are needed"
        )
    text = f"deleted {report.deleted_packs} packs of {format_size(report.deleted_bytes)}"
    if report.repacked_packs:
        text += f", packed {report.repacked_packs} together into {format_size(report.written_bytes)}"
    if report.waiting_packs:
        text += f"; {report.waiting_packs} packs wait until those at work now are done: prune again then"
    return text
