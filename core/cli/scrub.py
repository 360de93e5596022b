"""`blockyard scrub`, and `blockyard mirror sync|status`."""

import json
import time
from contextlib import ExitStack

import click

from core import limits
from core.cli.options import SIZE, json_option, with_session
from core.cli.output import Row, format_time, print_facts, print_json, progress_bar
from core.cli.session import Session
from core.errors import UsageError
from core.scrub.families import known_families
from core.scrub.mirror_sync import MirrorSync
from core.scrub.report import Report
from core.scrub.scrubber import Options
from core.scrub.scrubber import scrub as scrub_pool
from core.store.factory import open_store
from core.store.mirror import MirrorStore
from core.units import format_size

DAMAGED = 1


@click.command()
@click.argument("pool", metavar="POOL")
@click.argument("volumes", metavar="[NAME]...", nargs=-1)
@click.option(
    "--repair-from", multiple=True, metavar="POOL|URL", help="Store with the same objects to take good copies from."
)
@click.option("--no-repair", is_flag=True, help="Change nothing, even if the pool has a mirror.")
@click.option("--rate", type=SIZE, help="Read at most so many bytes a second, such as 50M.")
@click.option("--threads", type=click.IntRange(1, limits.SCRUB_THREADS), default=2, show_default=True)
@json_option
@with_session
def scrub(
    session: Session,
    pool: str,
    volumes: tuple[str, ...],
    repair_from: tuple[str, ...],
    no_repair: bool,
    rate: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Prove every object of a POOL (or of the images and filesystems NAME), and follow every reference; the pool may be in use.

    What is bad is taken from the pool's mirror, and from --repair-from, if a good copy is there. Ends with status 0 if all is well,
    1 if something is damaged still.
    """
    if no_repair and repair_from:
        raise UsageError("--no-repair and --repair-from do not go together")
    if rate == 0:
        raise UsageError("--rate 0 would never end; leave it out to read as fast as can be")
    with ExitStack() as stack:
        opened = stack.enter_context(session.pool(pool))
        sources = [open_store(_url(session, each)) for each in repair_from]
        for source in sources:
            stack.callback(source.close)
        options = Options(
            only=volumes,
            repair_from=sources,
            repair=not no_repair,
            rate=rate,
            threads=threads,
            families=known_families(),
        )
        with progress_bar(f"scrub {pool}") as progress:
            report = scrub_pool(opened, options, time.sleep, progress)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _tell(report)
    if not report.clean:
        click.get_current_context().exit(DAMAGED)


def _url(session: Session, reference: str) -> str:
    """Give the URL of a store that is named as a pool is."""
    return reference if "://" in reference else session.settings(reference).url


def _tell(report: Report) -> None:
    for each in report.findings:
        state = "repaired" if each.repaired else f"NOT REPAIRED ({each.remedy})"
        click.echo(f"{each.trouble} {each.family}: {each.problem}: {state}")
    if report.bad > len(report.findings):
        click.echo(f"and {report.bad - len(report.findings)} more")
    for lost in report.ranges:
        click.echo(f"{lost.where}: bytes {lost.offset} to {lost.offset + lost.length} cannot be read ({lost.key})")
    if report.ranges_left_out:
        click.echo(f"and {report.ranges_left_out} more ranges")
    for key, text in report.strays:
        click.echo(f"stray {key}: {text}")
    if report.strays_left_out:
        click.echo(f"and {report.strays_left_out} more strays")
    read = f"{report.objects} objects with {format_size(report.size_bytes)} in {report.ended - report.begun} s"
    if not report.bad:
        click.echo(f"{read}: all is well")
    else:
        click.echo(f"{read}: {report.bad} bad, {report.repaired} of them repaired")


@click.group()
def mirror() -> None:
    """Bring the mirror of a pool up to date, and see how it does."""


@mirror.command()
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def sync(session: Session, pool: str, as_json: bool) -> None:
    """Copy to the mirror of a POOL what it has not got, and delete from it what was deleted while it was away.

    A new mirror is filled by it. What proves bad is not copied, and told of; then the status is 1.
    """
    with session.pool(pool) as opened, progress_bar(f"mirror {pool}") as progress:
        done = MirrorSync(opened, known_families(), progress=progress).run()
    facts: Row = {
        "copied": done.copied,
        "copied_bytes": done.size_bytes,
        "deleted": done.deleted,
        "in_mirror_alone": done.alone,
        "bad": done.bad,
    }
    if as_json:
        print_json(facts)
    else:
        for each in done.bad:
            click.echo(f"not copied: {each}")
        print_facts([(name.replace("_", " "), str(value)) for name, value in facts.items() if name != "bad"])
    if done.bad:
        click.get_current_context().exit(DAMAGED)


@mirror.command()
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def status(session: Session, pool: str, as_json: bool) -> None:
    """Show what this machine noted that the mirror of a POOL missed."""
    with session.pool(pool) as opened:
        store = opened.store
        if not isinstance(store, MirrorStore):
            raise UsageError(f"the pool {pool} has no mirror; name one in the configuration file, as mirror = URL")
        missed = store.backlog.missed()
        facts: Row = {
            "url": store.first.url,
            "mirror": store.mirror.url,
            "behind": store.missed_something(),
            "to_be_deleted": len(missed.deleted),
            "seen": format_time(int(session.world.now())),
        }
    if as_json:
        print_json(facts)
    else:
        print_facts([(name.replace("_", " "), str(value)) for name, value in facts.items()])
