"""The oracle of the stateful tests: what an image may hold after a crash, from a list of changes and a plain bytearray.

It knows nothing of segments. A call on the image is a list of *steps* that a log may part: one step for each block written or cleared,
ascending, and one for a change of size. After a crash the image must be the state after some prefix of all steps, and the prefix
includes every step that a flush acknowledged (invariant 1).
"""

from dataclasses import dataclass, field

BLOCK = 4096


@dataclass(frozen=True)
class Step:
    """Bytes that change from `offset` on, or a new size."""

    offset: int
    data: bytes = b""
    size: int | None = None


def apply(image: bytearray, step: Step) -> None:
    if step.size is None:
        image[step.offset : step.offset + len(step.data)] = step.data
    elif step.size < len(image):
        del image[step.size :]
    else:
        image.extend(bytes(step.size - len(image)))


def write_steps(offset: int, data: bytes) -> list[Step]:
    """Cut a write at block borders."""
    steps = []
    at = 0
    while at < len(data):
        take = min(len(data) - at, BLOCK - (offset + at) % BLOCK)
        steps.append(Step(offset + at, data[at : at + take]))
        at += take
    return steps


def trim_steps(offset: int, length: int, size: int) -> list[Step]:
    """Clear the whole blocks of a range; the image's last block counts as whole if the range reaches the end."""
    stop = offset + length
    end = size if stop == size else stop // BLOCK * BLOCK
    first = -(-offset // BLOCK) * BLOCK
    return write_steps(first, bytes(end - first)) if end > first else []


def zero_steps(offset: int, length: int, size: int) -> list[Step]:
    """Clear a range: the part of the first block first, then the whole ones and the part of the last."""
    return write_steps(offset, bytes(length))


def resize_steps(size: int, old: int) -> list[Step]:
    """Cut off: what goes is cleared before the size changes. Growing only changes the size."""
    cut = write_steps(size, bytes(old - size)) if size < old else []
    return [*cut, Step(0, size=size)]


class Comparison:
    """An old state on its way through steps, and the blocks in which it still differs from what was found."""

    def __init__(self, state: bytearray, found: bytes) -> None:
        self.state = bytearray(state)
        self.found = found
        self.differing: set[int] = set()
        self._look(range(-(-max(len(state), len(found)) // BLOCK)))

    def apply(self, step: Step) -> None:
        old = len(self.state)
        apply(self.state, step)
        if step.size is None:
            self._look(range(step.offset // BLOCK, -(-(step.offset + len(step.data)) // BLOCK)))
        else:
            self._look(range(min(old, step.size) // BLOCK, -(-max(old, step.size) // BLOCK)))

    def same(self) -> bool:
        return not self.differing and len(self.state) == len(self.found)

    def _look(self, blocks: range) -> None:
        for block in blocks:
            start = block * BLOCK
            if self.state[start : start + BLOCK] == self.found[start : start + BLOCK]:
                self.differing.discard(block)
            else:
                self.differing.add(block)


@dataclass
class History:
    """One image's past: the state that is certain, the steps since, and the state as of now.

    `pool` is what was certain in the pool itself, where a journal may have acknowledged more, and `later` the steps since.
    """

    base: bytearray
    pending: list[Step] = field(default_factory=list)
    now: bytearray = field(default_factory=bytearray)
    pool: bytearray = field(default_factory=bytearray)
    later: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now, self.pool = bytearray(self.base), bytearray(self.base)

    def did(self, steps: list[Step]) -> None:
        """Note a call that returned, or failed and may have had any part of its effect."""
        for step in steps:
            apply(self.now, step)
        self.pending += steps
        self.later += steps

    def flushed(self) -> None:
        """Note that everything until now is acknowledged."""
        self.base = bytearray(self.now)
        self.pending.clear()

    def in_pool(self) -> None:
        """Note that everything until now stands in the pool."""
        self.flushed()
        self.pool = bytearray(self.now)
        self.later.clear()

    def prefix_of(self, found: bytes) -> int | None:
        """Give the number of pending steps after which the image is `found`; None if it never was."""
        return longest_prefix(self.base, self.pending, found)

    def crashed(self, found: bytes, *, journal_lost: bool = False) -> None:
        """Go on from what a crash left, which must be some state after the last acknowledgement."""
        match = longest_prefix(self.pool, self.later, found) if journal_lost else self.prefix_of(found)
        assert match is not None, self.explain(found)
        self.now = bytearray(found)
        self.in_pool()

    def explain(self, found: bytes) -> str:
        """Say where what was found differs from the oldest and from the newest state that it may be."""
        oldest, newest = (sorted(Comparison(state, found).differing)[:20] for state in (self.base, self.now))
        return (
            f"no prefix: {len(found)} bytes found; of the last flush ({len(self.base)} bytes) blocks {oldest} differ, "
            f"of the newest state ({len(self.now)} bytes) blocks {newest}; {len(self.pending)} steps lie between"
        )


def longest_prefix(base: bytearray, steps: list[Step], found: bytes) -> int | None:
    """Give the largest number of steps after which `base` is `found`; None if it never is."""
    comparison = Comparison(base, found)
    match = 0 if comparison.same() else None
    for number, step in enumerate(steps, 1):
        comparison.apply(step)
        if comparison.same():
            match = number
    return match
