"""`python -m bench`: the benchmarks and their options."""

import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from bench import backup9, backup_cases, fs11, fs_cases, fs_scale, nbd8, opening, rows
from bench.cases import choose
from bench.ceph import cluster
from bench.gateway import PROJECT
from bench.large_image import Shape, build
from bench.picture import draw
from bench.stores import fresh_url, parse_stores
from core.errors import BlockyardError, UsageError
from core.units import parse_size

_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def bench() -> None:
    """Measure Blockyard beside its peers, in one run on one machine. Figures are ratios; absolute ones drift."""


@bench.command()
@click.option("--store", default="file,rados,s3", help="Stores, separated by commas.")
@click.option("--json", "json_path", type=_PATH, help="Write the rows there.")
@click.option("--cases", help="Only these cases, separated by commas.")
@click.option("--seconds", default=4.0, help="Time of each case.")
@click.option("--rounds", default=1, type=click.IntRange(1, 99), help="Turns of each case; medians count.")
@click.option("--no-peer", is_flag=True, help="Ours alone.")
@click.option("--ceph-conf", type=_PATH, envvar="CEPH_CONF", help="Use this cluster; s3.env is beside the file.")
@click.option("--directory", type=_PATH, help="Make the temporary directory there.")
@click.option("-o", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter of our plugin, to experiment.")
def nbd(
    store: str,
    json_path: Path | None,
    cases: str | None,
    seconds: float,
    rounds: int,
    no_peer: bool,
    ceph_conf: Path | None,
    directory: Path | None,
    parameters: tuple[str, ...],
) -> None:
    """Run nbd-8: eight loads of fio over NBD, ours beside the usual peer of each store."""
    plan = nbd8.Plan(
        stores=parse_stores(store),
        cases=choose(cases),
        seconds=seconds,
        rounds=rounds,
        with_peer=not no_peer,
        ceph_conf=ceph_conf,
        parameters=parameters,
        directory=directory,
    )
    found = nbd8.run(plan, _tell)
    click.echo("\n" + rows.with_conditions(found))
    if json_path is not None:
        rows.save(found, json_path)


@bench.command()
@click.option("--store", default="file,rados", help="Stores, separated by commas.")
@click.option("--json", "json_path", type=_PATH, help="Write the rows there.")
@click.option("--cases", help="Only these cases, separated by commas.")
@click.option("--rounds", default=1, type=click.IntRange(1, 99), help="Rounds of all cases; medians count.")
@click.option("--no-peer", is_flag=True, help="Ours alone.")
@click.option("--ceph-conf", type=_PATH, envvar="CEPH_CONF", help="Use this cluster of tests/servers/ceph-up.sh.")
@click.option("--directory", type=_PATH, help="Make the temporary directory there.")
@click.option("-o", "parameters", multiple=True, metavar="ARGUMENT", help="An argument of our mount, to experiment.")
def fs(
    store: str,
    json_path: Path | None,
    cases: str | None,
    rounds: int,
    no_peer: bool,
    ceph_conf: Path | None,
    directory: Path | None,
    parameters: tuple[str, ...],
) -> None:
    """Run fs-11: files and directories through a mount, ours beside the usual peer of each store."""
    plan = fs11.Plan(
        stores=parse_stores(store),
        cases=fs_cases.choose(cases),
        rounds=rounds,
        with_peer=not no_peer,
        ceph_conf=ceph_conf,
        parameters=parameters,
        directory=directory,
    )
    found = fs11.run(plan, _tell_fs)
    click.echo("\n" + rows.with_conditions(found))
    if json_path is not None:
        rows.save(found, json_path)


@bench.command("fs-scale")
@click.option("--json", "json_path", type=_PATH, help="Write the rows there.")
@click.option("--entries", default="1000,100000", help="Entries of a directory; 1000000 takes some minutes.")
@click.option("--directory", type=_PATH, help="Make the temporary directory there.")
def fs_scale_command(json_path: Path | None, entries: str, directory: Path | None) -> None:
    """Ask the metadata server about large directories; its memory and its database for each file."""
    found = fs_scale.run(fs_scale.parse_entries(entries), directory, _tell)
    click.echo("\n" + rows.with_conditions(found))
    if json_path is not None:
        rows.save(found, json_path)


@bench.command()
@click.option(
    "--store", default="rados,file", help="Stores, separated by commas. Streams have a peer on rados, backups on file."
)
@click.option("--json", "json_path", type=_PATH, help="Write the rows there.")
@click.option("--cases", help="Only these cases, separated by commas.")
@click.option("--size", default="1G", help="Size of the image; 10G is what the goals are about.")
@click.option("--rounds", default=1, type=click.IntRange(1, 99), help="Rounds of all cases; medians count.")
@click.option("--no-peer", is_flag=True, help="Ours alone.")
@click.option("--ceph-conf", type=_PATH, envvar="CEPH_CONF", help="Use this cluster of tests/servers/ceph-up.sh.")
@click.option("--directory", type=_PATH, help="Make the temporary directory there; it takes some five times the size.")
def backup(
    store: str,
    json_path: Path | None,
    cases: str | None,
    size: str,
    rounds: int,
    no_peer: bool,
    ceph_conf: Path | None,
    directory: Path | None,
) -> None:
    """Run backup-9: snapshots and streams beside rbd, backups beside restic."""
    plan = backup9.Plan(
        stores=parse_stores(store),
        cases=backup_cases.choose(cases),
        size_bytes=parse_size(size),
        rounds=rounds,
        with_peer=not no_peer,
        ceph_conf=ceph_conf,
        directory=directory,
    )
    found = backup9.run(plan, _tell_backup)
    click.echo("\n" + rows.with_conditions(found))
    if json_path is not None:
        rows.save(found, json_path)


@bench.command("open")
@click.option("--store", default="file", help="Stores, separated by commas.")
@click.option("--json", "json_path", type=_PATH, help="Write the rows there.")
@click.option("--size", default="1T", help="Size of the image.")
@click.option("--written", default="10G", help="Bytes written in it.")
@click.option("--cache", type=_PATH, default=PROJECT / ".make" / "bench-open", help="Keep the image of file:// there.")
@click.option("--ceph-conf", type=_PATH, envvar="CEPH_CONF", help="Use this cluster; s3.env is beside the file.")
def open_image(
    store: str, json_path: Path | None, size: str, written: str, cache: Path, ceph_conf: Path | None
) -> None:
    """Open a large image with little in it: time cold, warm and after a kill, memory, stored bytes."""
    shape = Shape(parse_size(size), parse_size(written))
    found: list[opening.OpenRow] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockyard-bench-")))
        stores = parse_stores(store)
        ceph = stack.enter_context(cluster(directory, ceph_conf)) if set(stores) & {"rados", "s3"} else None
        for each in stores:
            home = cache if each == "file" else directory / each
            url = f"file://{cache.absolute() / 'pool'}" if each == "file" else fresh_url(each, home, ceph)
            image = build(url, home, ceph.s3 if ceph else {}, shape)
            found += opening.measure(each, image, directory, _tell_open)
    click.echo("\n" + rows.markdown(opening.lines(found), frozenset({0, 1, 4})))
    if json_path is not None:
        rows.save(found, json_path)


@bench.command()
@click.argument("results", nargs=-1, required=True, type=_PATH)
@click.option("--svg", type=_PATH, help="Draw the ratios there.")
@click.option("--into", type=_PATH, help="Put the table between the marks of this document.")
def show(results: tuple[Path, ...], svg: Path | None, into: Path | None) -> None:
    """Print what earlier runs of nbd, or of fs, wrote as one table, and draw it."""
    found = [row for path in results for row in rows.load(path)]
    benchmarks = {row.benchmark for row in found}
    if len(benchmarks) != 1:
        raise UsageError(f"these are results of {' and '.join(sorted(benchmarks))}; show those of one at a time")
    text = rows.with_conditions(found)
    click.echo(text)
    if into is not None:
        document = rows.put_between(into.read_text(encoding="utf-8"), text, benchmarks.pop())
        into.write_text(document, encoding="utf-8")
    if svg is not None:
        svg.write_text(draw(found), encoding="utf-8")


def _tell_fs(store: str, case: str, side: str, seen: rows.Observation) -> None:
    click.echo(f"{store} {case}: {side} {seen.measurement.value:,.0f}, settled in {seen.settle_s:.2f} s", err=True)


def _tell_backup(store: str, case: str, side: str, seen: rows.Observation) -> None:
    stored = "" if seen.stored_bytes is None else f", {seen.stored_bytes / 1e6:,.1f} MB stored"
    click.echo(f"{store} {case}: {side} {seen.seconds:,.2f} s{stored}", err=True)


def _tell_open(row: opening.OpenRow) -> None:
    click.echo(f"{row.store} {row.case}: {row.ours:,.3g} {row.unit}", err=True)


def _tell(row: rows.Row) -> None:
    beside = "" if row.peer is None else f", {row.peer_name} {row.peer:,.0f}, ratio {row.ratio:.2f}"
    click.echo(f"{row.store} {row.case}: {row.ours:,.0f} {row.unit}{beside}", err=True)


def main() -> None:
    """Run a benchmark; an error is one sentence and a status. A SIGTERM ends the servers too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        bench(prog_name="python -m bench")
    except UsageError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    except BlockyardError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
