"""What keeps a short command short: most of its time is Python reading modules. Main thread.

Commands are imported when they are called, and pay for their own modules only. What is read stays to the end of the process, so the
collector of cyclic garbage does not go through it while it comes, nor when the process ends (`snapshot create`: 40 ms of 280).
"""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class LazyGroup(click.Group):
    """A group that knows some of its commands only by where they are: name -> `module:attribute`."""

    def __init__(self, *args: Any, places: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = dict(places or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self._places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command by its name, and import it if need be."""
        place = self._places.get(cmd_name)
        if place is None or cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        with uncollected():
            command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command), f"{place} is a command"
        self.add_command(command, cmd_name)
        return command


def entry_points(*, group: str, name: str | None = None) -> Iterable["EntryPoint"]:
    """Give what installed packages offer under a name; who only calls our own commands does not pay the 20 ms for looking."""
    metadata = import_module("importlib.metadata")
    found: Iterable[EntryPoint] = metadata.entry_points(group=group, **({} if name is None else {"name": name}))
    return found


@contextmanager
def uncollected() -> Iterator[None]:
    """Read modules in the block without collecting garbage between them. In a command's own process they are not looked at again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if (
            gc.get_freeze_count()
        ):  # `begin_process` was called: whoever calls a command from a program of his own keeps his garbage
            gc.freeze()
        if collecting:
            gc.enable()


def begin_process() -> None:
    """Set what must be set before anything large is read. Processes that are started from here inherit it."""
    # numpy's linear algebra starts a thread for each core when it is read; nothing here uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.freeze()


def end_process() -> None:
    """Let Python end without a last look for garbage."""
    gc.freeze()
