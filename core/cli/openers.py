"""Options that say what will open a new key slot: a key file to be written, or a passphrase to be read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import click

from core.cli.options import PATH
from core.cli.session import ask_passphrase
from core.errors import UsageError
from core.pool.connect import read_passphrase_fd, read_passphrase_file
from core.pool.slots import Passphrase

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class NewSlot:
    """What the user asked for; all empty when nothing was said."""

    key_file: Path | None
    ask: bool
    passphrase_file: Path | None
    passphrase_fd: int | None

    def passphrase(self) -> Passphrase | None:
        """Read or ask for the new passphrase; None if none is wanted. UsageError if several things are."""
        given = [self.key_file is not None, self.ask, self.passphrase_file is not None, self.passphrase_fd is not None]
        if sum(given) > 1:
            raise UsageError("a slot is opened by one thing: give one of the --new-… options")
        if self.passphrase_file is not None:
            return read_passphrase_file(self.passphrase_file)
        if self.passphrase_fd is not None:
            return read_passphrase_fd(self.passphrase_fd)
        return ask_new_passphrase() if self.ask else None


def ask_new_passphrase() -> Passphrase:
    """Ask twice for a passphrase on the terminal."""
    first = ask_passphrase("New passphrase")
    if ask_passphrase("The same again") != first:
        raise UsageError("the two passphrases differ")
    return Passphrase(first.encode())


def new_slot_options(function: Callable[Concatenate[NewSlot, P], R]) -> Callable[P, R]:
    """Add the `--new-…` options to a command."""

    @click.option("--new-key-file", type=PATH, help="Write a new key file there.")
    @click.option("--new-passphrase", is_flag=True, help="Ask for a new passphrase.")
    @click.option("--new-passphrase-file", type=PATH, help="Read a new passphrase from a file.")
    @click.option("--new-passphrase-fd", type=int, help="Read a new passphrase from an open descriptor.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        path, ask, file, descriptor = (
            kwargs.pop(name) for name in ("new_key_file", "new_passphrase", "new_passphrase_file", "new_passphrase_fd")
        )
        assert path is None or isinstance(path, Path), "click converted it"
        assert file is None or isinstance(file, Path), "click converted it"
        assert descriptor is None or isinstance(descriptor, int), "click converted it"
        return function(NewSlot(path, bool(ask), file, descriptor), *args, **kwargs)

    return command
