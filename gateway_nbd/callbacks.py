"""The table of nbdkit's callbacks: which of its names is served by what. nbdkit finds them as globals of the plugin."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from core.errors import BlockyardError
from gateway_nbd import connection, parameters
from gateway_nbd.connection import Connection
from gateway_nbd.server import Gateway

P = ParamSpec("P")


def callbacks(gateway: Gateway, nbdkit: Any, version: str) -> Mapping[str, Callable[..., object]]:
    """Give every callback by nbdkit's name for it. The data callbacks are Connection's own functions: nbdkit passes the handle first."""
    _check_constants(nbdkit)
    parallel: int = nbdkit.THREAD_MODEL_PARALLEL

    def thread_model() -> int:
        return parallel

    def dump_plugin() -> None:
        print(f"blockyard_version={version}", flush=True)
        for line in parameters.help_text().splitlines():
            print(f"blockyard_parameter {line}", flush=True)

    return {
        "dump_plugin": dump_plugin,
        "thread_model": thread_model,
        "config": _told_plainly(gateway.config),
        "config_complete": _told_plainly(gateway.config_complete),
        "get_ready": _told_plainly(gateway.get_ready),
        "after_fork": gateway.after_fork,
        "list_exports": gateway.list_exports,
        "default_export": gateway.default_export,
        "open": gateway.open,
        "close": gateway.close,
        "cleanup": gateway.cleanup,
        "get_size": Connection.get_size,
        "block_size": Connection.block_size,
        "can_write": Connection.can_write,
        "can_fua": Connection.can_fua,
        "can_cache": Connection.can_cache,
        "can_flush": Connection.yes,
        "can_trim": Connection.yes,
        "can_zero": Connection.yes,
        "can_fast_zero": Connection.yes,
        "can_extents": Connection.yes,
        "can_multi_conn": Connection.yes,
        "is_rotational": Connection.no,
        "pread": Connection.pread,
        "pwrite": Connection.pwrite,
        "flush": Connection.flush,
        "trim": Connection.trim,
        "zero": Connection.zero,
        "extents": Connection.extents,
    }


def _told_plainly(callback: Callable[P, None]) -> Callable[P, None]:
    """Leave the traceback out of what the user reads when a mistake of theirs, not of ours, ends nbdkit's start."""

    def tell(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except BlockyardError as error:
            sys.tracebacklimit = 0
            raise error from None

    return tell


def _check_constants(nbdkit: Any) -> None:
    """See that nbdkit means by its flags what the hot path takes them for."""
    ours = (
        connection.MAY_TRIM,
        connection.FUA,
        connection.REQ_ONE,
        connection.FAST_ZERO,
        connection.FUA_NATIVE,
        connection.CACHE_EMULATE,
        connection.HOLE_OF_ZEROS,
    )
    theirs = (
        nbdkit.FLAG_MAY_TRIM,
        nbdkit.FLAG_FUA,
        nbdkit.FLAG_REQ_ONE,
        nbdkit.FLAG_FAST_ZERO,
        nbdkit.FUA_NATIVE,
        nbdkit.CACHE_EMULATE,
        nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO,
    )
    if ours != theirs:
        raise RuntimeError(
            f"this nbdkit's flags are {theirs}, the plugin was written for {ours}; use nbdkit 1.30 to 1.40"
        )
