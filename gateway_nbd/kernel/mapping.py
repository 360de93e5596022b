"""Map and unmap: what the command line asks for, from the folder of the mapping to the answer.

`serve_mapping` is the body of the supervisor's process; `map_image` puts it into the background, `unmap` ends it.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.errors import BlockyardError, UsageError, WorldError
from gateway_nbd.kernel.control import UNMAP, ask, await_report, report
from gateway_nbd.kernel.device import Device, InUseError
from gateway_nbd.kernel.gateway import Gateway, end_stray
from gateway_nbd.kernel.host import become_io_flusher, open_netlink
from gateway_nbd.kernel.runtime import MappingFolder, MappingState
from gateway_nbd.kernel.supervisor import Supervisor, Wishes, World
from gateway_nbd.unflushed import check_in_memory

_LOG = logging.getLogger("blockyard.map")


@dataclass(frozen=True)
class Order:
    """One mapping to make: which image, by which gateway command, with which wishes."""

    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    wishes: Wishes
    first_command: Sequence[str] | None = None
    """Replaces `command` until the image is mapped: a takeover is forced once, not at every restart."""


def map_image(order: Order, runtime: Path) -> str:
    """Start a supervisor in the background and give the device once it is there.

    The supervisor is in a session of its own and outlives the caller's terminal. Raises what it reports: no driver,
    already mapped, an image or a pool that does not open.
    """
    open_netlink(order.image).close()  # the common refusal, said before anything is started
    folder = MappingFolder(runtime, order.image)
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_background(folder.log("supervisor"))
        _serve_and_report(order, folder, writing)
    os.close(writing)
    os.waitpid(child, 0)
    return await_report(reading)


def serve_mapping(order: Order, folder: MappingFolder, on_mapped: Callable[[str], None]) -> None:
    """Be the supervisor of one mapping until it is unmapped; SIGTERM and SIGINT ask for that, SIGHUP for an upgrade."""
    with open_netlink(order.image) as kernel, contextlib.ExitStack() as stack:
        _check_in_memory(folder)
        folder.acquire()
        stack.callback(folder.release)
        become_io_flusher()
        adopted = _adopt(folder)
        gateway = Gateway(
            order.command,
            order.environment,
            folder.gateway,
            folder.log("gateway"),
            first_command=order.first_command,
        )
        supervisor = Supervisor(
            folder, gateway, kernel, order.wishes, _real_world(), adopted=adopted, on_mapped=on_mapped
        )
        _listen_to_signals(supervisor, folder, stack)
        try:
            supervisor.run()
        finally:
            if not supervisor.has_device:
                folder.remove()


def unmap(folder: MappingFolder, state: MappingState, *, alive: bool, force: bool) -> None:
    """Write back what was written to the device, disconnect it, and return when its gateway has flushed and ended.

    Raises InUseError while somebody uses it, unless `force`. A mapping whose supervisor died is cleaned up.
    """
    device = None if state.index is None else Device(state.index)
    if device is None or force or not device.attached:
        _disconnect(folder, state, alive=alive)
    else:
        with device.exclusive():
            _disconnect(folder, state, alive=alive)


def _check_in_memory(folder: MappingFolder) -> None:
    """Refuse a runtime directory on a disk: unflushed writes are kept there, and nothing there may outlive a reboot."""
    try:
        check_in_memory(folder.gateway)
    except UsageError as error:
        raise UsageError(
            f"{folder.path.parent} is on a disk; for map, unmap and mapped alike, set BLOCKYARD_RUNTIME_DIR to a "
            "directory on a tmpfs, such as /dev/shm/blockyard"
        ) from error


def _disconnect(folder: MappingFolder, state: MappingState, *, alive: bool) -> None:
    if alive:
        ask(folder.control, UNMAP)
        return
    folder.acquire()
    try:
        if _adopt(folder) is not None and state.index is not None:
            with open_netlink(state.image) as kernel:
                kernel.disconnect(state.index)
    finally:
        folder.remove()


def _adopt(folder: MappingFolder) -> int | None:
    """Find the device that a dead supervisor of this mapping left attached, and end the gateway that still serves it."""
    state = folder.state()
    if state is None or state.index is None:
        return None
    if state.gateway_pid is not None:
        end_stray(state.gateway_pid, folder.gateway)
    device = Device(state.index)
    if device.attached and device.identifier == folder.identifier:
        _LOG.info("taking over %s from a supervisor that died", state.device)
        return state.index
    return None


def _real_world() -> World:
    return World(
        clock=time.monotonic,
        pause=time.sleep,
        now_text=lambda: datetime.now(UTC).isoformat(timespec="seconds"),
        process_id=os.getpid(),
    )


# --- the background process ---


def _become_background(log: Path) -> None:
    """Leave the caller's session and terminal; say everything to `log` from here on."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((null, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, target)
    os.close(null)
    os.close(said)


def _serve_and_report(order: Order, folder: MappingFolder, writing: int) -> None:
    """Run the supervisor in this forked child and never return: the parent's frames are not ours to unwind."""
    log_to_stderr()
    waiting: list[int] = [writing]
    status = 0
    try:
        serve_mapping(order, folder, lambda device: report(waiting.pop(), device, None))
    except BlockyardError as error:
        status = error.exit_status
        _LOG.error("%s", error)
        if waiting:
            report(waiting.pop(), None, error)
    except BaseException as error:  # noqa: BLE001 - the last frame of this process: whatever it was is told
        status = 1
        _LOG.exception("the supervisor broke")
        if waiting:
            report(waiting.pop(), None, WorldError(f"the supervisor broke: {error!r}"))
    finally:
        os._exit(status)


def log_to_stderr() -> None:
    """Write the supervisor's log to stderr, which is its log file when it runs in the background."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


# --- signals ---


def _listen_to_signals(supervisor: Supervisor, folder: MappingFolder, stack: contextlib.ExitStack) -> None:
    """Turn SIGTERM, SIGINT and SIGHUP into events of the supervisor's loop."""
    reading, writing = socket.socketpair()
    stack.callback(reading.close)
    stack.callback(writing.close)
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno())
    stack.callback(signal.set_wakeup_fd, -1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        stack.callback(signal.signal, number, signal.signal(number, lambda _number, _frame: None))

    def heard() -> None:
        for number in reading.recv(64):
            if number == signal.SIGHUP:
                supervisor.restart_gateway()
            elif number in (signal.SIGTERM, signal.SIGINT):
                threading.Thread(target=_unmap_ourselves, args=(folder,), daemon=True).start()

    supervisor.wake_on(reading.fileno(), heard)


def _unmap_ourselves(folder: MappingFolder) -> None:
    """Ask our own loop for the unmap as anybody else would: flushing may take long and must not stop the loop."""
    state = folder.state()
    try:
        if state is None:
            ask(folder.control, UNMAP)
        else:
            unmap(folder, state, alive=True, force=False)
    except InUseError as error:
        _LOG.warning("asked to end, but %s; serving on", error)
    except BlockyardError as error:
        _LOG.error("asked to end: %s", error)
