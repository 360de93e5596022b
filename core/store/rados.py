"""Ceph's own object store through python3-rados: one round trip for a put, one for a ranged read.

Objects of a pool prefix stand in a RADOS namespace of that name, so prefixes of one Ceph pool do not meet. RADOS lists
in hash order and has no prefixes: a list scans the Ceph pool and sorts in memory; it is meant for opening and collecting.

Owns one cluster handle and one I/O context, made at the first call because they do not survive a fork; `_lock` guards the
making. Any thread. One attempt a call: the retrying wrapper is around it.

Invariants:
1. A put is one operation that creates exclusively and writes; "it is there" is read back and compared.
2. No call waits for ever: every operation has `limits.STORE_ATTEMPT_S`, and a full cluster answers instead of blocking.
"""

import errno
import importlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError, UsageError
from core.limits import STORE_ATTEMPT_S
from core.store.contract import (
    AccessRefusedError,
    Buffer,
    Names,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    StoreClosedError,
    StoreSpace,
)
from core.store.keys import check_key, check_prefix
from core.units import MIB

_FIRST_READ: Final = MIB
_STATS_AT_ONCE: Final = 128
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})
_TIMEOUTS: Final = frozenset({errno.ETIMEDOUT, errno.EINTR})


@dataclass(frozen=True)
class RadosPlace:
    """A Ceph pool, a prefix in it, and how to reach the cluster: configuration file and user without `client.`."""

    pool: str
    prefix: str
    configuration: str
    user: str

    @property
    def url(self) -> str:
        """Give the location as users write it, without options."""
        return f"rados://{self.pool}/{self.prefix}".rstrip("/")


