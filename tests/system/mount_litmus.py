"""What workers do in the litmus tests of coherence, each on a mount of its own; every function gives the violations it saw.

What is asked for is what processes on one local disk see: once a call returned, every later call anywhere sees its effect.
"Later" is told by a page of shared memory outside the filesystem, or by the filesystem itself. The standard library alone.
"""

import errno
import mmap
import os
import struct
import time
from pathlib import Path
from random import Random

from mount_registers import REGISTERS, Register, TornError

_CELL = struct.Struct("<q")
_STAMP = struct.Struct("<HHI")
"""Of a record: its writer, its length, its number."""


class Clock:
    """A page of memory that workers share: cell 0 tells everyone to stop, each worker counts its steps in another."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 4096)

    @staticmethod
    def make(path: Path) -> Path:
        """Make the page."""
        path.write_bytes(bytes(4096))
        return path

    def get(self, cell: int) -> int:
        return int(_CELL.unpack_from(self.page, 8 * cell)[0])

    def set(self, cell: int, value: int) -> None:
        _CELL.pack_into(self.page, 8 * cell, value)

    @property
    def over(self) -> bool:
        return self.get(0) != 0

    def meet(self, me: int, everyone: int, step: int) -> bool:
        """Wait until everyone came to this step; False if it is over."""
        self.set(me + 1, step)
        while any(self.get(each + 1) < step for each in range(everyone)):
            if self.over:
                return False
            os.sched_yield()
        return True


def pause(random: Random) -> None:
    """Not at all, for a turn of the others, or for up to two milliseconds."""
    kind = random.random()
    if kind < 0.1:
        time.sleep(random.random() / 500)
    elif kind < 0.4:
        os.sched_yield()


def _register(kind: str, path: Path, random: Random) -> Register:
    return REGISTERS[kind](path, random)


def announce(first: tuple[str, Path], second: tuple[str, Path], clock: Path, seed: int) -> int:
    """Write each number into one register and then into the other; gives how far it came."""
    random, shared = Random(seed), Clock(clock)
    one, two = (_register(*each, random) for each in (first, second))
    number = 0
    while not shared.over and number < min(one.most, two.most):
        number += 1
        one.write(number)
        pause(random)
        two.write(number)
        pause(random)
    return number


def observe(first: tuple[str, Path], second: tuple[str, Path], clock: Path, seed: int) -> tuple[int, list[str]]:
    """Read the two registers the other way round: what is in the second stands in the first, and neither ever goes back."""
    random, shared = Random(seed), Clock(clock)
    one, two = (_register(*each, random) for each in (first, second))
    earlier, later, looks, wrong = 0, 0, 0, []
    while not shared.over and len(wrong) < 10:
        looks += 1
        try:
            told = two.read()
            pause(random)
            found = one.read()
        except (TornError, OSError) as error:
            wrong.append(f"{type(error).__name__}: {error}")
            continue
        if found < told:
            wrong.append(f"look {looks}: {second[0]} says {told}, but {first[0]} holds {found}")
        if found < earlier or told < later:
            wrong.append(f"look {looks}: went back from {earlier}, {later} to {found}, {told}")
        earlier, later = found, told
        pause(random)
    return looks, wrong


def write_then_read(
    mine: tuple[str, Path], theirs: tuple[str, Path], me: int, clock: Path, rounds: int, seed: int
) -> list[int]:
    """In every round, at the same time as the other: write mine, then read theirs; gives what was read."""
    random, shared = Random(seed), Clock(clock)
    one, two = (_register(*each, random) for each in (mine, theirs))
    found = []
    for number in range(1, rounds + 1):
        if not shared.meet(me, 2, 2 * number - 1):
            break
        pause(random)
        one.write(number)
        found.append(two.read())
        if not shared.meet(me, 2, 2 * number):
            break
    return found


def write_each_round(mine: tuple[str, Path], me: int, everyone: int, clock: Path, rounds: int, seed: int) -> None:
    """In every round write mine."""
    random, shared = Random(seed), Clock(clock)
    register = _register(*mine, random)
    for number in range(1, rounds + 1):
        if not shared.meet(me, everyone, 2 * number - 1):
            break
        pause(random)
        register.write(number)
        if not shared.meet(me, everyone, 2 * number):
            break


def read_each_round(
    these: list[tuple[str, Path]], me: int, everyone: int, clock: Path, rounds: int, seed: int
) -> list[list[int]]:
    """In every round read these, in their order."""
    random, shared = Random(seed), Clock(clock)
    registers = [_register(*each, random) for each in these]
    found = []
    for number in range(1, rounds + 1):
        if not shared.meet(me, everyone, 2 * number - 1):
            break
        pause(random)
        found.append([each.read() for each in registers])
        if not shared.meet(me, everyone, 2 * number):
            break
    return found


def relay(
    before: tuple[str, Path], mine: tuple[str, Path], origin: tuple[str, Path], clock: Path, seed: int
) -> list[str]:
    """Pass on what the one before me has, after which nobody may find less at the origin."""
    random, shared = Random(seed), Clock(clock)
    previous, own, first = (_register(*each, random) for each in (before, mine, origin))
    wrong, last = [], 0
    while not shared.over and len(wrong) < 10:
        number = min(previous.read(), own.most)
        if number == last:
            os.sched_yield()
            continue
        own.write(number)
        if (found := first.read()) < number:
            wrong.append(f"{before[0]} passed {number} on, but {origin[0]} holds {found}")
        last = number
    return wrong


def take_turns(lock: Path, how: str, counter: Path, clock: Path, seed: int) -> int:
    """Add one to a number in a file whenever the lock is mine; gives how often."""
    random, shared = Random(seed), Clock(clock)
    token = lock.with_name(f"token-{seed}")
    token.touch()
    done = 0
    while not shared.over:
        try:
            if how == "create":
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            elif how == "mkdir":
                lock.mkdir()
            elif how == "link":
                lock.hardlink_to(token)
            else:
                lock.symlink_to(token)
        except FileExistsError:
            pause(random)
            continue
        descriptor = os.open(counter, os.O_RDWR)
        number = int(os.pread(descriptor, 20, 0) or b"0")
        pause(random)
        os.pwrite(descriptor, b"%d" % (number + 1), 0)
        os.close(descriptor)
        done += 1
        if how == "mkdir":
            lock.rmdir()
        else:
            lock.unlink()
        pause(random)
    return done


def append_records(path: Path, me: int, clock: Path, seed: int) -> int:
    """Append records that say whose they are; gives how many."""
    random, shared = Random(seed), Clock(clock)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    number = 0
    while not shared.over:
        length = random.choice((8, 20, 100, 5000))
        record = _STAMP.pack(me, length, number) + bytes([me]) * (length - _STAMP.size)
        assert os.write(descriptor, record) == length
        number += 1
        pause(random)
    os.close(descriptor)
    return number


def check_records(path: Path, counts: dict[int, int]) -> str | None:
    """Say what is wrong with a file of appended records; None if nothing is."""
    data = path.read_bytes()
    seen = dict.fromkeys(counts, 0)
    at = 0
    while at < len(data):
        me, length, number = _STAMP.unpack_from(data, at)
        if me not in seen or length < _STAMP.size or number != seen[me]:
            return f"at {at} of {len(data)}: record ({me}, {length}, {number}) after {seen}"
        if data[at + _STAMP.size : at + length] != bytes([me]) * (length - _STAMP.size):
            return f"at {at} of {len(data)}: the record ({me}, {length}, {number}) is damaged"
        seen[me] += 1
        at += length
    return None if seen == counts else f"{seen} in {len(data)} bytes instead of {counts}"


def write_own_ranges(path: Path, me: int, everyone: int, clock: Path, seed: int) -> tuple[int, list[str]]:
    """Write every n-th range of a file, none of them on a block's border; nobody else's write may undo it."""
    random, shared = Random(seed), Clock(clock)
    descriptor = os.open(path, os.O_RDWR)
    width, ranges = 100, 400
    state = dict.fromkeys(range(me, ranges, everyone), bytes(width))
    wrong, rounds = [], 0
    while not shared.over and len(wrong) < 10:
        which = random.choice(list(state))
        rounds += 1
        if (found := os.pread(descriptor, width, which * width)) != state[which]:
            wrong.append(f"round {rounds}, range {which}: {found[:4]!r} instead of {state[which][:4]!r}")
        state[which] = struct.pack("<BI", me + 1, rounds) * (width // 5)
        os.pwrite(descriptor, state[which], which * width)
        pause(random)
    for which, data in state.items():
        if os.pread(descriptor, width, which * width) != data:
            wrong.append(f"range {which} at the end")
    os.close(descriptor)
    return rounds, wrong


def churn(directory: Path, me: int, clock: Path, seed: int) -> int:
    """Make, move, link, cut and remove files that others do the same to; any POSIX answer will do."""
    random, shared = Random(seed), Clock(clock)
    names = [directory / f"d{each % 3}" / f"n{each}" for each in range(12)]
    rounds = 0
    while not shared.over:
        one, two = random.sample(names, 2)
        rounds += 1
        try:
            kind = random.randrange(8)
            if kind < 3:
                with open(one, "ab") as file:
                    file.write(b"%d" % me * random.randrange(1, 3000))
            elif kind == 3:
                one.rename(two)
            elif kind == 4:
                two.hardlink_to(one)
            elif kind == 5:
                one.unlink()
            elif kind == 6:
                os.truncate(one, random.randrange(5000))
            else:
                one.mkdir() if random.random() < 0.5 else one.rmdir()
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError):
            pass  # EPERM: a hard link to a directory, the removal of one as a file
        except OSError as error:
            # Not empty; or replaced twice between its lookup and its use, which the README tells of: the kernel tries again only once.
            if error.errno not in (errno.ENOTEMPTY, errno.ESTALE):
                raise
    return rounds


def list_slowly(directory: Path, clock: Path, seed: int) -> tuple[int, list[str]]:
    """List a directory again and again while others come and go: what stays is there once each time."""
    random, shared = Random(seed), Clock(clock)
    wrong, rounds = [], 0
    while not shared.over and len(wrong) < 10:
        rounds += 1
        names = []
        with os.scandir(directory) as entries:
            for entry in entries:
                names.append(entry.name)
                if random.random() < 0.01:
                    pause(random)
        if len(set(names)) < len(names):
            wrong.append(f"round {rounds}: twice {sorted({name for name in names if names.count(name) > 1})}")
        staying = sum(name.startswith("stays") for name in names)
        if staying != 500:
            wrong.append(f"round {rounds}: {staying} of 500 that stay")
    return rounds, wrong


def come_and_go(directory: Path, me: int, clock: Path, seed: int) -> int:
    """Make and remove files of a directory, and rename some."""
    random, shared = Random(seed), Clock(clock)
    here: set[int] = set()
    rounds = 0
    while not shared.over:
        rounds += 1
        number = random.randrange(300)
        path = directory / f"goes-{me}-{number}"
        if number in here:
            here.remove(number)
            path.unlink()
        elif here and random.random() < 0.3:
            old = here.pop()
            here.add(number)
            (directory / f"goes-{me}-{old}").rename(path)
        else:
            here.add(number)
            path.touch()
        pause(random)
    return rounds


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Give everything a tree shows: kinds, modes, link counts, sizes, times, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            shown: tuple[object, ...] = (status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns)
            if name in files:
                shown = (*shown, status.st_size, path.read_bytes())
            found[str(path.relative_to(root))] = shown
    return found


def read_over_and_over(path: Path, clock: Path, length: int) -> list[tuple[float, bytes]]:
    """Read a file that stays open until it is over; gives when each read that gave something else than the one before began.

    The last read of each kind counts, too, so that nothing read late is missed.
    """
    shared = Clock(clock)
    descriptor = os.open(path, os.O_RDONLY)
    last: dict[bytes, float] = {}
    found: list[tuple[float, bytes]] = []
    while not shared.over:
        began = time.monotonic()
        try:
            data = os.pread(descriptor, length, 0)
        except OSError:
            time.sleep(0.01)
            continue
        last[data] = began
        if not found or found[-1][1] != data:
            found.append((began, data))
        shared.set(1, shared.get(1) + 1)
    os.close(descriptor)
    return [*found, *((began, data) for data, began in last.items())]


def make_exclusively(directory: Path, clock: Path) -> int:
    """Make 0, 1, 2, … which nobody else makes, so that a name that is there already was made twice; gives how many."""
    shared = Clock(clock)
    number = 0
    while not shared.over:
        path = directory / f"new-{number}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, b"%d" % number)
        os.close(descriptor)
        path.rename(directory / str(number))
        number += 1
        shared.set(1, number)
    return number
