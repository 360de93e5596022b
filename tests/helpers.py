"""What several kinds of tests share: keys, worlds, stores on which a test pulls strings, and images on top of them.

`HookedStore` and `HookedAppendable` pass everything through and tell a hook before and after each call, so that one test can make one
call fail, wait, or see a whole takeover happen inside it. Random faults are `core.store.faults`' business, not this module's.
"""

import dataclasses
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trio
import trio.testing

from core.crypto.aead import Algorithm
from core.crypto.derive import derive_key
from core.crypto.signature import Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import BlockyardError
from core.store.contract import Appendable, Buffer, GrowingFile, ObjectInfo, Store, StoreSpace
from core.units import BLOCK_BYTES, MIB
from core.volume.image import Image
from core.volume.opening import Beginning, open_volume
from core.volume.options import Durability, ImageOptions
from core.world import World

PREFIX = "image/" + "0a" * 16
POOL_ID = b"pool-of-the-test"
SIZE_BYTES = 16 * MIB
_SECRET = b"a secret of no use to anybody 32"


def volume_keys(
    *, volume: int = 10, writer: int | None = 1, algorithm: Algorithm = Algorithm.AES_256_GCM
) -> VolumeKeys:
    """Make the keys of a volume. Writers 1 and 2 are listed in the pool; `writer=None` gives a reader's keys, 3 a stranger's."""
    signers = {number: Signer(derive_key(_SECRET, "blockyard test signer", bytes([number]))) for number in (1, 2, 3)}
    return VolumeKeys(
        pool_id=POOL_ID,
        volume_id=bytes([volume]) * 16,
        key_id=7,
        key=derive_key(_SECRET, "blockyard test volume", bytes([volume])),
        algorithm=algorithm,
        signer=None if writer is None else signers[writer],
        verifiers=Verifiers(signers[number].public_key for number in (1, 2)),
    )


def seeded_bytes(seed: int) -> Callable[[int], bytes]:
    """Give a source of bytes that is the same in every run and different for each seed. Safe for threads."""
    source, lock = random.Random(seed), threading.Lock()

    def draw(length: int) -> bytes:
        with lock:
            return source.randbytes(length)

    return draw


def real_world(**changes: Any) -> World:
    """Give the world as it is, but for what a test changes."""
    return dataclasses.replace(World.real(), **changes)


def other_host(name: str = "other", **changes: Any) -> World:
    """Give the world as somebody on another machine sees it."""
    return real_world(hostname=name, boot_id=f"boot of {name}", **changes)


def gone_process(**changes: Any) -> World:
    """Give the world of a writer whose process is gone when somebody looks: `kill` leaves no living owner behind."""
    return real_world(pid=(1 << 22) + 1, **changes)


def open_image(
    store: Store,
    *,
    writable: bool = True,
    force: bool = True,
    keys: VolumeKeys | None = None,
    size_bytes: int = SIZE_BYTES,
    world: World | None = None,
    prefix: str = PREFIX,
    **options: Any,
) -> Image:
    """Open the test's volume; by default for writing, whoever had it."""
    if "journal_dir" in options:
        options.setdefault("durability", Durability.JOURNAL)
    return open_volume(
        store,
        prefix,
        keys or volume_keys(),
        "root-disk",
        Beginning(size_bytes),
        writable=writable,
        options=ImageOptions(**options),
        force=force,
        world=world or gone_process(),
    )


class KilledError(BlockyardError):
    """The test ended this writer; it is no failure of the code under test."""


