"""Calls of Linux that Python does not have: handles of files, asynchronous direct I/O. x86-64 and whoever else numbers them alike."""

import ctypes
import mmap
import os
import platform
import struct
from types import TracebackType
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = {
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
}[platform.machine()]
_IOCB_CMD_PWRITE = 1


class FileHandle(ctypes.Structure):
    """struct file_handle of name_to_handle_at(2)."""

    _fields_ = (("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int), ("f_handle", ctypes.c_char * 128))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def name_to_handle(path: os.PathLike[str]) -> FileHandle:
    """Give the handle of what stands at a path."""
    handle, mount = FileHandle(128, 0), ctypes.c_int()
    _check(_libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle


def open_by_handle(mount: int, handle: FileHandle, flags: int) -> int:
    """Open what a handle stands for, on the mount that a descriptor is of."""
    return _check(_libc.open_by_handle_at(mount, ctypes.byref(handle), flags))


class AsynchronousWriter:
    """Writes one buffer to the beginning of a file through io_submit(2), as databases do."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._buffer = mmap.mmap(-1, size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._context = ctypes.c_ulong(0)

    def __enter__(self) -> Self:
        _check(_libc.syscall(_IO_SETUP, 1, ctypes.byref(self._context)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        _check(_libc.syscall(_IO_DESTROY, self._context))

    def write(self, byte: int) -> None:
        """Fill the buffer with a byte, write it, and wait for that."""
        ctypes.memset(self._address, byte, self._size)
        fields = (1, 0, 0, _IOCB_CMD_PWRITE, 0, self._descriptor, self._address, self._size, 0, 0, 0, 0)
        block = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", *fields), 64)
        pointer = ctypes.c_void_p(ctypes.addressof(block))
        event = ctypes.create_string_buffer(32)
        _check(_libc.syscall(_IO_SUBMIT, self._context, ctypes.c_long(1), ctypes.byref(pointer)))
        _check(_libc.syscall(_IO_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(1), event, None))
        (written,) = struct.unpack_from("<q", event.raw, 16)
        assert written == self._size, f"io_submit wrote {written}"
