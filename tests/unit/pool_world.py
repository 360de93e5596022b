"""A pool in memory with a driven clock and repeatable randomness, for the tests of records, pools and images."""

import dataclasses
from collections.abc import Callable

from core.crypto.slots import Argon2Cost
from core.pool.key_files import KeyFile
from core.pool.keyring import add_slot
from core.pool.keys import Role
from core.pool.pool import Pool, create_pool, open_pool
from core.pool.slots import Passphrase
from core.store.memory import MemoryStore
from core.world import World

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


def counting_bytes(start: int = 0) -> Callable[[int], bytes]:
    """Give a source of bytes that never repeats and is the same in every run; sources far apart share nothing."""
    calls = start

    def draw(length: int) -> bytes:
        nonlocal calls
        calls += 1
        return calls.to_bytes(4, "big") * (length // 4) + b"\x00" * (length % 4)

    return draw


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, start_s: float = 1_800_000_000.0) -> None:
        self.seconds = start_s

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def driven_world(clock: Clock | None = None) -> World:
    clock = clock or Clock()
    return dataclasses.replace(World.real(), now=clock, monotonic=clock, random_bytes=counting_bytes())


@dataclasses.dataclass
class Made:
    """A pool, what it stands in, and the key file that opens it."""

    store: MemoryStore
    key_file: KeyFile
    pool: Pool
    world: World

    def add_key_file(self, role: Role) -> KeyFile:
        saved: list[KeyFile] = []
        add_slot(self.pool, saved.append, role)
        return saved[0]

    def again(self, opener: KeyFile | Passphrase) -> Pool:
        return open_pool(self.store, opener, self.world)


def make_pool(world: World | None = None) -> Made:
    world = world or driven_world()
    store, saved = MemoryStore(), []
    pool = create_pool(store, saved.append, world, label="first")
    return Made(store, saved[0], pool, world)


def passphrase(text: bytes) -> Passphrase:
    return Passphrase(text, CHEAP)