def run_by_jumps(main: Callable[[], Awaitable[None]]) -> None:
    """Run tasks under a clock that jumps to whatever is next. Threads' work is done at once: it takes real time, of which that clock knows
    nothing, so the jump would come before its end."""

    async def at_once(work: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    with patch.object(trio.to_thread, "run_sync", at_once):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def kill(image: Image) -> None:
    """End an image as a dead process would: nothing more is sealed, flushed, checkpointed or released."""
    image.abort(KilledError("killed by the test"))
    image._closing.set()
    image._closed = True
    image._housekeeper.join(20)
    if image.writer is not None:
        image.writer.close()


def read(image: Image, offset: int = 0, length: int | None = None) -> bytes:
    """Read a range of an image, by default all of it."""
    buffer = bytearray(image.size_bytes - offset if length is None else length)
    image.read_into(offset, buffer)
    return bytes(buffer)


def block(stamp: int, salt: int = 0) -> bytes:
    """Give a block that tells its stamp in every 16 bytes, and compresses badly enough to be worth a frame."""
    return b"".join(stamp.to_bytes(8, "little") + (salt + at).to_bytes(8, "little") for at in range(BLOCK_BYTES // 16))


def noise(seed: int, length: int) -> bytes:
    """Give bytes that do not compress."""
    return random.Random(seed).randbytes(length)


def stored_bytes(store: Store) -> dict[str, bytes]:
    """Give everything a store holds, by key."""
    return {info.key: store.get(info.key) for info in store.list("")}


def files_below(root: Path) -> dict[str, bytes]:
    """Give every file below a directory, by path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


Hook = Callable[[str, str, str], None]
"""Told ("before" or "after", method, key); what it raises, the caller gets."""


def no_hook(_when: str, _method: str, _key: str) -> None:
    """Do nothing."""


class HookedStore:
    """A store that tells `hook` of every call. Set `hook` at any time."""

    def __init__(self, inner: Store, hook: Hook = no_hook) -> None:
        self.inner: Any = inner
        self.hook = hook
        self.url = inner.url

    def around(self, method: str, key: str, call: Callable[[], Any]) -> Any:
        """Make one call between the hooks."""
        self.hook("before", method, key)
        answer = call()
        self.hook("after", method, key)
        return answer

    def put(self, key: str, data: Buffer) -> None:
        self.around("put", key, lambda: self.inner.put(key, data))

    def overwrite(self, key: str, data: Buffer) -> None:
        self.around("overwrite", key, lambda: self.inner.overwrite(key, data))

    def get(self, key: str) -> bytes:
        return self.around("get", key, lambda: self.inner.get(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self.around("get_range", key, lambda: self.inner.get_range(key, offset, length))

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        return self.around("get_tail", key, lambda: self.inner.get_tail(key, length))

    def head(self, key: str) -> ObjectInfo | None:
        return self.around("head", key, lambda: self.inner.head(key))

    def delete(self, key: str) -> None:
        self.around("delete", key, lambda: self.inner.delete(key))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        return self.around("list", prefix, lambda: iter(list(self.inner.list(prefix, after))))

    def space(self) -> StoreSpace:
        return self.inner.space()

    def close(self) -> None:
        self.inner.close()


class HookedAppendable(HookedStore):
    """The same for a store with growing files."""

    def create_growing(self, area: str, name: str) -> GrowingFile:
        return self.around("create_growing", name, lambda: _HookedFile(self, self.inner.create_growing(area, name)))

    def open_growing(self, area: str, name: str) -> GrowingFile:
        return self.around("open_growing", name, lambda: _HookedFile(self, self.inner.open_growing(area, name)))

    def list_growing(self, area: str) -> list[str]:
        return self.around("list_growing", area, lambda: self.inner.list_growing(area))

    def exists(self, key: str) -> bool:
        return self.around("exists", key, lambda: self.inner.exists(key))


class _HookedFile:
    def __init__(self, store: HookedStore, inner: GrowingFile) -> None:
        self.store = store
        self.inner = inner
        self.name = inner.name

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def append(self, parts: list[Buffer]) -> None:
        self.store.around("append", self.name, lambda: self.inner.append(parts))

    def sync(self) -> None:
        self.store.around("sync", self.name, self.inner.sync)

    def read(self, offset: int, length: int) -> bytes:
        return self.store.around("read", self.name, lambda: self.inner.read(offset, length))

    def publish(self, key: str) -> None:
        self.store.around("publish", key, lambda: self.inner.publish(key))

    def discard(self) -> None:
        self.store.around("discard", self.name, self.inner.discard)

    def close(self) -> None:
        self.inner.close()


def hooked(inner: Store, hook: Hook = no_hook) -> HookedStore:
    """Wrap a store, with growing files where it has them."""
    return HookedAppendable(inner, hook) if isinstance(inner, Appendable) else HookedStore(inner, hook)
