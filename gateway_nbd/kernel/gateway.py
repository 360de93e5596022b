"""The gateway's process, as its supervisor sees it: an NBD server on a unix socket that may die at any moment.

A `Gateway` owns one child and its socket path; it belongs to the thread of the supervisor's loop.
1. At most one child lives: `start` is refused while there is one. An image has one writer.
2. The child outlives a supervisor that is killed: the kernel holds its connections, and I/O goes on.
"""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from core.errors import WorldError
from gateway_nbd.kernel.limits import LOG_TAIL_BYTES

SOCKET_PLACE: Final = "{socket}"
"""Stands in a gateway's command where the path of its socket belongs."""


class Gateway:
    """Run `command`, any NBD server in the foreground, with `SOCKET_PLACE` replaced by `socket_path`."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        socket_path: Path,
        log_path: Path,
        *,
        first_command: Sequence[str] | None = None,
    ) -> None:
        """`first_command`, if given, is run instead of `command` until `settle` is called."""
        self.socket_path = socket_path
        self._settled_command = [part.replace(SOCKET_PLACE, str(socket_path)) for part in command]
        self._command = [part.replace(SOCKET_PLACE, str(socket_path)) for part in first_command or command]
        self._environment = dict(environment)
        self._log_path = log_path
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int | None:
        """The child's process id while there is a child."""
        return None if self._child is None else self._child.pid

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable once the child has ended; -1 while there is none."""
        return self._pidfd

    def start(self) -> None:
        """Start a child that may listen a little later. Raises WorldError when there is no such program."""
        assert self._child is None, "the former gateway was not reaped"
        self.socket_path.unlink(missing_ok=True)
        with self._log_path.open("wb") as log:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - a list, no shell
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise WorldError(f"the gateway {self._command[0]} did not start: {error.strerror}") from error
        self._pidfd = os.pidfd_open(self._child.pid)

    def settle(self) -> None:
        """The first gateway serves: what was for it alone (taking an image over) is not done again."""
        self._command = self._settled_command

    def has_ended(self) -> bool:
        """Tell whether the child has ended (or none was started)."""
        return self._child is None or self._child.poll() is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for the child's end at most `timeout_s`; tell whether it came."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout_s)
        return self.has_ended()

    def terminate(self) -> None:
        """Ask the child to make durable what it acknowledged and to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the child now: after it is reaped, no request of its time is ever executed."""
        self._send(signal.SIGKILL)

    def reap(self, timeout_s: float) -> str:
        """Wait for the end, killing the child after `timeout_s`; say how it ended."""
        if self._child is None:
            return "not running"
        try:
            status = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._child.wait()
        os.close(self._pidfd)
        self._child, self._pidfd = None, -1
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def last_words(self) -> str:
        """The end of the child's log, for an error message."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def _send(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send_signal(number)


def end_stray(pid: int, socket_path: Path) -> None:
    """Kill the gateway that a dead supervisor left behind, if process `pid` is still that gateway, and wait for its end."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        descriptor = os.pidfd_open(pid)
        try:
            if str(socket_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [])
        finally:
            os.close(descriptor)
