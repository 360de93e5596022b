"""What the kernel keeps by itself, and what it asks for again: pages beside direct writes, file handles, access times."""

import errno
import os
import struct
import threading
import time

import pytest
from linux_calls import AsynchronousWriter, name_to_handle, open_by_handle

pytestmark = pytest.mark.system
PIECE = 65536
RACE_S = 2.0
CAP_CHOWN = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)
"""struct vfs_cap_data: version 2, effective; permitted and inheritable."""


def test_what_an_asynchronous_direct_write_has_written_is_what_buffered_readers_see(shared_filesystem):
    path = shared_filesystem.mount() / "file"
    path.write_bytes(bytes(PIECE))
    direct, buffered = os.open(path, os.O_RDWR | os.O_DIRECT), os.open(path, os.O_RDONLY)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            os.pread(buffered, PIECE, 0)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    stale = rounds = 0
    try:
        with AsynchronousWriter(direct, PIECE) as writer:
            end = time.monotonic() + RACE_S
            while time.monotonic() < end or rounds < 100:
                rounds += 1
                byte = rounds % 251
                writer.write(byte)
                stale += os.pread(buffered, PIECE, 0) != bytes([byte]) * PIECE
    finally:
        done.set()
        for each in readers:
            each.join()
        os.close(direct)
        os.close(buffered)
    assert not stale, f"{stale} of {rounds} reads showed what had been overwritten"


def test_a_handle_opens_its_file_on_the_next_mount_wherever_it_was_moved_until_it_is_removed(shared_filesystem):
    before = shared_filesystem.mount("before")
    (before / "d" / "e").mkdir(parents=True)
    (before / "d" / "e" / "file").write_bytes(b"content")
    (before / "gone").write_bytes(b"gone")
    file, directory, gone = (name_to_handle(before / name) for name in ("d/e/file", "d/e", "gone"))
    (before / "d" / "e").rename(before / "moved")
    (before / "gone").unlink()
    before.unmount()
    after = shared_filesystem.mount("after")
    root = os.open(after.path, os.O_RDONLY)
    opened = []
    try:
        opened.append(open_by_handle(root, directory, os.O_RDONLY))
        assert os.readlink(f"/proc/self/fd/{opened[0]}") == str(after / "moved")
        assert os.listdir(opened[0]) == ["file"]
        opened.append(open_by_handle(root, file, os.O_RDWR))
        assert os.pread(opened[1], 100, 0) == b"content"
        os.pwrite(opened[1], b"changed", 0)
        assert (after / "moved" / "file").read_bytes() == b"changed"
        with pytest.raises(OSError) as raised:
            open_by_handle(root, gone, os.O_RDONLY)
        assert raised.value.errno == errno.ESTALE
    finally:
        for each in (root, *opened):
            os.close(each)


def test_with_strictatime_every_reading_counts_also_of_what_is_in_the_page_cache(shared_filesystem):
    mounted = shared_filesystem.mount("a", "-o", "strictatime")
    path = mounted / "file"
    path.write_bytes(b"content")
    times = []
    for _ in range(3):
        assert path.read_bytes() == b"content"
        times.append(path.stat().st_atime_ns)
    assert times == sorted(set(times))


@pytest.mark.parametrize("flags", [os.O_APPEND, os.O_TRUNC, 0], ids=["appended", "truncated", "overwritten"])
def test_a_file_that_changes_loses_its_capabilities_and_nothing_else(shared_filesystem, flags):
    path = shared_filesystem.mount() / "file"
    path.write_bytes(b"before")
    os.setxattr(path, "security.capability", CAP_CHOWN)
    os.setxattr(path, "user.kept", b"value")
    descriptor = os.open(path, os.O_WRONLY | flags)
    os.write(descriptor, b"after")
    os.close(descriptor)
    assert os.listxattr(path) == ["user.kept"]
