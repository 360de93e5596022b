"""The boundary of the command: one sentence on standard error, an exit status, verbs of other packages."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import click
import pytest

from core.cli import main as cli
from core.cli.options import SIZE
from core.cli.output import print_table
from core.errors import (
    AlreadyExistsError,
    FencedError,
    IntegrityError,
    KeyRefusedError,
    LockedError,
    NotFoundError,
    OutOfSpaceError,
    StoreError,
    UsageError,
)

VERB = SimpleNamespace(raises=None)


@click.command()
def verb() -> None:
    """Do what the test says."""
    if VERB.raises is not None:
        raise VERB.raises
    click.echo("done")


@pytest.fixture(autouse=True)
def foreign_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("verb", f"{__name__}:verb", cli.VERBS)

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == cli.VERBS
        return [entry] if name in (None, "verb") else []

    monkeypatch.setattr(cli, "entry_points", entry_points)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    VERB.raises = None


def test_a_verb_of_another_package_is_listed_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    assert "Do what the test says." in capsys.readouterr().out
    assert cli.run(["verb"]) == 0
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize("arguments", [["snapshot", "create", "--help"], ["image", "export-diff", "--help"]])
def test_a_short_command_reads_no_module_that_it_does_not_need(arguments: list[str]) -> None:
    code = f"""
import sys
from core.cli import main
main.run({arguments})
for name in ("importlib.metadata", "obstore", "prometheus_client", "rich", "tenacity", "trio"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_the_process_of_a_command_starts_no_threads_for_linear_algebra_and_collects_garbage_while_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = """
import gc
import os
from core.cli import lazy, main
lazy.begin_process()
main.run(["snapshot", "create", "--help"])
assert gc.isenabled() and gc.get_freeze_count() > 1000
assert len(os.listdir("/proc/self/task")) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("u"), 2),
        (NotFoundError("n"), 3),
        (AlreadyExistsError("a"), 4),
        (KeyRefusedError("k"), 5),
        (LockedError("l"), 6),
        (IntegrityError("i"), 7),
        (StoreError("s"), 8),
        (OutOfSpaceError("o"), 9),
        (FencedError("f"), 10),
    ],
)
def test_every_kind_of_error_is_a_sentence_and_its_own_status(
    capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    VERB.raises = error
    assert cli.run(["verb"]) == status
    assert capsys.readouterr().err == f"blockyard: {error}\n"


def test_an_unforeseen_error_says_how_to_see_more_and_not_what_it_carries(capsys: pytest.CaptureFixture[str]) -> None:
    VERB.raises = RuntimeError("with a secret in it")
    assert cli.run(["verb"]) == 1
    text = capsys.readouterr().err
    assert "secret" not in text
    assert "BLOCKYARD_TRACEBACK=1" in text
    assert text.count("\n") == 1


def test_the_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "1")
    VERB.raises = UsageError("u")
    with pytest.raises(UsageError):
        cli.run(["verb"])


def test_an_interruption_ends_with_the_status_shells_expect() -> None:
    VERB.raises = KeyboardInterrupt()
    assert cli.run(["verb"]) == 130


def test_what_click_refuses_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert cli.run(["image", "create", "file:///p/disk", "much"]) == 2
    assert "not a size" in capsys.readouterr().err


def test_a_size_is_read_as_people_write_it() -> None:
    assert SIZE.convert("10G", None, None) == 10 << 30


def test_a_table_in_a_pipe_keeps_long_names_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 255
    print_table(("name", "size"), [(name, "1 GiB"), ("[bold]x", "2")], right=("size",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(name)
    assert lines[2].startswith("[bold]x")


def test_no_command_takes_a_secret_as_an_argument() -> None:
    def options(command: click.Command) -> list[str]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            parts = [command.get_command(context, each) for each in command.list_commands(context)]
            return [name for each in parts if each is not None for name in options(each)]
        return [name for each in command.params for name in each.opts if "pass" in name or "secret" in name]

    harmless = {"--new-passphrase", "--passes"}  # one only says that it is to be asked for
    named = set(options(cli.blockyard)) - harmless
    assert "--passphrase-file" in named
    assert [name for name in named if not name.endswith(("passphrase-file", "passphrase-fd"))] == []
