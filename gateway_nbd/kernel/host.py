"""Does this machine's kernel have an nbd driver? And how a supervisor makes itself fit to serve it."""

import contextlib
import ctypes
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Final

from gateway_nbd.kernel.netlink import NbdNetlink, NoNbdDriverError

_PR_SET_IO_FLUSHER: Final = 57
_NEVER_KILLED: Final = "-1000"


def open_netlink(image: str) -> NbdNetlink:
    """Give the kernel's nbd family, loading the driver if need be; else raise NoNbdDriverError."""
    try:
        return NbdNetlink()
    except NoNbdDriverError:
        _load_driver()
    try:
        return NbdNetlink()
    except NoNbdDriverError:
        raise NoNbdDriverError(
            "this kernel has no nbd driver (no generic netlink family 'nbd', also after `modprobe nbd`), "
            f"or this is a container without the host's network, so {image} cannot become /dev/nbdN here; "
            "nbdfuse and qemu-nbd are other ways to use it"
        ) from None


def without_driver(image: str) -> str:
    """Say what to do with `image` on a kernel without nbd; the commands are meant to be pasted."""
    socket = "/tmp/blockyard.sock"  # noqa: S108 - an example for a person
    uri = f"nbd+unix:///?socket={socket}"
    target = shlex.quote(image)
    return f"""Without the driver, serve the image on a socket:
  blockyard nbd {target} --socket {socket}
and use it as a file through FUSE, which a loop device can mount:
  mkdir -p /tmp/image
  nbdfuse /tmp/image '{uri}' &
  mount -o loop /tmp/image/nbd /mnt
or as the disk of a virtual machine, or copied:
  qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio'
  qemu-img convert -p '{uri}' copy.qcow2
On a machine whose kernel has the driver, `blockyard map` works, and so does, without surviving a gateway's restart:
  qemu-nbd --connect=/dev/nbd0 --format=raw '{uri}'"""


def become_io_flusher() -> None:
    """Let this process and its children never wait for the writes that they themselves have to carry out.

    Memory they allocate is not got by writing to block devices, and the out-of-memory killer spares them. Kernels or
    containers that do not allow it are served all the same, less safely when memory is scarce.
    """
    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_NEVER_KILLED)


def _load_driver() -> None:
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modprobe is not None:
        subprocess.run([modprobe, "-q", "nbd"], check=False, capture_output=True)  # noqa: S603
