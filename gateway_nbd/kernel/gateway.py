"""The gateway's process, as its supervisor sees it: an NBD server on a unix socket that may die at any moment.

A `Gateway` owns one process and its socket path; it belongs to the thread of the supervisor's loop.
1. At most one process lives: `start` is refused while there is one. An image has one writer.
2. The process outlives a supervisor that is killed: the kernel holds its connections, and I/O goes on. nbdkit asks the
   kernel for SIGTERM when its parent dies, so a gateway is nobody's child; it is watched and signalled through a pidfd.
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

_START_AN_ORPHAN: Final = """exec 3<&0 </dev/null
(read -r _ <&3 || exit; exec 3<&-; exec "$@" >&2) &
echo $!
"""
"""The process waits for our line before it becomes the server: by then it is watched, and the shell is gone."""


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
        self._pid: int | None = None
        self._pidfd = -1

    @property
    def pid(self) -> int | None:
        """The process id while there is a process."""
        return self._pid

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable once the process has ended; -1 while there is none."""
        return self._pidfd

    def start(self) -> None:
        """Start a process that may listen a little later, or end at once and say why in its log."""
        assert self._pidfd < 0, "the former gateway was not reaped"
        self.socket_path.unlink(missing_ok=True)
        try:
            with (
                self._log_path.open("wb") as log,
                subprocess.Popen(  # noqa: S603 - our own lines of shell, the command as arguments
                    ["/bin/sh", "-c", _START_AN_ORPHAN, "sh", *self._command],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                ) as shell,
            ):
                assert shell.stdin is not None and shell.stdout is not None
                self._pid = int(shell.stdout.readline())
                shell.wait()
                self._pidfd = os.pidfd_open(self._pid)
                shell.stdin.write(b"go\n")
        except (OSError, ValueError) as error:
            raise WorldError(f"the gateway {self._command[0]} did not start: {error}") from error

    def settle(self) -> None:
        """The first gateway serves: what was for it alone (taking an image over) is not done again."""
        self._command = self._settled_command

    def has_ended(self) -> bool:
        """Tell whether the process has ended (or none was started)."""
        return self.wait(0.0)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end of the process at most `timeout_s`; tell whether it came."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def terminate(self) -> None:
        """Ask the process to make durable what it acknowledged and to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the process now: after it is reaped, no request of its time is ever executed."""
        self._send(signal.SIGKILL)

    def reap(self, timeout_s: float) -> str:
        """Wait for the end, killing the process after `timeout_s`; say how it ended.

        A killed process that hangs in the kernel (a dead disk, NFS) is waited for without limit: as long as it is there,
        starting another would break (1).
        """
        if self._pidfd < 0:
            return "not running"
        how = "ended"
        if not self.wait(timeout_s):
            self.kill()
            self.wait(None)
            how = "killed"
        os.close(self._pidfd)
        self._pid, self._pidfd = None, -1
        return how

    def last_words(self) -> str:
        """The end of the process's log, for an error message."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def _send(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


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
