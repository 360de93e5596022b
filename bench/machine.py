"""On what the figures of a run were made."""

import datetime as dt
import os
import platform
from pathlib import Path


def machine() -> str:
    """Name the day, the machine, and how busy it was."""
    models = [
        line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name")
    ]
    processor = models[0].partition(":")[2].strip() if models else platform.machine()
    kernel = platform.release().partition("-")[0]
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores of {processor}, Linux {kernel}, "
        f"load {load} before it began"
    )
