"""Processes that use a mount: each does what a test tells it, one call after the other, and may get stuck without the test.

A call that a stopped mount does not answer cannot be interrupted, not even by SIGKILL; so a test makes calls that may wait in a
worker, and the mounts are ended before the workers. The worker needs nothing but the standard library and starts in some 30 ms.
"""

import mmap
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0


class Pending:
    """The answer to a call, when it comes."""

    def __init__(self, worker: "Worker", what: str) -> None:
        self._worker, self._what = worker, what
        self._answer: tuple[bool, Any] | None = None

    def fill(self, answer: tuple[bool, Any]) -> None:
        self._answer = answer

    def done(self, within_s: float = 0.0) -> bool:
        """Wait that long for the answer."""
        while self._answer is None and self._worker.receive(within_s):
            pass
        return self._answer is not None

    def result(self, within_s: float = PATIENCE_S) -> Any:
        """Give what the call returned or raise what it raised."""
        assert self.done(within_s), f"{self._what} did not end within {within_s:g} s"
        assert self._answer is not None
        succeeded, value = self._answer
        if succeeded:
            return value
        raise value


class Worker:
    """A process of its own; functions are told to it by name, so they stand in `os` or in a module of this directory."""

    def __init__(self, name: str = "worker") -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())
        self._waiting: deque[Pending] = deque()

    def begin(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Pending:
        """Have it call `function`, without waiting. Calls run in their order."""
        self._connection.send((function, arguments, named))
        pending = Pending(self, f"{function.__name__}{arguments!r} of {self.name}")
        self._waiting.append(pending)
        return pending

    def do(self, function: Callable[..., Any], *arguments: Any, within_s: float = PATIENCE_S, **named: Any) -> Any:
        """Have it call `function` and give the result."""
        return self.begin(function, *arguments, **named).result(within_s)

    def become(self, uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> "Worker":
        """Let it be another user from now on."""
        gid = uid if gid is None else gid
        self.do(os.setgroups, list(groups))
        self.do(os.setresgid, gid, gid, gid)
        self.do(os.setresuid, uid, uid, uid)
        return self

    def receive(self, within_s: float) -> bool:
        """Take the next answer; False if none came in time."""
        if not self._waiting or not self._connection.poll(within_s):
            return False
        try:
            answer = self._connection.recv()
        except EOFError:
            raise AssertionError(f"the worker {self.name} died") from None
        self._waiting.popleft().fill(answer)
        return True

    def kill(self) -> None:
        """End it; hangs while it waits for a mount that is stopped."""
        self.process.kill()
        self.process.wait()
        self._connection.close()


# What follows runs in the worker.

_files: dict[int, Any] = {}
_maps: dict[int, mmap.mmap] = {}


def write_whole(path: str | Path, data: bytes, sync: bool = False) -> None:
    """Make or replace the contents of a file."""
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_noise(path: str | Path, size: int) -> None:
    """Make or replace a file of so many bytes that do not compress, without sync."""
    write_whole(path, os.urandom(size))


def sync_file(path: str | Path) -> None:
    """Return when a file is durable. sync(2) does not reach a FUSE filesystem."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_whole(path: str | Path) -> bytes:
    """Give the contents of a file."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def map_file(descriptor: int, length: int) -> int:
    """Map a file, shared, for reading and writing if it is open for that; gives a handle for `peek` and `poke`."""
    handle = len(_maps) + 1
    _maps[handle] = mmap.mmap(descriptor, length)
    return handle


def peek(handle: int, offset: int, length: int) -> bytes:
    """Read through a mapping."""
    return _maps[handle][offset : offset + length]


def poke(handle: int, offset: int, data: bytes) -> None:
    """Write through a mapping."""
    _maps[handle][offset : offset + len(data)] = data


def sync_map(handle: int) -> None:
    """msync."""
    _maps[handle].flush()


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments, named = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments, **named))
        except BaseException as error:  # the test is to see whatever it was
            if not isinstance(error, OSError):
                traceback.print_exc()
            answer = (False, error)
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            connection.send((False, RuntimeError(f"cannot send {answer!r}: {error}")))


if __name__ == "__main__":
    sys.modules["mount_worker"] = sys.modules["__main__"]
    _serve(Connection(int(sys.argv[1])))
