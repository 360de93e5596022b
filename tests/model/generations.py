"""A pool with several images, their snapshots and clones, on several hosts, beside plain bytearrays that say what each must hold.

`Yard` has one method for each thing that people do; `tests.model.test_generations` does them at random. It runs as the stage of a
scheduler (`tests.races.scheduler`): every host is an actor, all threads are controlled, time is virtual, and so a seed repeats exactly.

What an image may hold after a crash, or a snapshot that is made beside a writer: its `History`, some prefix of its changes that
includes all that was flushed before (invariant 1).
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from core import limits
from core.errors import AlreadyExistsError, BlockyardError, FencedError, LockedError, NotFoundError, UsageError
from core.pool.key_files import KeyFile
from core.pool.pool import Pool, create_pool, open_pool
from core.pool.volume_keys import rotate_volume_key
from core.store.memory import AppendableMemoryStore, MemoryStore
from core.units import MIB
from core.volume.collection.key_usage import retire_keys
from core.volume.collection.offline import collect_pool
from core.volume.collection.sweep import sweep
from core.volume.generations.clones import create_clone
from core.volume.generations.flatten import Flattened, flatten
from core.volume.generations.snapshots import (
    create_snapshot,
    protect_snapshot,
    remove_snapshot,
    rename_snapshot,
    rollback,
)
from core.volume.image import Image
from core.volume.images import create_image, open_image
from core.volume.options import ImageOptions
from core.volume.removal import remove_image
from core.world import World
from tests.helpers import HookedStore, hooked, noise, seeded_bytes
from tests.model.history import BLOCK, History, Step, resize_steps, trim_steps, write_steps
from tests.model.recount import Recount
from tests.races.scheduler import Scheduler

SIZE = 9 * MIB + 512
"""Three map pages, the last of them cut short."""
SMALL_LIMITS = {"SEGMENT_BLOCKS": 24, "MAP_PAGES_RAM": 1, "CHECKPOINT_SEGMENTS": 12, "COLLECT_BYTES": 4096}
HOSTS = ("anna", "bert", "cora")
KEPT_IMAGES = 6
KEPT_SNAPSHOTS = 5


@dataclass
class ModelSnapshot:
    data: bytes
    protected: bool = False


@dataclass
class Disk:
    """One image: what it must hold, who has it open, and what was made of it."""

    name: str
    history: History
    snapshots: dict[str, ModelSnapshot] = field(default_factory=dict)
    host: str | None = None
    image: Image | None = None
    ancestors: set[str] = field(default_factory=set)
    """Images whose room this clone may share. It may also have let go of them by itself."""

    @property
    def unacknowledged(self) -> History:
        """Give a copy of the past, to be asked what a look at the pool may find."""
        past = History(bytearray(self.history.base))
        past.did(list(self.history.pending))
        return past


class Yard:
    """The pool and its model. `SEEN` counts what was done, so that a test can say that everything was."""

    def __init__(self, scheduler: Scheduler, seed: int, *, appendable: bool) -> None:
        self.scheduler = scheduler
        self.seen: Counter[str] = Counter()
        self.store = AppendableMemoryStore("yard") if appendable else MemoryStore("yard")
        self.disks: dict[str, Disk] = {}
        self._stamp = 0
        self._names = 0
        self._reboots: Counter[str] = Counter()
        self._pools: dict[str, Pool] = {}
        saved: list[KeyFile] = []
        self.owner = create_pool(self.store, saved.append, self._world("owner", seed))
        self._key_file = saved[0]
        self._seed = seed

    # Hosts.

    def _world(self, host: str, seed: int) -> World:
        return dataclasses.replace(
            World.real(),
            now=lambda: self.scheduler.now,
            monotonic=lambda: self.scheduler.now,
            random_bytes=seeded_bytes(seed),
            hostname=host,
            boot_id=f"boot of {host}",
        )

    def actor(self, host: str) -> str:
        """Name a host as it is since its last crash."""
        return f"{host}.{self._reboots[host]}"

    def pool(self, host: str) -> Pool:
        """Give a host's own client of the pool."""
        actor = self.actor(host)
        if actor not in self._pools:
            watched = hooked(self.store, self._point)
            seed = int.from_bytes(f"{self._seed} {actor}".encode(), "big") % (1 << 61)
            self._pools[actor] = open_pool(watched, self._key_file, self._world(actor, seed))
        return self._pools[actor]

    def _point(self, when: str, method: str, key: str) -> None:
        if when == "before":
            self.scheduler.point(method, key)

    def do(self, host: str, call: Callable[[], Any]) -> Any:
        """Let a host do one thing; give what it gives, raise what it raises."""
        return self.together({host: call})[host]

    def together(self, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """Let several hosts do one thing each at the same time."""
        outcomes = self.scheduler.act({self.actor(host): call for host, call in calls.items()})
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome
        return {host: outcomes[self.actor(host)] for host in calls}

    # Reading.

    def read_all(self, host: str, name: str) -> bytes:
        """Open an image or a snapshot read-only and give all its bytes."""

        def call() -> bytes:
            image = open_image(self.pool(host), name, writable=False, options=ImageOptions())
            try:
                return read_whole(image)
            finally:
                image.close()

        return self.do(host, call)

    def check_snapshot(self, host: str, disk: Disk, name: str) -> None:
        self.seen["snapshot read"] += 1
        found = self.read_all(host, f"{disk.name}@{name}")
        assert found == disk.snapshots[name].data, f"{disk.name}@{name}: {differing(found, disk.snapshots[name].data)}"

    def check_disk(self, host: str, disk: Disk) -> None:
        """An open image shows everything; a reader beside it shows some prefix with all that is flushed."""
        self.seen["image read"] += 1
        if disk.image is not None and disk.host is not None:
            found = self.do(disk.host, partial(read_whole, disk.image))
            assert found == bytes(disk.history.now), f"{disk.name}: {differing(found, disk.history.now)}"
            return
        if isinstance(self.store, AppendableMemoryStore):
            self.scheduler.sleep(
                limits.LOCK_LEASE_S
            )  # until then a dead writer's growing files are taken for a living one's
        found = self.read_all(host, disk.name)
        assert disk.history.prefix_of(found) is not None, f"{disk.name}: {disk.history.explain(found)}"

    # Writing.

    def make(self, host: str) -> Disk:
        name = self._name("disk")
        self.do(host, lambda: create_image(self.pool(host), name, SIZE))
        disk = self.disks[name] = Disk(name, History(bytearray(SIZE)))
        return disk

    def open(self, host: str, disk: Disk, *, force: bool = True) -> None:
        """Open for writing, whoever had it; what it shows must be a prefix of its past."""
        if disk.image is not None:
            if disk.host == host:
                return
            self.seen["takeover"] += 1
        self.seen["open"] += 1
        was_open, old_host, old = disk.image is not None, disk.host, disk.image
        options = ImageOptions()
        image = self.do(
            host, lambda: open_image(self.pool(host), disk.name, writable=True, options=options, force=force)
        )
        disk.host, disk.image = host, image
        found = self.do(host, partial(read_whole, image))
        disk.history.crashed(found)
        if was_open and old_host is not None and old is not None:
            self._take_a_write(disk)
            self._notice_the_end(old_host, old)

    def _take_a_write(self, disk: Disk) -> None:
        """From the first write of a new reign on, growing files that older ones leave count for nothing (docs/durability.md)."""
        assert disk.image is not None and disk.host is not None
        data = noise(self._stamp, BLOCK)
        self.do(disk.host, partial(disk.image.write, 0, data))
        disk.history.did(write_steps(0, data))
        self.flush(disk)

    def _notice_the_end(self, host: str, image: Image) -> None:
        """Whoever was cut off says so at the latest when it is asked to make something durable, and stays down."""

        def call() -> None:
            try:
                image.write(0, noise(7, BLOCK))
                image.flush()
            except FencedError:
                return
            raise AssertionError("a writer that was cut off acknowledged a flush (invariant 2)")

        self.do(host, call)
        self.do(host, image.close)

    def change(self, disk: Disk, kind: str, chooser: random.Random) -> None:
        """Write, trim or resize an open image."""
        assert disk.image is not None and disk.host is not None
        steps, call = self._change(disk, kind, chooser)
        self.do(disk.host, call)
        disk.history.did(steps)

    def _change(self, disk: Disk, kind: str, chooser: random.Random) -> tuple[list[Step], Callable[[], None]]:
        image = disk.image
        assert image is not None
        size = len(disk.history.now)
        self.seen[kind] += 1
        if kind == "resize":
            new = chooser.choice([SIZE, SIZE // 2, 5 * MIB + 4096, SIZE + MIB, 4 * MIB])
            return resize_steps(new, size), lambda: image.resize(new, allow_shrink=True)
        hot = chooser.choice([0, 200, 1000, 1030, 2040, 2200])
        offset = min((hot + chooser.randrange(40)) * BLOCK, size - 1)
        length = min(chooser.randrange(1, 30) * BLOCK, size - offset)
        if kind == "trim":
            return trim_steps(offset, length, size), lambda: image.trim(offset, length)
        if chooser.random() < 0.2:
            offset, length = offset + 100, max(1, min(length, size - offset - 100))
            offset = min(offset, size - 1)
            length = min(length, size - offset)
        self._stamp += 1
        data = (noise(self._stamp, 64) * (length // 64 + 1))[:length]
        return write_steps(offset, data), lambda: image.write(offset, data)

    def flush(self, disk: Disk) -> None:
        assert disk.image is not None and disk.host is not None
        self.seen["flush"] += 1
        self.do(disk.host, disk.image.flush)
        disk.history.flushed()

    def checkpoint(self, disk: Disk) -> None:
        """Checkpoint and collect."""
        assert disk.image is not None and disk.host is not None
        self.seen["checkpoint"] += 1
        self.do(disk.host, disk.image.checkpoint)

    def close(self, disk: Disk) -> None:
        if disk.image is None or disk.host is None:
            return
        self.seen["close"] += 1
        self.do(disk.host, disk.image.close)
        disk.history.flushed()
        disk.image, disk.host = None, None

    def crash(self, host: str) -> None:
        """End a host: everything it had open is gone from memory. It comes back as a new one."""
        self.seen["crash"] += 1
        self.scheduler.kill(self.actor(host))
        self._reboots[host] += 1
        for disk in self.disks.values():
            if disk.host == host:
                disk.image, disk.host = None, None

    def wait(self, seconds: float) -> None:
        """Let time pass, and whoever has something to do then do it."""
        self.seen["wait"] += 1
        self.scheduler.sleep(seconds)

    # Generations.

    def snapshot(
        self, host: str, disk: Disk, beside: Callable[[], None] | None = None, steps: list[Step] | None = None
    ) -> None:
        """Make a snapshot from any host, perhaps while its writer changes the image."""
        name = self._name("snap")
        past = disk.unacknowledged
        calls: dict[str, Callable[[], Any]] = {}
        calls[host] = lambda: create_snapshot(self.pool(host), disk.name, name, sleep=self.scheduler.sleep)
        if beside is not None and disk.host is not None and disk.host != host:
            self.seen["snapshot beside writes"] += 1
            calls[disk.host] = beside
            past.did(steps or [])
            disk.history.did(steps or [])
        self.seen["snapshot"] += 1
        try:
            self.together(calls)
        except LockedError:
            assert disk.image is None and isinstance(self.store, AppendableMemoryStore), (
                "only a dead writer does not answer"
            )
            self.seen["snapshot waits for a dead writer"] += 1
            self.scheduler.sleep(limits.LOCK_LEASE_S)
            self.together(calls)
        found = self.read_all(host, f"{disk.name}@{name}")
        assert past.prefix_of(found) is not None, f"{disk.name}@{name}: {past.explain(found)}"
        disk.snapshots[name] = ModelSnapshot(found)

    def snapshot_beside_writes(self, host: str, disk: Disk, chooser: random.Random) -> None:
        steps: list[Step] = []
        calls = []
        assert disk.image is not None
        image = disk.image
        for _ in range(chooser.randrange(1, 5)):
            more, call = self._change(disk, "write", chooser)
            steps += more
            calls.append(call)

        def beside() -> None:
            for call in calls:
                call()
                image.flush()
            image.checkpoint()

        self.snapshot(host, disk, beside, steps)
        disk.history.flushed()

    def remove_snapshot(self, host: str, disk: Disk, name: str) -> None:
        self.seen["snapshot removal"] += 1
        protected = disk.snapshots[name].protected
        try:
            self.do(host, lambda: remove_snapshot(self.pool(host), disk.name, name))
        except UsageError:
            assert protected, f"{disk.name}@{name} was not removed though it is not protected"
            return
        assert not protected, f"{disk.name}@{name} was removed though it is protected"
        del disk.snapshots[name]

    def protect(self, host: str, disk: Disk, name: str) -> None:
        self.seen["protect"] += 1
        snapshot = disk.snapshots[name]
        snapshot.protected = not snapshot.protected
        self.do(host, lambda: protect_snapshot(self.pool(host), disk.name, name, on=snapshot.protected))

    def rename_snapshot(self, host: str, disk: Disk, name: str) -> None:
        self.seen["rename"] += 1
        new = self._name("snap")
        self.do(host, lambda: rename_snapshot(self.pool(host), disk.name, name, new))
        disk.snapshots[new] = disk.snapshots.pop(name)

    def clone(self, host: str, disk: Disk, name: str) -> None:
        self.seen["clone"] += 1
        if disk.ancestors:
            self.seen["clone of a clone"] += 1
        new = self._name("clone")
        self.do(host, lambda: create_clone(self.pool(host), disk.name, name, new))
        self.disks[new] = Disk(
            new, History(bytearray(disk.snapshots[name].data)), ancestors={*disk.ancestors, disk.name}
        )

    def rollback(self, host: str, disk: Disk, name: str) -> None:
        self.seen["rollback"] += 1
        old_host, old = disk.host, disk.image
        self.do(host, lambda: rollback(self.pool(host), disk.name, name, force=True))
        if old is not None and old_host is not None:
            self.seen["rollback of an open image"] += 1
            self._notice_the_end(old_host, old)
        disk.host, disk.image = None, None
        disk.history = History(bytearray(disk.snapshots[name].data))

    def remove(self, host: str, disk: Disk) -> None:
        """Remove an image; one with children stays."""
        self.close(disk)
        children = [each for each in self.disks.values() if disk.name in each.ancestors]
        try:
            self.do(host, lambda: remove_image(self.pool(host), disk.name, force=True))
        except LockedError:
            self.seen["removal refused"] += 1
            assert children, f"{disk.name} was not removed though it has no children"
            return
        self.seen["removal"] += 1
        del self.disks[disk.name]
        for child in children:
            self.seen["removal of an ancestor that is needed no more"] += 1
            child.ancestors.discard(disk.name)
        if children:
            self.check_needs()

    def flatten(self, host: str, disk: Disk) -> None:
        """Copy what a clone shares, here or in its writer."""
        if not disk.ancestors:
            return
        self.seen["flatten beside a writer" if disk.image is not None else "flatten"] += 1
        try:
            done = self.do(
                host, lambda: flatten(self.pool(host), disk.name, ImageOptions(), sleep=self.scheduler.sleep)
            )
        except LockedError:
            assert disk.image is None, "only a dead writer does not answer"
            return
        if done is Flattened.APART:
            self.seen["apart"] += 1
            disk.ancestors.clear()

    def collect(self, host: str) -> None:
        """Collect all images that nobody has open, and sweep."""
        self.seen["offline collection"] += 1
        for collected in self.do(host, lambda: list(collect_pool(self.pool(host), ImageOptions()))):
            assert collected.before is not None, collected
            if collected.after is not None:
                self.seen["collected"] += 1
                self.disks[collected.name].history.in_pool()
        swept = self.do(host, lambda: sweep(self.pool(host)))
        assert not swept.damaged, swept

    def rotate(self, host: str, disk: Disk) -> None:
        """Give an image another key, and take old ones away if nobody has it open."""
        self.seen["rotation"] += 1
        self.do(host, lambda: rotate_volume_key(self.pool(host), disk.name))
        if disk.image is not None:
            return
        try:
            self.do(host, lambda: retire_keys(self.pool(host), disk.name, carry_over=True))
        except LockedError:
            return  # somebody died with it
        self.seen["retirement"] += 1
        disk.history.crashed(self.read_all(host, disk.name))

    def repack(self, disk: Disk) -> None:
        """Repack an open image until it is dense."""
        assert disk.image is not None and disk.host is not None and disk.image.repacker is not None
        self.seen["repack"] += 1
        self.do(disk.host, disk.image.repacker.clean)

    # The end.

    def recount(self) -> Recount:
        """Take a look at the pool with other eyes."""
        objects = {info.key: self.store.get(info.key) for info in self.store.list("")}
        keys = self.owner.keys
        return Recount(objects, keys.pool_id, keys.pool_key, keys.admin_public)

    def check_needs(self) -> None:
        """Nothing that anybody needs is missing (invariant 5)."""
        self.seen["recount"] += 1
        missing = self.recount().missing()
        assert not missing, "\n".join(missing)

    def settle(self) -> None:
        """Close everything, let every lease run out, and collect what is left: twice, for two checkpoints are kept."""
        for disk in self.disks.values():
            self.close(disk)
        self.scheduler.sleep(limits.SWEEP_GRACE_S + 1)
        host = HOSTS[0]
        self.do(host, lambda: sweep(self.pool(host)))
        for _ in range(3):
            for disk in self.disks.values():
                self.open(host, disk)
                self.do(host, lambda disk=disk: disk.image.write(0, bytes(disk.history.now[:100])))
                self.close(disk)

    def check_settled(self) -> None:
        """Nothing is missing, nothing is left over, and other eyes see the same bytes."""
        recount = self.recount()
        missing = recount.missing()
        assert not missing, "\n".join(missing)
        assert set(recount.names) == set(self.disks)
        for disk in self.disks.values():
            image = recount.images[recount.names[disk.name]]
            found = recount.read(image, recount.head(image))
            assert found == bytes(disk.history.now), f"{disk.name}: {differing(found, disk.history.now)}"
            assert set(image.snapshots) == set(disk.snapshots)
            for name, snapshot in disk.snapshots.items():
                fields = image.snapshots[name]
                found = recount.read(image, recount.pinned(image, (fields["checkpoint"], fields["generation"])))
                assert found == snapshot.data, f"{disk.name}@{name}: {differing(found, snapshot.data)}"
        leftover = recount.leftover()
        assert not leftover, "\n".join(leftover)

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"


def read_whole(image: Image) -> bytes:
    buffer = bytearray(image.size_bytes)
    image.read_into(0, buffer)
    return bytes(buffer)


def differing(found: bytes, wanted: bytes | bytearray) -> str:
    """Say in which blocks two images differ."""
    if len(found) != len(wanted):
        return f"{len(found)} bytes instead of {len(wanted)}"
    blocks = [
        at
        for at in range(-(-len(wanted) // BLOCK))
        if found[at * BLOCK : (at + 1) * BLOCK] != wanted[at * BLOCK : (at + 1) * BLOCK]
    ]
    return f"blocks {blocks[:20]} differ"


__all__ = ["HOSTS", "AlreadyExistsError", "BlockyardError", "HookedStore", "NotFoundError", "Yard"]
