"""Counts from scratch what a pool must hold: every state that heads, snapshots and clones name, and every object those need.

It reads `pool_bytes` alone and shares no code with the program. `Recount.missing` is invariant 5 (needed, and not there);
`Recount.leftover` is what stands in the store and what nobody needs by the rules of docs/durability.md.

The words: a *state* is a map of blocks to places and a size. A *pin* (checkpoint, generation) names a state of a volume: the root of
that checkpoint, or the volume's beginning, and the log after it up to that generation.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from tests.model.pool_bytes import (
    BARRIER,
    BLOCK,
    CHILD,
    IMAGE,
    KEY,
    LEASE,
    NAME,
    RELOCATE,
    REMOVED,
    RESIZE,
    REVERT,
    SNAPSHOT,
    TRIM,
    WRITE,
    BadBytesError,
    LogObject,
    Root,
    Secrets,
    Volume,
    header_kind,
    need,
    read_log_object,
    read_page,
    read_pool,
    read_record,
    read_root,
    record_key_id,
    record_secret,
    unwrap_key,
)

Pin = tuple[int, int]
"""(checkpoint, generation)"""


@dataclass
class State:
    """An image at one moment. `needs` are the keys of all objects that reading it takes."""

    size: int
    map: dict[int, int] = field(default_factory=dict)
    next: int = 1
    epoch: int = 0
    digest: bytes = bytes(32)
    generation: int = 0
    needs: dict[str, str] = field(default_factory=dict)
    """Key → why."""


@dataclass
class Image:
    """One image as its records tell it."""

    volume: Volume
    size: int
    ancestors: list[tuple[bytes, int]]
    base: tuple[bytes, Pin] | None
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)
    children: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)


class Recount:
    """One look at a pool: `objects` is everything its store holds, by key."""

    def __init__(self, objects: Mapping[str, bytes], pool_id: bytes, pool_key: bytes, admin: bytes) -> None:
        self.objects = objects
        self.secrets: Secrets = read_pool(objects, pool_id, pool_key, admin)
        self.removed = self._removed()
        self.images = {volume_id: self._image(volume_id) for volume_id in self._described()}
        self.names = self._names()

    # Records.

    def _keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))

    def _record(self, kind: int, key: str, secret: bytes | None = None) -> dict[str, Any]:
        return read_record(self.secrets, kind, key, self.objects[key], secret or self.secrets.pool_key)

    def _volume_record(self, kind: int, key: str, volume: Volume) -> dict[str, Any]:
        key_id = record_key_id(self.objects[key])
        need(key_id in volume.keys, f"{key} is sealed under key {key_id}")
        return self._record(kind, key, record_secret(volume.keys[key_id], volume.id))

    def _removed(self) -> set[bytes]:
        return {self._record(REMOVED, key)["image"] for key in self._keys("removed/")}

    def _described(self) -> list[bytes]:
        parts = [key.split("/") for key in self._keys("image/")]
        found = [bytes.fromhex(part[1]) for part in parts if part[2:] == ["image"]]
        return [volume_id for volume_id in found if volume_id not in self.removed]

    def _names(self) -> dict[str, bytes]:
        found: dict[bytes, dict[str, Any]] = {}
        for key in self._keys("name/"):
            fields = self._record(NAME, key)
            if fields.get("kind") in (None, "image"):
                other = found.get(fields["image"])
                if other is None or fields["renames"] > other["renames"]:
                    found[fields["image"]] = fields
        return {fields["name"]: volume_id for volume_id, fields in found.items()}

    def _image(self, volume_id: bytes) -> Image:
        key = f"image/{volume_id.hex()}/image"
        fields = self._record(IMAGE, key)
        volume = Volume(volume_id, self._volume_keys(volume_id, fields))
        ancestors = [(each["image"], each["last"]) for each in fields.get("lineage") or ()]
        lasts = [last for _, last in ancestors]
        need(lasts == sorted(lasts), f"{key}: its lineage is out of order")
        base = (ancestors[-1][0], (fields["base_checkpoint"], ancestors[-1][1])) if ancestors else None
        image = Image(volume, fields["size_bytes"], ancestors, base)
        for each in self._keys(f"{volume.prefix}/snapshot/"):
            found = self._volume_record(SNAPSHOT, each, volume)
            image.snapshots[found["name"]] = found
        for each in self._keys(f"{volume.prefix}/child/"):
            found = self._volume_record(CHILD, each, volume)
            need(each.endswith("/" + found["image"].hex()), f"{each} is of another child")
            image.children[found["image"]] = found
        for each in self._keys(f"{volume.prefix}/reader/"):
            image.leases[each] = self._volume_record(LEASE, each, volume)
        return image

    def _volume_keys(self, volume_id: bytes, fields: Mapping[str, Any]) -> dict[int, bytes]:
        records = [fields] + [self._record(KEY, key) for key in self._keys(f"image/{volume_id.hex()}/key/")]
        return {
            each["key_id"]: unwrap_key(self.secrets, volume_id, each["key_id"], each["wrapped_key"]) for each in records
        }

    # Objects.

    def _bytes(self, key: str) -> bytes:
        need(key in self.objects, f"{key} is missing")
        return self.objects[key]

    def _owner(self, image: Image, sequence: int) -> Image:
        """Say whose object a map entry, or a page's pack, of `image` names."""
        for ancestor, last in image.ancestors:
            if sequence <= last:
                need(ancestor in self.images, f"ancestor {ancestor.hex()} of {image.volume.prefix} is missing")
                return self.images[ancestor]
        return image

    @cached_property
    def _log_objects(self) -> dict[str, LogObject]:
        return {}

    def log_object(self, image: Image, sequence: int) -> LogObject:
        key = log_key(image, sequence)
        if key not in self._log_objects:
            self._log_objects[key] = read_log_object(self.secrets, image.volume, sequence, self._bytes(key), key)
        return self._log_objects[key]

    def root(self, image: Image, checkpoint: int) -> Root:
        key = root_key(image, checkpoint)
        return read_root(self.secrets, image.volume, checkpoint, self._bytes(key), key)

    def roots(self, image: Image) -> list[int]:
        """Give the checkpoints whose root stands, ascending."""
        keys = self._keys(f"{image.volume.prefix}/checkpoint/")
        return sorted(int(key.split("/")[3], 16) for key in keys if key.endswith("/root"))

    def logged(self, image: Image) -> list[int]:
        """Give the sequences of the log that stand, ascending."""
        return sorted(int(key.split("/")[3], 16) for key in self._keys(f"{image.volume.prefix}/log/"))

    # States.

    def head(self, image: Image) -> State:
        """Give the newest state: the newest root and the log after it, as far as it goes without a gap."""
        state = self._begin(image, max(self.roots(image), default=0))
        self._follow(image, state, None)
        for sequence in self.logged(image):
            late = sequence > state.next and self.log_object(image, sequence).header.epoch > state.epoch
            need(not late, f"{log_key(image, state.next)} is missing: a later epoch follows it")
        return self._with_blocks(image, state)

    def pinned(self, image: Image, pin: Pin) -> State:
        """Give the state that a pin names."""
        return self._with_blocks(image, self._pinned(image, pin))

    def _pinned(self, image: Image, pin: Pin) -> State:
        checkpoint, generation = pin
        state = self._begin(image, checkpoint)
        self._follow(image, state, generation)
        need(state.generation == generation, f"{log_key(image, state.next)} is missing: pin {pin} ends later")
        return state

    def _begin(self, image: Image, checkpoint: int) -> State:
        if not checkpoint:
            if image.base is None:
                return State(image.size)
            parent_id, pin = image.base
            need(parent_id in self.images, f"the parent of {image.volume.prefix} is missing")
            base = self._pinned(self.images[parent_id], pin)
            return State(base.size, base.map, pin[1] + 1, 0, bytes(32), pin[1], base.needs)
        root = self.root(image, checkpoint)
        state = State(root.size, {}, root.next, root.epoch, root.digest, root.generation)
        state.needs[root_key(image, checkpoint)] = "root"
        for place in root.pages:
            owner = self._owner(image, place[1])
            key = pages_key(owner, place[1])
            state.needs[key] = f"page {place[0]} of checkpoint {checkpoint}"
            entries = read_page(self.secrets, owner.volume, place[1], self._bytes(key), place, key)
            state.map.update({place[0] * 1024 + at: entry for at, entry in enumerate(entries) if entry})
        return state

    def _follow(self, image: Image, state: State, until: int | None) -> None:
        while (until is None or state.next <= until) and log_key(image, state.next) in self.objects:
            item = self.log_object(image, state.next)
            what = log_key(image, state.next)
            need(item.previous == state.digest, f"{what} does not follow the object before it")
            state.needs[what] = "log"
            if item.header.kind == BARRIER:
                need(item.header.epoch > state.epoch, f"{what} begins an old epoch")
                state.epoch = item.header.epoch
            else:
                need(item.header.epoch == state.epoch, f"{what} is of another epoch")
                for number, frame in enumerate(item.frames):
                    self._apply(image, state, item.header.sequence, number, frame.records)
            state.generation, state.digest = item.header.sequence, item.digest
            state.next = item.header.sequence + 1 + item.header.window

    def _apply(
        self, image: Image, state: State, sequence: int, number: int, records: Iterable[tuple[int, int, int]]
    ) -> None:
        entry = sequence << 16 | number << 3
        for kind, start, count in records:
            if kind in (WRITE, RELOCATE):
                for block in range(start, start + count):
                    state.map[block] = entry
                    entry += 1
            elif kind == TRIM:
                self._cut(state, start, start + count)
            elif kind == RESIZE:
                self._cut(state, -(-start // BLOCK), None)
                state.size = start
            elif kind == REVERT:
                target = self._pinned(image, (count, start))
                state.size, state.map = target.size, target.map
                state.needs.update({key: f"reverted to, {why}" for key, why in target.needs.items()})
            else:
                need(False, f"a record of kind {kind} in segment {sequence}")

    @staticmethod
    def _cut(state: State, first: int, end: int | None) -> None:
        for block in [block for block in state.map if block >= first and (end is None or block < end)]:
            del state.map[block]

    def _with_blocks(self, image: Image, state: State) -> State:
        for block, entry in state.map.items():
            sequence = entry >> 16
            state.needs.setdefault(log_key(self._owner(image, sequence), sequence), f"block {block}")
        return state

    def read(self, image: Image, state: State) -> bytes:
        """Give the bytes of a state."""
        data = bytearray(-(-state.size // BLOCK) * BLOCK)
        for block, entry in state.map.items():
            owner = self._owner(image, entry >> 16)
            frame = self.log_object(owner, entry >> 16).frames[(entry >> 3) & 0x1FFF]
            data[block * BLOCK : (block + 1) * BLOCK] = frame.blocks[entry & 7]
        return bytes(data[: state.size])

    # What must be there, what may be there.

    def named_states(self, image: Image) -> dict[str, Callable[[], State]]:
        """Give the states of an image that somebody may ask for, by what people call them."""
        found: dict[str, Callable[[], State]] = {"head": partial(self.head, image)}
        for name, fields in image.snapshots.items():
            found[f"@{name}"] = partial(self.pinned, image, _pin(fields))
        for child, fields in image.children.items():
            if child in self.images:
                found[f"child {child.hex()[:8]}"] = partial(self.pinned, image, _pin(fields))
        return found

    def missing(self) -> list[str]:
        """Say which states cannot be read, and what is missing of them: invariant 5 broken."""
        found = []
        for image in self.images.values():
            for name, load in self.named_states(image).items():
                try:
                    state = load()
                    found += [
                        f"{image.volume.prefix} {name} needs {key} ({why}), which is missing"
                        for key, why in state.needs.items()
                        if key not in self.objects
                    ]
                    self.read(image, state)
                except BadBytesError as error:
                    found.append(f"{image.volume.prefix} {name}: {error}")
            found += self._kept_missing(image)
            found += self._without_newest_root(image)
        return found

    def _without_newest_root(self, image: Image) -> list[str]:
        """Should the newest root be lost, the older one and the log behind it give the same image."""
        roots = self.roots(image)[-2:]
        try:
            head = self.head(image)
            older = self._begin(image, roots[0] if len(roots) > 1 else 0)
            self._follow(image, older, head.generation)
            self._with_blocks(image, older)
        except BadBytesError as error:
            return [f"{image.volume.prefix} without its newest root: {error}"] if roots else []
        same = (older.map, older.size, older.next) == (head.map, head.size, head.next)
        blocks = sorted(at for at in {*older.map, *head.map} if older.map.get(at) != head.map.get(at))
        kept = [f"{root:x}" for root in roots]
        difference = f"blocks {blocks[:20]}, {older.size} and {head.size} bytes, {older.next:x} and {head.next:x} next"
        return (
            []
            if same
            else [f"{image.volume.prefix} without the newest of its roots {kept} is another image: {difference}"]
        )

    def _kept_missing(self, image: Image) -> list[str]:
        """A pin keeps all its root counts as live, and the older of the last two roots is there with the log behind it."""
        found = []
        for name, keys in self.kept(image).items():
            found += [
                f"{image.volume.prefix} {name} keeps {key}, which is missing"
                for key in sorted(keys - set(self.objects))
            ]
        return found

    def kept(self, image: Image) -> dict[str, set[str]]:
        """Give the keys that the collector must leave, and nothing else, by what keeps them."""
        kept: dict[str, set[str]] = {}
        roots = self.roots(image)[-2:]
        older = roots[0] if len(roots) > 1 else 0
        newest = roots[-1] if roots else 0
        between = older or newest
        logged = self.logged(image)
        head = self._kept_by(image, (newest, newest))
        head |= {key for root in roots for key in self._root_and_packs(image, root)}
        head |= {log_key(image, sequence) for sequence in logged if sequence > older}
        # Behind the older root a pack may be waiting for its root, which a writer that was cut off may put at any time.
        head |= {
            key for key in self._keys(f"{image.volume.prefix}/checkpoint/") if int(key.split("/")[3], 16) > between
        }
        kept["head"] = head
        for name, fields in image.snapshots.items():
            kept[f"@{name}"] = self._kept_by_record(image, fields)
        for child, fields in image.children.items():
            kept[f"child {child.hex()[:8]}"] = self._kept_by_record(image, fields)
        return kept

    def _kept_by_record(self, image: Image, fields: Mapping[str, Any]) -> set[str]:
        pins = [_pin(fields), *(_pin(each) for each in fields.get("reverts") or ())]
        return set().union(*(self._kept_by(image, pin) for pin in pins))

    def _root_and_packs(self, image: Image, checkpoint: int) -> set[str]:
        if not checkpoint:
            return set()
        try:
            root = self.root(image, checkpoint)
        except BadBytesError:
            return {root_key(image, checkpoint)}
        packs = {pages_key(self._owner(image, place[1]), place[1]) for place in root.pages}
        return {root_key(image, checkpoint), *packs}

    def _kept_by(self, image: Image, pin: Pin) -> set[str]:
        checkpoint, generation = pin
        keys = self._root_and_packs(image, checkpoint)
        if checkpoint:
            try:
                live = self.root(image, checkpoint).live
            except BadBytesError:
                live = {}
            keys |= {log_key(self._owner(image, sequence), sequence) for sequence, blocks in live.items() if blocks}
        keys |= {log_key(image, sequence) for sequence in self.logged(image) if checkpoint < sequence <= generation}
        return keys

    def leftover(self) -> list[str]:
        """Give the objects that nobody needs: of images, their logs and checkpoints; records of what is no more."""
        kept: set[str] = set()
        for image in self.images.values():
            for keys in self.kept(image).values():
                kept |= keys
            kept |= {log_key(image, sequence) for sequence in self.logged(image) if self._is_barrier(image, sequence)}
            kept.add(f"{image.volume.prefix}/image")
            kept |= set(self._keys(f"{image.volume.prefix}/snapshot/"))
            kept |= set(self._keys(f"{image.volume.prefix}/key/"))
            kept |= {
                f"{image.volume.prefix}/child/{child.hex()}"
                for child in image.children
                if child in self.images and image.volume.id in dict(self.images[child].ancestors)
            }
        left = [key for key in self.objects if key.startswith(("image/", "removed/", "removing/")) and key not in kept]
        homeless = [
            f"{image.volume.prefix}/image"
            for image in self.images.values()
            if image.volume.id not in self.names.values()
        ]
        return sorted(left + homeless)

    def _is_barrier(self, image: Image, sequence: int) -> bool:
        return header_kind(self.objects[log_key(image, sequence)]) == BARRIER  # its key may be retired


def _pin(fields: Mapping[str, Any]) -> Pin:
    return fields["checkpoint"], fields["generation"]


def log_key(image: Image, sequence: int) -> str:
    return f"{image.volume.prefix}/log/{sequence:016x}"


def root_key(image: Image, checkpoint: int) -> str:
    return f"{image.volume.prefix}/checkpoint/{checkpoint:016x}/root"


def pages_key(image: Image, checkpoint: int) -> str:
    return f"{image.volume.prefix}/checkpoint/{checkpoint:016x}/pages"
