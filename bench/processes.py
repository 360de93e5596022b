"""Servers that a benchmark starts: waited for until they answer, measured, and ended by their own process id.

A Server is used by one thread. Its process is a child of ours; `stop` ends it and reaps it, whatever state it is in.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from core.errors import WorldError

START_S: Final = 60.0
STOP_S: Final = 30.0
_LOOK_S: Final = 0.02


class Server:
    """A child process that serves something, with its output in a log file."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until `ready` says so. WorldError, with the end of the log, if the server ends or takes too long."""
        deadline = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None:
                raise WorldError(
                    f"{self._command[0]} ended with {self._process.returncode} before {what}:\n{self.log_end()}"
                )
            if time.monotonic() > deadline:
                raise WorldError(f"{self._command[0]}: {what} did not happen within {START_S:.0f} s:\n{self.log_end()}")
            time.sleep(_LOOK_S)

    def log_end(self) -> str:
        """Give the last lines of its output."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def forget_peak_memory(self) -> None:
        """Start a new measurement of peak memory."""
        forget_peak_memory(self.pid)

    def peak_memory_bytes(self) -> int:
        """Give the most memory that was resident since `forget_peak_memory`."""
        return memory_bytes(self.pid, "VmHWM")

    def stop(self) -> None:
        """Ask it to end, insist after STOP_S, and reap it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        self._process.wait(STOP_S)


def forget_peak_memory(pid: int) -> None:
    """Start a new measurement of the peak memory of a process."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def memory_bytes(pid: int, field: str) -> int:
    """Read VmRSS or VmHWM of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise WorldError(f"process {pid} has no {field}; has it ended?")


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, timeout_s: float = 120.0, said: str = ""
) -> str:
    """Run a command to its end with `said` as its input, and give its output; WorldError with what it said if it fails."""
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"{command[0]} did not end within {timeout_s:.0f} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise WorldError(f"{' '.join(command)} ended with {done.returncode}: {(done.stderr + done.stdout)[-2000:]}")
    return done.stdout


def allocated_bytes(path: Path) -> int:
    """Give the bytes that a file or everything below a directory takes on disk."""
    if path.is_file():
        return path.stat().st_blocks * 512
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
