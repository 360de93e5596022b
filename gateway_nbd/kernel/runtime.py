"""The runtime directory: one folder per mapping, with its state, its lock and its sockets. Gone after a reboot.

    map-<id>/lock        held (an open-file-description lock) by the living supervisor for as long as it lives
    map-<id>/state.json  what it maps where; written whole, never in place
    map-<id>/gateway     the gateway's socket        map-<id>/control  the supervisor's socket
    map-<id>/*.log       what the gateway and the supervisor say

1. A mapping is alive exactly while its lock is held; process ids are for people, they may be reused.
2. Only who holds the lock writes or removes anything in the folder.
3. The directory is for its owner alone (0700), and nothing in it is secret: no key, no passphrase.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from core.errors import AlreadyExistsError, NotFoundError, UsageError

_LOCK: Final = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, length, pid."""


@dataclass(frozen=True)
class MappingState:
    """What is written down about a mapping; `index` is None until the kernel has given a device.

    It is written whenever a gateway starts and whenever one serves, so that a gateway never runs unknown.
    """

    image: str
    index: int | None
    serving: bool
    supervisor_pid: int
    gateway_pid: int | None
    started: str
    readonly: bool
    connections: int
    size_bytes: int

    @property
    def device(self) -> str | None:
        return None if self.index is None else f"/dev/nbd{self.index}"


class MappingFolder:
    """The folder of the mapping of `image` ("POOL/IMAGE") below `runtime`."""

    def __init__(self, runtime: Path, image: str) -> None:
        self.image = image
        self.identifier = "blockyard-" + hashlib.sha256(image.encode()).hexdigest()[:16]
        self.path = runtime / f"map-{self.identifier.removeprefix('blockyard-')}"
        self.control = self.path / "control"
        self.gateway = self.path / "gateway"
        self._lock: int | None = None

    def acquire(self) -> Self:
        """Make the folder ours. Raises AlreadyExistsError, naming the device, while another supervisor lives."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except BlockingIOError:
            os.close(descriptor)
            state = self.state()
            where = f"mapped at {state.device}" if state and state.device else "being mapped"
            raise AlreadyExistsError(f"{self.image} is already {where}; unmap it first") from None
        self._lock = descriptor
        return self

    def is_alive(self) -> bool:
        """A supervisor serves this mapping now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        finally:
            os.close(descriptor)
        return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def state(self) -> MappingState | None:
        """What was last written down, if it can be read."""
        try:
            return MappingState(**json.loads((self.path / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, state: MappingState) -> None:
        """Write the state down, whole or not at all."""
        assert self._lock is not None, "only the lock's holder writes (2)"
        aside = self.path / "state.new"
        aside.write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n")
        aside.replace(self.path / "state.json")

    def log(self, who: str) -> Path:
        return self.path / f"{who}.log"

    def remove(self) -> None:
        """End the mapping's traces; the lock goes with them."""
        assert self._lock is not None, "only the lock's holder removes (2)"
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Give the lock back, if we have it, and leave the traces for whoever comes next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def runtime_directory(environment: Mapping[str, str], user_id: int) -> Path:
    """Where mappings are kept, made if need be: /run/blockyard for root, else below $XDG_RUNTIME_DIR."""
    if override := environment.get("BLOCKYARD_RUNTIME_DIR"):
        path = Path(override)
    elif user_id == 0:
        path = Path("/run/blockyard")
    elif base := environment.get("XDG_RUNTIME_DIR"):
        path = Path(base) / "blockyard"
    else:
        raise UsageError("no runtime directory: set XDG_RUNTIME_DIR, or run as root (mapping needs root anyway)")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.stat()
    if facts.st_uid != user_id or facts.st_mode & 0o022:
        raise UsageError(f"{path} belongs to somebody else or is open to others; it must be yours and 0700")
    return path


def mappings(runtime: Path) -> Iterator[tuple[MappingFolder, MappingState, bool]]:
    """Every mapping written down below `runtime`, with whether its supervisor lives."""
    for path in sorted(runtime.glob("map-*/state.json")):
        try:
            image = json.loads(path.read_text())["image"]
        except (OSError, ValueError, KeyError):
            continue
        folder = MappingFolder(runtime, image)
        state = folder.state()
        if state is not None and folder.path == path.parent:
            yield folder, state, folder.is_alive()


def find_mapping(runtime: Path, name: str) -> tuple[MappingFolder, MappingState, bool]:
    """The mapping of a device ("/dev/nbd0", "nbd0") or an image ("POOL/IMAGE"). Raises NotFoundError."""
    for folder, state, alive in mappings(runtime):
        if name == state.image or (state.device and name in (state.device, state.device.removeprefix("/dev/"))):
            return folder, state, alive
    raise NotFoundError(f"{name} is not mapped here; `blockyard mapped` lists what is")
