"""The mounts of this user on this machine: a small file each in the runtime directory, so that `blockyard umount` finds the process.

The process that serves a mount writes its file when the mount answers, and removes it when everything is in the pool. A file that stays
behind tells what went wrong, or that the process was killed.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FSTYPE = "fuse.blockyard"


@dataclass(frozen=True)
class MountRecord:
    """One mount. `error` is what kept its process from ending well."""

    pid: int
    directory: str
    source: str
    error: str = ""


def record_path(runtime: Path, pid: int) -> Path:
    """Give where the record of a process stands."""
    return runtime / "mounts" / f"{pid}.json"


def write_record(runtime: Path, record: MountRecord) -> None:
    """Put a record, in one step."""
    path = record_path(runtime, record.pid)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(asdict(record)))
    aside.replace(path)


def remove_record(runtime: Path, pid: int) -> None:
    """Remove a record."""
    record_path(runtime, pid).unlink(missing_ok=True)


def records(runtime: Path) -> Iterator[MountRecord]:
    """Give every record that can be read, those of dead processes too."""
    for path in sorted((runtime / "mounts").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            yield MountRecord(**json.loads(path.read_text()))


def read_record(runtime: Path, pid: int) -> MountRecord | None:
    """Give the record of a process."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return MountRecord(**json.loads(record_path(runtime, pid).read_text()))
    return None


def mounted_type(directory: Path) -> str | None:
    """Give the type of what is mounted exactly there, the uppermost; None if nothing is. Asks the mount itself nothing."""
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, rest = line.partition(b" - ")
        path = os.fsdecode(fields.split()[4].decode("unicode_escape").encode("latin-1"))
        if path == str(directory):
            found = os.fsdecode(rest.split()[0])
    return found
