"""One client's connection as nbdkit sees it: flags and answers of NBD on one side, one shared image on the other.

State: nothing but what the constructor binds. nbdkit calls every method from several threads at once; the image is
thread-safe, and nothing here is written after construction, so there is no lock.

The data methods are the hot path: nbdkit looks them up by name in the plugin and calls them with the handle first. They
hold no more than the call and the translation of its error.
"""

import errno
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, Protocol

from core.errors import BlockyardError, errno_of
from gateway_nbd import limits

MAY_TRIM: Final = 1
FUA: Final = 2
REQ_ONE: Final = 4
FAST_ZERO: Final = 8
FUA_NATIVE: Final = 2
CACHE_EMULATE: Final = 1
HOLE_OF_ZEROS: Final = 3
"""NBD's base:allocation bits for a hole that reads as zeros; 0 is data."""

_ON_THE_WIRE: Final = frozenset(
    {
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.EOPNOTSUPP,
        errno.ESHUTDOWN,
    }
)
"""What NBD has words for. nbdkit would call anything else EINVAL, which blames the client."""


class Extent(Protocol):
    """A range of an image, all mapped or all hole."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def allocated(self) -> bool: ...


class BlockImage(Protocol):
    """What the gateway needs of an image; `core.volume.image.Image` is one. All calls are thread-safe."""

    @property
    def size_bytes(self) -> int: ...
    def read_into(self, offset: int, buffer: memoryview, /) -> None: ...
    def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None: ...
    def trim(self, offset: int, length: int, /, *, fua: bool = False) -> None: ...
    def zero(self, offset: int, length: int, /, *, fua: bool = False) -> None: ...
    def flush(self) -> None: ...
    def extents(self, offset: int, length: int, /) -> Iterator[Extent]: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


def wire_errno(error: BaseException) -> int:
    """Give the errno that tells a client of `error`: the one of `core.errors`, or EIO where NBD has no word for it."""
    number = errno_of(error)
    return number if number in _ON_THE_WIRE else errno.EIO


class Connection:
    """The handle nbdkit passes back with every request of one client."""

    __slots__ = (
        "_extents",
        "_flush",
        "_read_into",
        "_set_error",
        "_trim",
        "_write",
        "_zero",
        "image",
        "key",
        "readonly",
    )

    def __init__(
        self, image: BlockImage, *, key: tuple[str, bool], readonly: bool, set_error: Callable[[int], None]
    ) -> None:
        self.image = image
        self.key = key
        """Under which the image was acquired, to give it back."""
        self.readonly = readonly
        self._set_error = set_error
        self._read_into = image.read_into
        self._write = image.write
        self._trim = image.trim
        self._zero = image.zero
        self._flush = image.flush
        self._extents = image.extents

    def pread(self, buffer: memoryview, offset: int, flags: int) -> None:  # noqa: ARG002  # NBD gives reads no flags
        try:
            self._read_into(offset, buffer)
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)

    def pwrite(self, buffer: memoryview, offset: int, flags: int) -> None:
        try:
            if flags & FUA:
                self._write(offset, buffer, fua=True)
            else:
                self._write(offset, buffer)
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)

    def flush(self, flags: int) -> None:  # noqa: ARG002  # NBD gives flushes no flags
        try:
            self._flush()
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)

    def trim(self, count: int, offset: int, flags: int) -> None:
        try:
            self._trim(offset, count, fua=flags & FUA != 0)
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)

    def zero(self, count: int, offset: int, flags: int) -> None:
        """Make the range read as zeros. Always fast (whole blocks become holes), so FAST_ZERO is never refused.

        Without MAY_TRIM a client asks for room that is kept; a log-structured image keeps no room for anybody, and a later
        write may find the store full either way.
        """
        try:
            self._zero(offset, count, fua=flags & FUA != 0)
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)

    def extents(self, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
        """Tell data from holes, from `offset` on; one extent when the client wants one, never more than the bound."""
        wanted = 1 if flags & REQ_ONE else limits.EXTENTS_PER_ANSWER
        answer: list[tuple[int, int, int]] = []
        try:
            for extent in self._extents(offset, count):
                answer.append((extent.offset, extent.length, 0 if extent.allocated else HOLE_OF_ZEROS))
                if len(answer) == wanted:
                    break
        except Exception as error:  # noqa: BLE001  # _fail raises it again
            self._fail(error)
        return answer

    def _fail(self, error: Exception) -> NoReturn:
        """Tell the client the errno, and nbdkit's log the sentence.

        An error that was foreseen goes without its traceback. One that a stopped writer raises again and again would else grow
        by every request.
        """
        self._set_error(wire_errno(error))
        if isinstance(error, BlockyardError):
            raise error.with_traceback(None) from None
        raise error

    def get_size(self) -> int:
        """Give the size as it is now; an image that grew shows it to every later connection."""
        return self.image.size_bytes

    def block_size(self) -> tuple[int, int, int]:
        """Any alignment is served; whole blocks are served best."""
        return (1, limits.PREFERRED_REQUEST_BYTES, limits.MAXIMUM_REQUEST_BYTES)

    def can_write(self) -> bool:
        return not self.readonly

    def can_fua(self) -> int:
        return FUA_NATIVE

    def can_cache(self) -> int:
        """A cache request is a read whose bytes nobody wants: it warms the image's own cache."""
        return CACHE_EMULATE

    def yes(self) -> bool:
        """Flush, trim, zero, fast zero, extents, and one consistent image for many connections: all there, always."""
        return True

    def no(self) -> bool:
        """Nothing spins."""
        return False
