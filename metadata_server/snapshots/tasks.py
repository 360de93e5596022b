"""What takes longer than a request may: tasks of a running server, begun by one request and asked about by others.

Trio thread only, but for the progress of a task, which its own threads may write. Tasks run one after the other, in the order in which they
were begun. They end with the server: whoever asks a restarted one is told that there is no such task.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import msgpack
import trio

from core.errors import BlockyardError, errno_of
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.model import TaskState
from metadata_server.protocol.requests import AskTask, BeginTask
from metadata_server.snapshots import limits

_LOG = logging.getLogger("blockyard.snapshots")
Facts = dict[str, Any]
"""What goes in and comes out: a map of names to numbers, texts, bytes and truth values."""


@dataclass(slots=True)
class Task:
    """One task. It tells by `progress` what it does."""

    number: int
    kind: bytes
    arguments: Facts
    ended: bool = False
    doing: str = "waiting"
    done: int = 0
    total: int | None = None
    result: Facts | None = None
    errno: int = 0
    text: str = ""

    def progress(self, doing: str, done: int, total: int | None) -> None:
        """Take note of how far it is."""
        self.doing, self.done, self.total = doing, done, total

    def state(self) -> TaskState:
        """Show it."""
        result = None if self.result is None else msgpack.packb(self.result)
        return TaskState(self.ended, self.doing, self.done, self.total, result, self.errno, self.text)


Kind = Callable[[Task], Awaitable[Facts]]


class Tasks:
    """The tasks of one server."""

    def __init__(self, kinds: Mapping[bytes, Kind], first: int = 1) -> None:
        """`first`, the number of the first task, is to be drawn at random: nobody may take another server's task for his own."""
        self._kinds: Final = kinds
        self._tasks: dict[int, Task] = {}
        self.done = self.failed = 0
        self._numbers = count(first)
        self._send, self._receive = trio.open_memory_channel[Task](limits.TASKS)

    def begin(self, request: BeginTask) -> int:
        """Apply BeginTask."""
        if request.kind not in self._kinds:
            raise OperationError(errno.EINVAL, f"there are no tasks of the kind {request.kind!r}")
        try:
            arguments = msgpack.unpackb(request.arguments)
        except (ValueError, msgpack.UnpackException):
            arguments = None
        if not isinstance(arguments, dict):
            raise OperationError(errno.EINVAL, "the arguments of a task are a map")
        task = Task(next(self._numbers), request.kind, arguments)
        try:
            self._send.send_nowait(task)
        except trio.WouldBlock:
            raise OperationError(errno.EBUSY, f"{limits.TASKS} tasks wait already; try again later") from None
        self._tasks[task.number] = task
        return task.number

    def ask(self, request: AskTask) -> tuple[object, ...]:
        """Apply AskTask."""
        task = self._tasks.get(request.task)
        if task is None:
            raise OperationError(errno.ENOENT, "the metadata server was restarted, and its tasks have ended")
        return tuple(task.state())

    async def run(self) -> None:
        """Work off tasks, for ever."""
        async for task in self._receive:
            try:
                task.result = await self._kinds[task.kind](task)
            except Exception as error:  # noqa: BLE001  # told to who began it; the server goes on
                cause = _cause(error)
                task.errno, task.text = _reason(cause)
                self.failed += 1
                if not isinstance(cause, BlockyardError):
                    _LOG.error("a task %s failed", task.kind.decode(errors="replace"), exc_info=error)
            task.ended = True
            self.done += 1
            ended = [number for number, each in self._tasks.items() if each.ended]
            for number in ended[: -limits.ENDED_TASKS]:
                del self._tasks[number]


def _cause(error: Exception) -> Exception:
    """Take an error out of the groups that nurseries wrap around it, where it is alone in them."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _reason(error: Exception) -> tuple[int, str]:
    if isinstance(error, BlockyardError):
        return errno_of(error), str(error)
    if isinstance(error, KeyError | TypeError):
        return errno.EINVAL, f"the arguments of the task make no sense: {error}"
    return errno.EIO, f"the metadata server failed; its log says why ({type(error).__name__})"
