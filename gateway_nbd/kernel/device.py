"""What the kernel says about an nbd device: /sys, /proc and the device node itself. Reads only; holds nothing."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from core.errors import LockedError, WorldError
from gateway_nbd.kernel.limits import SECTOR_BYTES

_SECTOR_UNIT: Final = 512


class InUseError(LockedError):
    """Somebody uses the device: a mounted filesystem, swap, device mapper."""


class Device:
    """The facts about /dev/nbd`index`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.node = Path(f"/dev/nbd{index}")
        self._sysfs = Path(f"/sys/block/nbd{index}")

    @property
    def attached(self) -> bool:
        """The device has connections, or waits for them: it is in somebody's hands."""
        try:
            return int((self._sysfs / "pid").read_text()) != 0
        except OSError:
            return False

    @property
    def identifier(self) -> str | None:
        """What whoever attached the device called its backend; kernels before 5.14 do not keep it."""
        try:
            return (self._sysfs / "backend").read_text().strip()
        except OSError:
            return None

    @property
    def size_bytes(self) -> int:
        return int((self._sysfs / "size").read_text()) * _SECTOR_UNIT

    def in_flight(self) -> int:
        """Requests the driver has sent and not got back, this moment."""
        try:
            return sum(map(int, (self._sysfs / "inflight").read_text().split()))
        except OSError:
            return 0

    def users(self) -> list[str]:
        """Where the device or a part of it is mounted, swapped to or claimed, for a message."""
        number = self.node.stat().st_rdev
        numbers = {f"{os.major(number)}:{os.minor(number)}"}
        for part in self._sysfs.glob(f"nbd{self.index}p*/dev"):
            numbers.add(part.read_text().strip())
        found = mount_points(Path("/proc/self/mountinfo").read_text(), numbers)
        found += swap_areas(Path("/proc/swaps").read_text(), self.node)
        found += [holder.name for holder in self._sysfs.glob("holders/*")]
        return found

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the device so that nobody can mount it, with everything written to it so far flushed to the gateway.

        Raises InUseError, naming the users that can be seen from here, when it is mounted or claimed anywhere.
        """
        try:
            descriptor = os.open(self.node, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EROFS:
                descriptor = self._exclusive_reader()
            elif error.errno == errno.EBUSY:
                raise self._in_use() from error
            else:
                raise WorldError(f"opening {self.node}: {error.strerror}") from error
        try:
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise WorldError(
                    f"{self.node}: flushing failed with {error.strerror}; --force gives up what was not written"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _exclusive_reader(self) -> int:
        try:
            return os.open(self.node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._in_use() from error
            raise WorldError(f"opening {self.node}: {error.strerror}") from error

    def _in_use(self) -> InUseError:
        users: list[str] = []
        with contextlib.suppress(OSError):
            users = self.users()
        where = ", ".join(users) if users else "another process or mount namespace"
        return InUseError(f"{self.node} is in use ({where}); unmount it first, or use --force and lose unwritten data")


def mount_points(mountinfo: str, numbers: set[str]) -> list[str]:
    """The mount points in the text of a mountinfo whose device is one of `numbers` ("major:minor")."""
    rows = (line.split() for line in mountinfo.splitlines())
    return [_unescaped(row[4]) for row in rows if len(row) > 4 and row[2] in numbers]


def swap_areas(swaps: str, node: Path) -> list[str]:
    """The swap areas in the text of /proc/swaps that lie on `node` or its partitions."""
    names = [line.split()[0] for line in swaps.splitlines()[1:] if line]
    return [f"swap on {name}" for name in names if name == str(node) or name.startswith(f"{node}p")]


def sector_bytes(size_bytes: int, wanted: int, minimum: int) -> int:
    """The device's logical block size: at most `wanted`, a divisor of the size, not below the server's `minimum`.

    Raises WorldError when there is none: a device never shows bytes that the image does not have, nor hides any.
    """
    fitting = [size for size in SECTOR_BYTES if minimum <= size <= wanted and size_bytes % size == 0]
    if not fitting or size_bytes == 0:
        raise WorldError(
            f"an image of {size_bytes} bytes cannot be a device with blocks of {wanted} bytes; "
            f"resize it to a multiple of {SECTOR_BYTES[-1]}"
        )
    return fitting[-1]


def wait_for_idle(device: Device, clock: Callable[[], float], pause: Callable[[float], None], limit_s: float) -> bool:
    """Wait for a moment without requests in flight, at most `limit_s`; tell whether there was one."""
    deadline = clock() + limit_s
    while device.in_flight():
        if clock() >= deadline:
            return False
        pause(0.001)
    return True


def _unescaped(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text
