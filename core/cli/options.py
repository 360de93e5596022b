"""What the commands' arguments have in common: how a pool is named and unlocked, and what a size is.

Other packages that add verbs use these too, so that `--key-file` is the same everywhere. No option takes a secret.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import click

from core.cli.session import Session
from core.config import Settings
from core.errors import UsageError
from core.units import parse_size

P = ParamSpec("P")
R = TypeVar("R")


class SizeType(click.ParamType[int]):
    """A number of bytes as people write it, such as 10G."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the argument, or fail as click does."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()
PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def with_session(function: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Give a command its session, which knows how its pool is to be unlocked: adds the options for that."""

    @click.option("--key-file", type=PATH, help="Key file that opens the pool.")
    @click.option("--passphrase-file", type=PATH, help="File with the passphrase that opens the pool.")
    @click.option("--passphrase-fd", type=int, help="Open file descriptor to read the passphrase from.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        unlock = Settings(
            key_file=_taken(kwargs, "key_file", Path),
            passphrase_file=_taken(kwargs, "passphrase_file", Path),
            passphrase_fd=_taken(kwargs, "passphrase_fd", int),
        )
        session = click.get_current_context().ensure_object(Session).with_arguments(unlock)
        return function(session, *args, **kwargs)

    return command


T = TypeVar("T")


def _taken(values: dict[str, object], name: str, kind: type[T]) -> T | None:
    """Take an option out of what click passes on."""
    value = values.pop(name)
    assert value is None or isinstance(value, kind), "click converted it"
    return value
