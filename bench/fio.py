"""What fio says, read: its JSON becomes a Measurement. `run` starts it, `parse` is pure."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from bench.cases import Case, Target, fio_command
from bench.rows import Measurement
from core.errors import WorldError

_MARGIN_S: Final = 180.0
"""Beyond a case's own time: for a fill, and for the requests that are under way at its end."""


def parse(text: str, case: Case) -> Measurement:
    """Read the output of `fio --output-format=json` for one case. WorldError if it failed or makes no sense."""
    start = text.find("{")
    try:
        document = json.loads(text[start:]) if start >= 0 else None
    except ValueError as error:
        raise WorldError(f"fio's output for {case.name} is not JSON: {error}: {text[:500]!r}") from error
    jobs = _mapping(document, "fio's output").get("jobs")
    if not isinstance(jobs, list) or len(jobs) != 1:
        raise WorldError(f"fio's output for {case.name} should hold one job, or one group of jobs: {text[:500]!r}")
    job = _mapping(jobs[0], "jobs[0]")
    if job.get("error", 0) != 0:
        raise WorldError(f"fio failed in {case.name} with error {job['error']}: {text[:start][:500]}")
    side = _mapping(job.get("write" if case.is_write else "read"), "the figures")
    value = _number(side, "bw_bytes") / 1e6 if case.unit == "MB/s" else _number(side, "iops")
    waits = [side.get("clat_ns")]
    if case.synced:
        waits.append(_mapping(job.get("sync"), "sync").get("lat_ns"))
    return Measurement(value, _percentile_us(waits, "50.000000"), _percentile_us(waits, "99.000000"))


def run(target: Target, case: Case, seconds: float | None) -> Measurement:
    """Run one case with fio and read its figures. WorldError if fio fails or does not end."""
    command = fio_command(target, case, seconds)
    limit_s = (seconds or 0.0) + _MARGIN_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise WorldError(f"fio did not end within {limit_s:.0f} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise WorldError(
            f"fio ended with {done.returncode}: {' '.join(command)}\n{(done.stderr or done.stdout)[-2000:]}"
        )
    return parse(done.stdout, case)


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise WorldError(f"{what} of fio should be an object, not {value!r}")
    return value


def _number(mapping: Mapping[str, object], key: str) -> float:
    value = mapping.get(key)
    if not isinstance(value, int | float):
        raise WorldError(f"fio gave no number as {key}: {value!r}")
    return float(value)


def _percentile_us(waits: Sequence[object], which: str) -> float:
    tables = (_mapping(each, "latencies").get("percentile") for each in waits)
    return sum(_number(table, which) for table in tables if isinstance(table, dict) and which in table) / 1000
