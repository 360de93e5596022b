"""The eight cases of nbd-8, and the fio command lines that run them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from core.errors import UsageError
from core.units import KIB, MIB

WORKING_SET_BYTES: Final = 512 * MIB
COMPRESSIBLE_PERCENT: Final = 50

Pattern = Literal["write", "read", "randwrite", "randread"]


@dataclass(frozen=True)
class Case:
    """One kind of load, as fio runs it."""

    name: str
    pattern: Pattern
    request_bytes: int
    depth: int
    synced: bool = False
    """A flush after each write; what counts is the writes, each of them durable."""

    @property
    def is_write(self) -> bool:
        """Whether the load writes."""
        return self.pattern in ("write", "randwrite")

    @property
    def unit(self) -> str:
        """What is counted: bytes for large requests, requests for small ones."""
        return "MB/s" if self.request_bytes >= MIB else "IOPS"


FILL: Final = Case("fill", "write", MIB, 4)
"""The sequential write of the whole working set that comes before the cases; not measured."""

NBD_8: Final[tuple[Case, ...]] = (
    Case("seq-write", "write", MIB, 4),
    Case("seq-read", "read", MIB, 4),
    Case("rand-write-16", "randwrite", 4 * KIB, 16),
    Case("rand-read-16", "randread", 4 * KIB, 16),
    Case("rand-write-1", "randwrite", 4 * KIB, 1),
    Case("rand-read-1", "randread", 4 * KIB, 1),
    Case("sync-write-1", "randwrite", 4 * KIB, 1, synced=True),
    Case("sync-write-16", "randwrite", 4 * KIB, 16, synced=True),
)


_GOALS: Final[Mapping[tuple[str, str], float]] = {
    ("rados", "rand-write-16"): 10.0,
    ("rados", "rand-write-1"): 5.0,
    ("s3", "rand-write-16"): 4.0,
    ("s3", "seq-write"): 2.0,
    ("s3", "seq-read"): 2.0,
}
"""The ratios that are wanted; 1 where nothing is said."""


def goal(store: str, case: Case) -> float:
    """Give the ratio wanted for a case on a store."""
    return _GOALS.get((store, case.name), 1.0)


@dataclass(frozen=True)
class NbdTarget:
    """An NBD export on a unix socket."""

    socket: Path

    @property
    def uri(self) -> str:
        """Name it for fio, qemu and libnbd."""
        return f"nbd+unix:///?socket={self.socket}"


@dataclass(frozen=True)
class FileTarget:
    """A file, such as the one that s3backer shows through FUSE."""

    path: Path


Target = NbdTarget | FileTarget


def choose(names: str | None) -> tuple[Case, ...]:
    """Pick cases by their names, separated by commas; None is all of them. UsageError for a name there is not."""
    if names is None:
        return NBD_8
    known = {case.name: case for case in NBD_8}
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UsageError(f"{name!r} is no case of nbd-8; there are {', '.join(known)}")
    return tuple(known[name] for name in wanted)


def fio_command(target: Target, case: Case, seconds: float | None) -> Sequence[str]:
    """Give fio's command line for a case; `seconds` None writes or reads the working set once.

    Over NBD it is one job with `depth` requests in flight. A file has no such engine that FUSE would serve in parallel, so
    there it is `depth` threads with one request each, which is the same load.
    """
    command = ["fio", f"--name={case.name}", f"--rw={case.pattern}", f"--bs={case.request_bytes}"]
    command += [
        f"--size={WORKING_SET_BYTES}",
        f"--buffer_compress_percentage={COMPRESSIBLE_PERCENT}",
        "--refill_buffers",
    ]
    if isinstance(target, NbdTarget):
        command += ["--ioengine=nbd", f"--uri={target.uri}", f"--iodepth={case.depth}"]
    else:
        jobs = 1 if seconds is None else case.depth
        command += ["--ioengine=psync", f"--filename={target.path}", "--direct=1", "--thread", "--group_reporting"]
        command += [f"--numjobs={jobs}"]
    if seconds is not None:
        command += ["--time_based", f"--runtime={seconds:g}"]
    if case.synced:
        command += ["--fsync=1"]
    return [*command, "--output-format=json"]
