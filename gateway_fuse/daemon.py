"""Going to the background, but only once the mount answers: whoever typed the command sees what went wrong, and its exit status.

The command forks before anything of threads, stores or sessions exists, for those do not survive a fork. The parent waits for the child
to say that it is ready, or to end. The child keeps the terminal until then: it may have to ask for a passphrase.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import click

_READY = b"ready"


@contextlib.contextmanager
def detached() -> Iterator[Callable[[], None]]:
    """Run the block in a child; the parent leaves with `click.exceptions.Exit`. The block calls what it is given when all is well."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        raise click.exceptions.Exit(_wait(child, reading))
    os.close(reading)

    def ready() -> None:
        _let_go_of_terminal()
        os.write(writing, _READY)
        os.close(writing)

    yield ready


def _wait(child: int, reading: int) -> int:
    """Give the exit status of the command: 0 once the child is ready, its own if it ends before."""
    with os.fdopen(reading, "rb") as pipe:
        if pipe.read(len(_READY)) == _READY:
            return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) or 1


def _let_go_of_terminal() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