class RadosStore:
    """A store in a Ceph pool. See `contract.Store`."""

    def __init__(self, place: RadosPlace) -> None:
        self.url = place.url
        self._place = place
        self._lock = threading.Lock()
        self._rados: Any = None  # the library has no types
        self._cluster: Any = None
        self._io: Any = None
        self._closed = False

    def put(self, key: str, data: Buffer) -> None:
        """Create exclusively and write, in one operation."""
        check_key(key)
        body = bytes(data)
        with self._translated("put", key):
            io = self._open()
            try:
                with self._rados.WriteOpCtx() as operation:
                    operation.new(self._rados.LIBRADOS_CREATE_EXCLUSIVE)
                    operation.write_full(body)
                    io.operate_write_op(operation, key)
            except self._rados.ObjectExists as cause:
                if self.get(key) != body:
                    raise ObjectExistsError(f"{self.url}: put of {key!r}: another object is there") from cause

    def overwrite(self, key: str, data: Buffer) -> None:
        """Write the whole object, in one operation."""
        check_key(key)
        with self._translated("overwrite", key):
            self._open().write_full(key, bytes(data))

    def get(self, key: str) -> bytes:
        """Read the whole object; a small one in one operation."""
        check_key(key)
        with self._translated("get", key):
            io = self._open()
            data: bytes = io.read(key, _FIRST_READ, 0)
            if len(data) < _FIRST_READ:
                return data
            size_bytes: int = io.stat(key)[0]
            rest: bytes = io.read(key, size_bytes - _FIRST_READ, _FIRST_READ) if size_bytes > _FIRST_READ else b""
        return self._exactly(key, data + rest, size_bytes)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes, in one operation."""
        check_key(key)
        if length == 0:
            return b""
        with self._translated("get_range", key):
            data: bytes = self._open().read(key, length, offset)
        return self._exactly(key, data, length)

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Ask for the size, then read the end."""
        info = self.head(key)
        if info is None:
            raise ObjectMissingError(f"{self.url}: get_tail of {key!r} failed: there is no such object")
        length = min(length, info.size_bytes)
        return self.get_range(key, info.size_bytes - length, length), info.size_bytes

    def head(self, key: str) -> ObjectInfo | None:
        """Ask for the size."""
        check_key(key)
        try:
            with self._translated("head", key):
                return ObjectInfo(key, self._open().stat(key)[0])
        except ObjectMissingError:
            return None

    def delete(self, key: str) -> None:
        """Remove; a missing object is fine."""
        check_key(key)
        try:
            with self._translated("delete", key):
                self._open().remove_object(key)
        except ObjectMissingError:
            return

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Scan the namespace, sort, and ask for the sizes as the caller goes on."""
        check_prefix(prefix)
        with self._translated("list", prefix):
            found = [entry.key for entry in self._open().list_objects()]
        keys = sorted(key for key in found if key.startswith(prefix) and key > after)
        return self._sized(prefix, keys)

    def space(self) -> StoreSpace:
        """Report what the Ceph pool may still take, replication taken into account."""
        with self._translated("space", ""):
            self._open()
            command = json.dumps({"prefix": "df", "format": "json"})
            _status, answer, _text = self._cluster.mon_command(command, b"", timeout=int(STORE_ATTEMPT_S))
        for pool in json.loads(answer or b"{}").get("pools", ()):
            if pool["name"] == self._place.pool:
                free_bytes = int(pool["stats"]["max_avail"])
                return StoreSpace(free_bytes + int(pool["stats"]["stored"]), free_bytes)
        return StoreSpace(None, None)

    def close(self) -> None:
        """Let go of the cluster. Calls that run end first."""
        with self._lock:
            self._closed = True
            io, cluster, self._io, self._cluster = self._io, self._cluster, None, None
        if io is not None:
            io.close()
            cluster.shutdown()

    def _sized(self, prefix: str, keys: Names) -> Iterator[ObjectInfo]:
        for start in range(0, len(keys), _STATS_AT_ONCE):
            sizes: dict[str, int] = {}

            def note(_completion: object, size_bytes: int | None, _time: object, key: str = "") -> None:
                if size_bytes is not None:
                    sizes[key] = size_bytes  # noqa: B023  # awaited before the next round

            batch = keys[start : start + _STATS_AT_ONCE]
            with self._translated("list", prefix):
                io = self._open()
                pending = [
                    io.aio_stat(key, lambda done, size, when, key=key: note(done, size, when, key)) for key in batch
                ]
                for completion in pending:
                    completion.wait_for_complete_and_cb()
            for key, completion in zip(batch, pending, strict=True):
                status = completion.get_return_value()
                if status == -errno.ENOENT:  # deleted since the scan
                    continue
                if status < 0:
                    raise self._error("list", key, OSError(-status, os.strerror(-status)))
                yield ObjectInfo(key, sizes[key])

    def _exactly(self, key: str, data: bytes, length: int) -> bytes:
        if len(data) != length:
            raise ObjectShortError(f"{self.url}: {key!r} gave {len(data)} bytes where {length} were asked for")
        return data

    def _open(self) -> Any:
        if self._io is None:
            with self._lock:
                if self._closed:
                    raise StoreClosedError(f"{self.url}: the store is closed")
                if self._io is None:
                    self._connect()
        return self._io

    def _connect(self) -> None:
        try:
            self._rados = importlib.import_module("rados")
        except ImportError as cause:
            raise UsageError("rados:// needs Debian's python3-rados and a venv that sees it") from cause
        place = self._place
        if not os.path.isfile(place.configuration):  # noqa: PTH113
            raise UsageError(f"{self.url}: there is no Ceph configuration {place.configuration!r}; give conf=FILE")
        bound_s = f"{STORE_ATTEMPT_S:g}"
        cluster = self._rados.Rados(
            conffile=place.configuration,
            rados_id=place.user,
            conf={
                "rados_osd_op_timeout": bound_s,
                "rados_mon_op_timeout": bound_s,
                "client_mount_timeout": bound_s,
            },
        )
        try:
            cluster.connect(timeout=int(STORE_ATTEMPT_S))
            try:
                self._io = cluster.open_ioctx(place.pool)
            except self._rados.ObjectNotFound as cause:
                raise AccessRefusedError(
                    f"{self.url}: there is no Ceph pool {place.pool!r}; create it first"
                ) from cause
        except BaseException:
            cluster.shutdown()
            raise
        self._io.set_namespace(place.prefix)
        self._io.set_osdmap_full_try()
        self._cluster = cluster

    @contextmanager
    def _translated(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, UsageError):
            raise
        except Exception as cause:
            if self._closed:
                raise StoreClosedError(f"{self.url}: the store is closed") from cause
            raise self._error(operation, key, cause) from cause

    def _error(self, operation: str, key: str, cause: Exception) -> StoreError:
        number = getattr(cause, "errno", None)
        number = abs(number) if isinstance(number, int) else 0
        message = f"{self.url}: {operation} of {key!r} failed: "
        if number == errno.ENOENT:
            return ObjectMissingError(f"{message}there is no such object")
        if number in _FULL:
            return OutOfSpaceError(f"{message}the Ceph pool is full or over its quota; free space and go on")
        if number in _REFUSED:
            return AccessRefusedError(f"{message}Ceph refuses user {self._place.user!r}; check its keyring and caps")
        if number in _TIMEOUTS:
            return StoreTimeoutError(f"{message}no answer in {STORE_ATTEMPT_S:g} s")
        return StoreError(f"{message}{cause}")
