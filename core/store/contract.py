"""The contract every store keeps, and nothing more than a pool needs.

A store maps keys to immutable objects. Keys are `/`-separated ASCII parts of `[A-Za-z0-9._-]` that do not start with a
dot, at most `limits.KEY_BYTES` bytes. Every method is synchronous, safe to call from any thread, bounded in time, and
raises only `core.errors` errors: `OutOfSpaceError`, `StoreTimeoutError`, `StoreError`. The contract suite in `core/store/testing.py`
runs against every implementation.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from core.errors import StoreError

Buffer = bytes | bytearray | memoryview
Names = list[str]
"""`list` itself is a method of stores."""


class ObjectMissingError(StoreError):
    """The key names no object. A reader that knows it must exist turns this into an IntegrityError."""


class ObjectExistsError(StoreError):
    """Put-if-absent found another object under the key; that object is untouched."""


class ObjectShortError(StoreError):
    """The object ends before the range that was asked for. A reader that knows its size turns this into an IntegrityError."""


class StoreClosedError(StoreError):
    """A call after `close`."""


class AccessRefusedError(StoreError):
    """The store knows us not, or does not let us: asking again changes nothing until somebody mends the credentials."""

    errno = errno.EACCES


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object without its bytes: its key and its size in bytes."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """Bytes of the medium as the store reports them; None where the notion makes no sense (a bucket)."""

    total_bytes: int | None
    free_bytes: int | None


class Store(Protocol):
    """Named immutable bytes with strong read-after-write consistency."""

    url: str
    """The location without any credential; it appears in messages."""

    def put(self, key: str, data: Buffer) -> None:
        """Store `data` under `key` only if no object is there. On return it is durable and visible to every client.

        Raises ObjectExistsError if the key is taken by other bytes. Equal bytes already there are success, always: that
        is how a put whose answer was lost finds out, so bytes that carry a random writer nonce never make a false
        conflict.
        """

    def overwrite(self, key: str, data: Buffer) -> None:
        """Store `data` under `key` whatever was there: for advisory records alone. Atomic: a reader sees old or new.

        Read such records with `get`: ranged reads may serve an object they have seen before.
        """

    def get(self, key: str) -> bytes:
        """Read the whole object, or raise ObjectMissingError."""

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes from `offset`. A shorter object is an ObjectShortError, never a short answer."""

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the last `length` bytes (the whole object if it is smaller), and give the object's size in bytes."""

    def head(self, key: str) -> ObjectInfo | None:
        """Say whether the object is there and how large it is."""

    def delete(self, key: str) -> None:
        """Remove the object; durable on return. Removing what is not there succeeds."""

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix` and sorts after `after`, in byte order of the keys."""

    def space(self) -> StoreSpace:
        """Report the medium's room, as `df` would."""

    def close(self) -> None:
        """Release threads, sockets and files. Calls after it raise StoreClosedError."""


class GrowingFile(Protocol):
    """A private file of one writer that grows by appends, is read at any offset, and may become an object.

    Not thread-safe but for `read` and `sync`, which may run beside an `append`.
    """

    @property
    def name(self) -> str:
        """Its name within its area."""

    @property
    def size_bytes(self) -> int:
        """Bytes appended so far; of a file that a dead writer left, the file's size, which may end in unwritten zeros."""

    def append(self, parts: list[Buffer]) -> None:
        """Add the parts at the end with one system call. Not durable until `sync`."""

    def sync(self) -> None:
        """Make every byte appended before the call durable, and the file findable under its name.

        A failure is final: the system may have dropped the bytes, so no later sync of this file is believed. The writer
        puts what it has not acknowledged into another file.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes that were appended before; fewer if the file ends earlier."""

    def publish(self, key: str) -> None:
        """Make the synced bytes the object `key`, only if absent (ObjectExistsError); durable on return.

        The growing file's own name goes away after the object is durable, never before.
        """

    def discard(self) -> None:
        """Remove the file's name; its bytes are gone once it is closed."""

    def close(self) -> None:
        """Close the descriptor; the name stays."""


@runtime_checkable
class Appendable(Protocol):
    """The optional capability of a store on a local directory: growing private files below `area`."""

    def create_growing(self, area: str, name: str) -> GrowingFile:
        """Create an empty growing file, its name durable by the first `sync`. An existing name is an error."""

    def open_growing(self, area: str, name: str) -> GrowingFile:
        """Open what an earlier writer left, for reading, publishing or discarding."""

    def list_growing(self, area: str) -> Names:
        """Give the names in `area`, sorted."""

    def exists(self, key: str) -> bool:
        """Say whether an object stands under `key`: one `stat`, the writer's look for a barrier."""


@runtime_checkable
class Forgetful(Protocol):
    """The optional capability of a store that keeps something of what it reads: open files, a cache, a second copy."""

    def forget(self, key: str) -> bool:
        """Be told that bytes of the object proved bad. True if reading it again may give other bytes; no I/O is waited for."""


def forget_in(store: Store, key: str) -> bool:
    """Tell a store, if it wants to know, that bytes of an object proved bad; say whether reading it again may give other ones."""
    return isinstance(store, Forgetful) and store.forget(key)
