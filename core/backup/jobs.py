"""Backups that the configuration file asks for (`[backup.NAME]`), and systemd's units that run them. Pure functions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from core.backup.cdc import cutter_named
from core.backup.chunks import FixedCutter
from core.backup.retention import Policy
from core.backup.run import DEFAULT_COMPRESSION
from core.errors import NotFoundError, UsageError
from core.format.compression import Compression

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEXTS: Final = ("source", "target", "schedule", "compression", "chunker")


@dataclass(frozen=True, slots=True)
class Job:
    """One backup to be made again and again."""

    name: str
    source: str
    target: str
    schedule: str = "daily"
    """When, as systemd's OnCalendar= has it."""
    compression: Compression = DEFAULT_COMPRESSION
    chunker: str = FixedCutter().name
    policy: Policy = field(default_factory=Policy)
    prune: bool = False


def read_jobs(path: Path, tables: Mapping[str, object]) -> list[Job]:
    """Read the tables `[backup.NAME]` of the configuration file at `path`, sorted by name; UsageError for what is not understood."""
    return [_read(path, name, tables[name]) for name in sorted(tables)]


def find_job(jobs: list[Job], name: str) -> Job:
    """Give the job of a name, or NotFoundError."""
    for each in jobs:
        if each.name == name:
            return each
    raise NotFoundError(
        f"the configuration file has no [backup.{name}]; it has {', '.join(j.name for j in jobs) or 'none'}"
    )


def _read(path: Path, name: str, table: object) -> Job:
    where = f"{path}: backup.{name}"
    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise UsageError(f"{where} must be a table with a name of letters, digits, '.', '_' and '-'")
    rules = {f"keep_{each.name}": each.name for each in fields(Policy)}
    texts: dict[str, str] = {}
    keep: dict[str, int] = {}
    prune = False
    for key, value in table.items():
        key = str(key).replace("-", "_")  # noqa: PLW2901  # both spellings are natural: keep-daily and keep_daily
        if key in _TEXTS and isinstance(value, str) and value and "\n" not in value:
            texts[key] = value
        elif key in rules and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            keep[rules[key]] = value
        elif key == "prune" and isinstance(value, bool):
            prune = value
        elif key in _TEXTS or key in rules or key == "prune":
            raise UsageError(f"{where}.{key} is not {value!r}: text, a number or true and false, as the manual says")
        else:
            known = ", ".join((*_TEXTS, "prune", *rules))
            raise UsageError(f"{where}: unknown key {key}; known are {known}")
    missing = [key for key in ("source", "target") if key not in texts]
    if missing:
        raise UsageError(f"{where} has no {missing[0]}")
    compression = Compression.parse(texts.pop("compression")) if "compression" in texts else DEFAULT_COMPRESSION
    cutter_named(texts.get("chunker", FixedCutter().name))
    return Job(name, compression=compression, policy=Policy(**keep), prune=prune, **texts)


def units(job: Job, program: str, config: Path) -> dict[str, str]:
    """Give the systemd service and timer of a job, by their file names."""
    stem = f"blockyard-backup-{job.name}"
    service = f"""[Unit]
Description=Blockyard backup {job.name}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={_quoted(program)} --config {_quoted(str(config))} backup run --job {_quoted(job.name)}
# 3: done, but something could not be read; the journal says what.
SuccessExitStatus=3
Nice=10
IOSchedulingClass=idle
"""
    timer = f"""[Unit]
Description=When the Blockyard backup {job.name} is made

[Timer]
OnCalendar={job.schedule}
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {f"{stem}.service": service, f"{stem}.timer": timer}


def _quoted(text: str) -> str:
    """Write an argument as systemd reads it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[^A-Za-z0-9_./:%$@=+-]", text) else escaped
