"""The load process of one mount: told what to do a line at a time, and waited for (bench/fs_load.py is what runs there)."""

import contextlib
import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.fs_cases import Case, Order
from bench.rows import Measurement
from core.errors import WorldError

_PROGRAM: Final = Path(__file__).resolve().parent / "fs_load.py"
_SEED: Final = 11
_PHASE_S: Final = 600.0
"""For one phase, on a machine that others use."""


@dataclass(frozen=True)
class Ran:
    """What one phase took."""

    seconds: float
    count: int
    p50_us: float
    p99_us: float
    begin_s: float
    end_s: float

    def measurement(self, case: Case) -> Measurement:
        """Count it in the case's unit. A command on a tree tells nothing of its single operations."""
        whole = case.files > 1
        value = case.value(self.seconds, self.count)
        return Measurement(value, None if whole else self.p50_us, None if whole else self.p99_us)


class LoadProcess:
    """A child that loads one directory. Used by one thread; phases run one after another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM), str(directory), str(_SEED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, order: Order) -> Ran:
        """Run a phase to its end. WorldError if it fails or takes too long."""
        self.start(order)
        return self.finish()

    def start(self, order: Order) -> None:
        """Begin a phase; `finish` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Ran:
        """Wait for the phase that was begun."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _PHASE_S)
        if not ready:
            raise WorldError(f"a phase of the load in {self._directory} did not end within {_PHASE_S:.0f} s")
        return parse(self._process.stdout.readline(), self._directory)

    def stop(self) -> None:
        """End the process, whatever it is doing; a phase that hangs in the kernel ends with its mount."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(5.0)
        if self._process.poll() is None:
            self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


def parse(line: str, directory: Path) -> Ran:
    """Read an answer of the load process. WorldError if it says that the phase failed, or nothing."""
    answer = json.loads(line) if line else {"error": "the load process ended"}
    if "error" in answer:
        raise WorldError(f"the load in {directory} failed: {answer['error']}")
    return Ran(**answer)
