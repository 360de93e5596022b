"""What the kernel is told to forget. Calls that may wait for the kernel's locks run in threads of their own.

`invalidate_inode` of pages waits for reads and writes of them that are in flight; `invalidate_entry` waits for the lock of the directory,
which the kernel holds for as long as we have not answered a request that looks up or changes a name in it. It also takes a directory
out of the tree of those who work in it (getcwd fails until it is looked up again), so all names at once are rather outdated by an epoch.
"""

import contextlib
import errno
import functools
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from gateway_fuse import limits

_NEXT_EPOCH: Final = struct.pack("<IiQ", 16, 8, 0)
"""The notice FUSE_NOTIFY_INC_EPOCH (Linux 6.16), which libfuse has no call for: length, code, no request."""
_threads: Final = trio.CapacityLimiter(limits.INVALIDATION_THREADS)


def forget_attributes(inode: int) -> bool:
    """Make the kernel ask for attributes and ACLs again. Does not wait for anything. False if the kernel does not know the inode (yet)."""
    try:
        pyfuse3.invalidate_inode(pyfuse3_inode(inode), attr_only=True)
    except OSError as error:
        return error.errno != errno.ENOENT
    return True


def pyfuse3_inode(inode: int) -> pyfuse3.InodeT:
    """Give the number in pyfuse3's type."""
    return pyfuse3.InodeT(inode)


async def forget_pages(inode: int) -> None:
    """Make the kernel drop what it has of a file's data, after it wrote back what was changed through a mapping."""
    await trio.to_thread.run_sync(_forget_pages, inode, limiter=_threads, abandon_on_cancel=True)


async def forget_entries(places: Iterable[tuple[int, bytes]]) -> None:
    """Make the kernel look names up again."""
    await trio.to_thread.run_sync(_forget_entries, list(places), limiter=_threads, abandon_on_cancel=True)


async def forget_all_names(places: Iterable[tuple[int, bytes]]) -> None:
    """Make the kernel look every name up again; `places` are those it may know, for a kernel without epochs."""
    if not outdate_all_names():
        await forget_entries(places)


def outdate_all_names() -> bool:
    """Make the kernel ask again for every name before it uses it. Does not wait for anything. False if the kernel has no epochs."""
    descriptor = _cached_descriptor()
    if descriptor is None:
        return False
    try:
        os.write(descriptor, _NEXT_EPOCH)
    except OSError:
        return False
    return True


async def forget_all_attributes(inodes: list[int]) -> None:
    """Make the kernel ask for the attributes of many inodes again."""
    await trio.to_thread.run_sync(_forget_all_attributes, inodes, limiter=_threads, abandon_on_cancel=True)


def _forget_all_attributes(inodes: list[int]) -> None:
    for inode in inodes:
        forget_attributes(inode)


def _forget_pages(inode: int) -> None:
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(pyfuse3_inode(inode))


def _forget_entries(places: list[tuple[int, bytes]]) -> None:
    for directory, name in places:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(pyfuse3_inode(directory), pyfuse3.FileNameT(name))


def fuse_descriptor() -> int | None:
    """Find the descriptor of the kernel's side; this process has one."""
    found = [int(each.name) for each in Path("/proc/self/fd").iterdir() if _leads_to_fuse(each)]
    return found[0] if len(found) == 1 else None


@functools.cache
def _cached_descriptor() -> int | None:
    return fuse_descriptor()


def _leads_to_fuse(link: Path) -> bool:
    try:
        return str(link.readlink()) == "/dev/fuse"
    except OSError:
        return False
