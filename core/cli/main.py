"""The `blockyard` command: its verbs, and the one place where errors become a sentence and an exit status."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from core.cli.lazy import LazyGroup, begin_process, end_process, entry_points, uncollected
from core.cli.options import PATH
from core.cli.session import Session
from core.errors import BlockyardError, exit_status_of

VERBS: Final = "blockyard.verbs"
"""Entry point group by which other packages add commands."""
TRACEBACK: Final = "BLOCKYARD_TRACEBACK"
_OWN: Final = {
    "backup": "core.cli.backup:backup",
    "clone": "core.cli.clones:clone",
    "gc": "core.cli.collection:gc",
    "image": "core.cli.image_group:image",
    "key": "core.cli.keys:key",
    "mirror": "core.cli.scrub:mirror",
    "pool": "core.cli.pool:pool",
    "scrub": "core.cli.scrub:scrub",
    "snapshot": "core.cli.snapshots:snapshot",
}
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143


class Verbs(LazyGroup):
    """The top of the command: its own verbs, and those of other packages. All are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of all verbs, sorted."""
        return sorted({*super().list_commands(ctx), *(each.name for each in entry_points(group=VERBS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a verb by its name."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for each in entry_points(group=VERBS, name=cmd_name):
            with uncollected():
                verb = each.load()
            if not isinstance(verb, click.Command):
                raise TypeError(f"the entry point {each.value} of {VERBS} is no click command")
            return verb
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb. `blockyard POOL/FS DIR -o …` mounts: so mount(8) calls the program that a type fuse.blockyard names."""
        if args and "/" in args[0] and self.get_command(ctx, args[0]) is None:
            args = ["mount", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, places=_OWN, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=PATH, help="Configuration file to read instead of the user's own.")
@click.version_option(package_name="blockyard")
@click.pass_context
def blockyard(context: click.Context, config: Path | None) -> None:
    """Thin, compressed, end-to-end encrypted block images on any pool of objects.

    A POOL is a name from the configuration file or a URL such as file:///srv/pool, s3://bucket/prefix or
    rados://pool/prefix?conf=/etc/ceph/ceph.conf. An IMAGE is POOL/NAME; a URL's query stays at its end.
    """
    context.obj = Session(config_path=config)


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status. What went wrong stands in one sentence on standard error."""
    try:
        status = blockyard.main(list(arguments), prog_name="blockyard", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("blockyard: interrupted", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell, and Python must not try at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the boundary: nothing leaves but a sentence
        if os.environ.get(TRACEBACK):
            raise
        error = _cause(error)
        foreseen = isinstance(error, BlockyardError)
        text = str(error) if foreseen else f"unforeseen {type(error).__name__}; {TRACEBACK}=1 shows where"
        click.echo(f"blockyard: {' '.join(text.split())}", err=True)
        return exit_status_of(error)
    # Outside its standalone mode, click gives the status of `Exit` instead of raising it.
    return status if isinstance(status, int) else 0


def _cause(error: Exception) -> Exception:
    """Take an error out of the groups that a program of tasks wraps around it, where it is alone in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def main() -> NoReturn:
    """Run the command that the process was started with. SIGTERM unwinds as Ctrl-C does, so nothing half-done stays."""
    begin_process()
    signal.signal(signal.SIGTERM, _terminate)
    status = run(sys.argv[1:])
    end_process()
    sys.exit(status)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)
