"""How long a large image takes to open, and what it holds in memory: cold, warm, and after its gateway was killed."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.cases import NbdTarget
from bench.contender import NbdConnection
from bench.gateway import IMAGE, PROJECT, Gateway, clean_environment
from bench.large_image import EXTENT_BYTES, LargeImage, extent_data
from bench.processes import memory_bytes, run
from core.units import BLOCK_BYTES

UNCHECKPOINTED_BYTES: Final = 400 * EXTENT_BYTES
"""Written before the kill: the log after the checkpoint that the next open has to replay."""


@dataclass(frozen=True)
class OpenRow:
    """One figure. There is no peer: what the bar compares with is a second, and 400 MB."""

    store: str
    case: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    detail: dict[str, float] = field(default_factory=dict)


def measure(store: str, image: LargeImage, directory: Path, report: Callable[[OpenRow], None]) -> list[OpenRow]:
    """Open the image in every way; it is closed cleanly at the end, so that it can be used again."""
    rows: list[OpenRow] = []

    def tell(case: str, unit: str, *, value: float, **detail: float) -> None:
        rows.append(OpenRow(store, case, unit, value, detail=detail))
        report(rows[-1])

    drop_from_memory(image)
    tell("open-cold", "s", **_open_once(image))
    tell("open-warm", "s", **_open_once(image))
    with _gateway(image, directory) as (gateway, serve_s):
        pid = gateway.server.pid
        tell("serve-warm", "s", value=serve_s)
        tell("memory-open", "MB", value=memory_bytes(pid, "VmRSS") / 1e6)
        tell("stored", "MB", value=(gateway.stored_bytes() or 0) / 1e6)
        begin = time.monotonic()
        for offset in image.shape.extents():
            gateway.read(offset, BLOCK_BYTES)
        reads = len(image.shape.extents())
        tell(
            "memory-full-map",
            "MB",
            value=gateway.server.peak_memory_bytes() / 1e6,
            reads_per_s=reads / (time.monotonic() - begin),
        )
    with _gateway(image, directory) as (gateway, _):
        _rewrite(gateway.target, image)
        gateway.server.kill()
    tell("open-after-kill", "s", **_open_once(image))
    return rows


def drop_from_memory(image: LargeImage) -> None:
    """Make the machine forget a directory's files. What servers keep in their own memory is beyond our reach."""
    if not image.url.startswith("file://"):
        return
    os.sync()
    for directory, _, names in os.walk(image.url.removeprefix("file://")):
        for name in names:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _open_once(image: LargeImage) -> dict[str, float]:
    offset = str(image.shape.extents()[-1])
    command = [sys.executable, "-m", "bench.open_once", image.url, str(image.key_file), IMAGE, offset]
    environment = {**clean_environment(image.environment), "PYTHONPATH": str(PROJECT)}
    found: dict[str, float] = json.loads(run(command, environment))
    return {"value": round(found["pool_s"] + found["image_s"] + found["read_s"], 4), **found}


@contextmanager
def _gateway(image: LargeImage, directory: Path) -> Iterator[tuple[Gateway, float]]:
    begin = time.monotonic()
    gateway = Gateway(image.url, image.key_file, directory, image.environment)
    try:
        gateway.read(image.shape.extents()[-1], BLOCK_BYTES)
        yield gateway, time.monotonic() - begin
    finally:
        gateway.stop()


def _rewrite(target: NbdTarget, image: LargeImage) -> None:
    connection = NbdConnection(target)
    data = extent_data()
    for offset in image.shape.extents()[: UNCHECKPOINTED_BYTES // EXTENT_BYTES]:
        connection.write(offset, data)
    connection.flush()
    connection.close()


def lines(rows: list[OpenRow]) -> list[tuple[str, ...]]:
    """Lay rows out for a table."""
    heads = ("store", "case", "unit", "value", "detail")
    return [
        heads,
        *(
            (
                row.store,
                row.case,
                row.unit,
                f"{row.ours:,.3g}",
                ", ".join(f"{key} {value:,.4g}" for key, value in row.detail.items()),
            )
            for row in rows
        ),
    ]
