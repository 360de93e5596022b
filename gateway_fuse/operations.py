"""The table of FUSE requests, and the one boundary at which errors become errnos.

Any exception but FUSEError would end pyfuse3's loop and with it the mount, so nothing else passes here.
"""

import errno
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Any

import pyfuse3
import trio

from core.errors import BlockyardError, errno_of
from gateway_fuse.attributes import AttributeHandlers
from gateway_fuse.control import Trace
from gateway_fuse.directory_reader import DirectoryReader
from gateway_fuse.metrics import Meter, OperationCounters
from gateway_fuse.naming import Naming
from gateway_fuse.open_files import OpenFiles
from gateway_fuse.state import MountState

log = logging.getLogger(__name__)
Handler = Callable[..., Awaitable[Any]]


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls. Handlers are attributes of the instance, wrapped once: one call less on each request."""

    enable_acl = True
    enable_writeback_cache = False
    supports_dot_lookup = True

    def __init__(self, state: MountState, meter: Meter, trace: Trace) -> None:
        super().__init__()
        naming = Naming(state)
        attributes = AttributeHandlers(state)
        files = OpenFiles(state, naming)
        directories = DirectoryReader(state, naming)
        handlers: dict[str, Handler] = {
            "lookup": naming.lookup,
            "mknod": naming.mknod,
            "mkdir": naming.mkdir,
            "symlink": naming.symlink,
            "link": naming.link,
            "unlink": naming.unlink,
            "rmdir": naming.rmdir,
            "rename": naming.rename,
            "getattr": attributes.getattr,
            "setattr": attributes.setattr,
            "readlink": attributes.readlink,
            "access": attributes.access,
            "getxattr": attributes.getxattr,
            "setxattr": attributes.setxattr,
            "listxattr": attributes.listxattr,
            "removexattr": attributes.removexattr,
            "statfs": attributes.statfs,
            "open": files.open,
            "create": files.create,
            "read": files.read,
            "write": files.write,
            "flush": files.flush,
            "release": files.release,
            "fsync": files.fsync,
            "fsyncdir": files.fsyncdir,
            "opendir": directories.opendir,
            "readdir": directories.readdir,
            "releasedir": directories.releasedir,
        }
        for name, handler in handlers.items():
            setattr(self, name, _guarded(name, handler, meter.counters(name), trace))
        setattr(self, "forget", naming.forget)  # noqa: B010  # for mypy, a method is not to be assigned


def _guarded(name: str, handler: Handler, counters: OperationCounters, trace: Trace) -> Handler:
    """Wrap a handler: count it, show it to whoever traces, and let nothing but FUSEError out."""
    count, totals = counters.count, counters.totals

    async def guarded(*arguments: Any) -> Any:
        begun_ns = perf_counter_ns()
        try:
            answer = await handler(*arguments)
        except pyfuse3.FUSEError as error:
            totals[1] += 1
            if trace.readers:
                trace.add(name, arguments, perf_counter_ns() - begun_ns, error.errno)
            raise
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  # the boundary
            number = translate(name, error)
            totals[1] += 1
            if trace.readers:
                trace.add(name, arguments, perf_counter_ns() - begun_ns, number)
            raise pyfuse3.FUSEError(number) from None
        spent_ns = perf_counter_ns() - begun_ns
        count(spent_ns)
        if trace.readers:
            trace.add(name, arguments, spent_ns, 0)
        return answer

    return guarded


def translate(name: str, error: BaseException) -> int:
    """Give the errno for an error; what nobody foresaw is told to the log."""
    if not isinstance(error, BlockyardError):
        log.error("unforeseen error in %s", name, exc_info=error)
    elif error.errno == errno.EIO:
        log.warning("%s: %s", name, error)
    return errno_of(error)
