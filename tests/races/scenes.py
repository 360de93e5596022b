"""Pools for races: a base is built once, and every run of a story begins with a copy of it, at the same moment of the same clock.

Every actor is a host with a client of its own. What is left at the end is judged by `tests.model.recount`, which shares no code with
the program, and by reading through the program what people could read.
"""

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from core import limits
from core.crypto.aead import Buffer
from core.crypto.signature import Verifiers
from core.errors import BlockyardError
from core.pool.key_files import KeyFile
from core.pool.pool import Pool, create_pool, open_pool
from core.store.memory import MemoryStore
from core.units import KIB
from core.volume.generations.flatten import Flattened, flatten
from core.volume.image import Image
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions
from core.world import World
from tests.helpers import hooked, noise, seeded_bytes
from tests.model.recount import Recount
from tests.races.scheduler import START_S, Scheduler

SMALL_LIMITS = {"SEGMENT_BLOCKS": 16, "COLLECT_BYTES": 4096}
"""Buffers of segments are a tenth of a run's time otherwise."""
SIZE = 256 * KIB
PART = 32 * KIB
"""What one write covers: a segment of its own, since every write here is flushed."""


@dataclass(frozen=True)
class Base:
    """What a story begins with."""

    objects: dict[str, bytes]
    key_file: KeyFile | None = None
    now: float = START_S


EMPTY = Base({})


class Scene:
    """One run's pool."""

    def __init__(self, scheduler: Scheduler, base: Base) -> None:
        self.scheduler = scheduler
        self.store = MemoryStore("scene")
        self.store._objects.update(base.objects)
        self._key_file = base.key_file
        self._pools: dict[str, Pool] = {}
        scheduler.now = base.now

    def world(self, host: str) -> World:
        return dataclasses.replace(
            World.real(),
            now=lambda: self.scheduler.now,
            monotonic=lambda: self.scheduler.now,
            random_bytes=seeded_bytes(
                zlib.crc32(f"{host} of {len(self.store._objects)} at {self.scheduler.now}".encode())
            ),
            hostname=host,
            boot_id=f"boot of {host}",
        )

    def pool(self, host: str) -> Pool:
        """Give a host's own client; made once."""
        if host not in self._pools:
            watched = hooked(self.store, self._point)
            assert self._key_file is not None
            self._pools[host] = open_pool(watched, self._key_file, self.world(host))
        return self._pools[host]

    def _point(self, when: str, method: str, key: str) -> None:
        if when == "before":
            self.scheduler.point(method, key)

    def open(self, host: str, name: str, *, writable: bool = True) -> Image:
        return open_image(self.pool(host), name, writable=writable, options=ImageOptions(), force=writable)

    def read(self, name: str, host: str = "stage") -> bytes:
        """Open, read whole and close."""
        image = self.open(host, name, writable=False)
        try:
            return whole(image)
        finally:
            image.close()

    def flatten(self, host: str, name: str) -> Flattened:
        return flatten(self.pool(host), name, ImageOptions(), sleep=self.scheduler.sleep)

    def act(self, **actors: Callable[[], Any]) -> dict[str, Any]:
        """Run actors together, each with a client of its own that is open already. An error that is none of ours ends the run."""
        for actor in actors:
            self.pool(actor)
        outcomes = self.scheduler.act(actors)
        for outcome in outcomes.values():
            if isinstance(outcome, Exception) and not isinstance(outcome, BlockyardError):
                raise outcome
        return outcomes

    def recount(self) -> Recount:
        keys = self.pool("stage").keys
        return Recount(dict(self.store._objects), keys.pool_id, keys.pool_key, keys.admin_public)

    def check_needs(self) -> None:
        """Nothing that a head, a snapshot or a child needs is missing (invariant 5)."""
        missing = self.recount().missing()
        assert not missing, "\n".join(missing)

    def check_settled(self, images: Iterable[str]) -> None:
        """Collect until nothing changes any more: then nothing is missing and nothing is left over."""
        self.scheduler.now += limits.SWEEP_GRACE_S + 1
        for _ in range(3):
            for name in images:
                image = self.open("stage", name)
                write(image, 7, 99)
                image.close()
        self.check_needs()
        leftover = self.recount().leftover()
        assert not leftover, "\n".join(leftover)


@contextlib.contextmanager
def fast() -> Iterator[None]:
    """Make runs cheap: small segments, and a signature that was found good once is not computed again. Bad ones always are."""
    verify = Verifiers.verify
    good: set[tuple[bytes, bytes, bytes]] = set()

    def remembering(self: Verifiers, writer_id: bytes, signature: bytes, data: Buffer, what: str) -> None:
        seen = (bytes(writer_id), bytes(signature), bytes(data))
        if seen not in good:
            verify(self, writer_id, signature, data, what)
            good.add(seen)

    with mock.patch.object(Verifiers, "verify", remembering), mock.patch.multiple(limits, **SMALL_LIMITS):
        yield


def build(story: Callable[[Scene], None]) -> Base:
    """Make a base: a pool, and what `story` does in it."""
    made: list[Base] = []

    def stage(scheduler: Scheduler) -> None:
        saved: list[KeyFile] = []
        scene = Scene(scheduler, EMPTY)
        create_pool(scene.store, saved.append, scene.world("owner"))
        scene._key_file = saved[0]
        story(scene)
        made.append(Base(dict(scene.store._objects), saved[0], scheduler.now))

    failure = Scheduler({}).run(stage)
    if failure is not None:
        raise failure
    return made[0]


def make_image(scene: Scene, name: str) -> None:
    create_image(scene.pool("maker"), name, SIZE)


def write(image: Image, part: int, stamp: int) -> None:
    """Write one part and flush: an object of the log."""
    image.write(part * PART, noise(stamp, PART))
    image.flush()


def whole(image: Image) -> bytes:
    data = bytearray(image.size_bytes)
    image.read_into(0, data)
    return bytes(data)


def content(*stamps: int) -> bytes:
    """Give what an image holds whose parts were written with these stamps; 0 is a hole."""
    parts = b"".join(noise(stamp, PART) if stamp else bytes(PART) for stamp in stamps)
    return parts + bytes(SIZE - len(parts))


def failed(outcome: object) -> bool:
    return isinstance(outcome, BlockyardError)
