"""The process behind one mapped device: it keeps the kernel in connections to a living gateway until the unmap.

Owns: the gateway's process, the connections that the kernel uses (the kernel holds its own references), the mapping's
folder with its lock. One thread runs the loop and touches all of it; signals and other processes reach it through
descriptors that the loop polls.

1. One writer: a gateway is reaped before the next one starts.
2. No late writes: when the kernel gives a connection up, the requests on it are sent again elsewhere, so the gateway
   that still holds the old ones is killed and reaped before a connection to another is handed over.
3. No lost replies to the kernel: connections are cut before a gateway is asked to end, because a server that shuts
   down answers errors, which the kernel would hand to the filesystem.
4. The device exists before `on_mapped` is called, and not after an unmap was answered.
5. While the device exists, a failing gateway is started again without end: giving up is the kernel's decision
   (the dead-connection timeout) or the user's (unmap).
"""

import enum
import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from core.errors import BlockyardError, UsageError, WorldError
from gateway_nbd.kernel.control import UNMAP, ControlServer, Question
from gateway_nbd.kernel.device import Device, sector_bytes, wait_for_idle
from gateway_nbd.kernel.dialer import Dialer, close_all, cut_all
from gateway_nbd.kernel.gateway import Gateway
from gateway_nbd.kernel.handshake import Ask, Export, ExportFlags, HandshakeError
from gateway_nbd.kernel.limits import (
    DIAL_RETRY_S,
    FIRST_BACKOFF_S,
    HAND_OVER_DEADLINE_S,
    IDLE_WAIT_S,
    LAST_BACKOFF_S,
    SIZE_CHECK_S,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
)
from gateway_nbd.kernel.netlink import DeviceSettings
from gateway_nbd.kernel.runtime import MappingFolder, MappingState

_LOG = logging.getLogger("blockyard.map")
_DYING_S: Final = 0.5
"""How long a gateway whose connection broke may take to be seen dead, or a device to be seen disconnected."""


class Kernel(Protocol):
    """What the supervisor needs of the kernel's nbd driver; `NbdNetlink` is it."""

    def connect(self, settings: DeviceSettings, connections: list[socket.socket]) -> int: ...
    def reconnect(self, index: int, identifier: str, connection: socket.socket) -> bool: ...
    def resize(self, index: int, identifier: str, size_bytes: int) -> None: ...
    def disconnect(self, index: int) -> None: ...
    def subscribe(self) -> socket.socket: ...


@dataclass(frozen=True)
class Wishes:
    """What the user wants of the device."""

    export_name: str
    connections: int
    timeout_s: int
    dead_connection_timeout_s: int
    block_bytes: int
    readonly: bool


@dataclass(frozen=True)
class World:
    """Time, injected; `wake` is a descriptor that is readable when `Supervisor.requests` has something new."""

    clock: Callable[[], float]
    pause: Callable[[float], None]
    now_text: Callable[[], str]
    process_id: int


class Phase(enum.Enum):
    DOWN = "no gateway; the next one starts at a set time"
    DIALING = "a gateway started and has not yet all its handshakes"
    SERVING = "the kernel has its connections"
    STOPPING = "the gateway was asked to end, another takes its place"
    ENDED = "the device is gone"


class Supervisor:
    """Serve the mapping in `folder` with `gateway` and `kernel`; `adopted` is the device of a dead supervisor."""

    def __init__(
        self,
        folder: MappingFolder,
        gateway: Gateway,
        kernel: Kernel,
        wishes: Wishes,
        world: World,
        *,
        adopted: int | None = None,
        device_of: Callable[[int], Device] = Device,
        on_mapped: Callable[[str], None] = lambda _device: None,
    ) -> None:
        self._folder = folder
        self._gateway = gateway
        self._kernel = kernel
        self._wishes = wishes
        self._world = world
        self._device_of = device_of
        self._on_mapped = on_mapped
        self._index = adopted
        self._announced = False
        self._export = Export(size_bytes=0, flags=0)
        self._started = world.now_text()
        self._phase = Phase.DOWN
        self._turn_at = world.clock()
        self._deadline = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self._connections: list[socket.socket] = []
        self._hung_up = False
        self._dialer: Dialer | None = None
        self._restart_wanted = False
        self._poller = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._control = ControlServer(folder.control)
        self._watch(self._control.fileno(), select.EPOLLIN, self._hear)

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def has_device(self) -> bool:
        """The kernel has a device that is ours, served or waiting to be served."""
        return self._index is not None and self._phase is not Phase.ENDED

    def run(self) -> None:
        """Serve until the unmap. Raises WorldError when there never was a device, with the gateway's last words."""
        try:
            while self._phase is not Phase.ENDED:
                wait_s = max(0.0, self._turn_at - self._world.clock())
                for descriptor, _events in self._poller.poll(wait_s):
                    if heard := self._watched.get(descriptor):
                        heard()
                self._turn()
        finally:
            self._let_go()

    def wake_on(self, descriptor: int, heard: Callable[[], None]) -> None:
        """Call `heard` from the loop whenever `descriptor` is readable."""
        self._watch(descriptor, select.EPOLLIN, heard)

    def restart_gateway(self) -> None:
        """Replace the gateway by a new one, without a request failing. To be called from the loop."""
        self._restart_wanted = True

    # --- the loop's turns ---

    def _turn(self) -> None:
        if self._phase is Phase.DOWN:
            self._turn_down()
        elif self._phase is Phase.DIALING:
            self._turn_dialing()
        elif self._phase is Phase.SERVING:
            self._turn_serving()
        elif self._phase is Phase.STOPPING:
            self._turn_stopping()

    def _turn_down(self) -> None:
        if self._world.clock() < self._turn_at:
            return
        try:
            self._gateway.start()
        except WorldError as error:
            self._failed(error)
            return
        self._watch(self._gateway.pidfd, select.EPOLLIN, lambda: None)
        self._dial(Ask.GO)
        self._phase = Phase.DIALING
        self._deadline = self._world.clock() + START_DEADLINE_S
        self._write_down()

    def _turn_dialing(self) -> None:
        assert self._dialer is not None
        try:
            if self._gateway.has_ended():
                raise WorldError("it ended")
            self._dialer.advance()
            if self._dialer.ready:
                self._hand_over(self._dialer)
            elif self._world.clock() > self._deadline:
                raise WorldError(f"no handshake within {START_DEADLINE_S:.0f} s")
            else:
                self._turn_at = self._world.clock() + DIAL_RETRY_S
        except BlockyardError as error:
            self._failed(error)

    def _turn_serving(self) -> None:
        if self._hung_up or self._gateway.has_ended():
            self._lost()
        elif self._restart_wanted:
            self._stop_for_another()
        elif self._dialer is not None:
            self._look_at_size(self._dialer)
        elif self._world.clock() >= self._turn_at:
            self._dial(Ask.INFO)
            self._look_at_size(self._dialer)

    def _turn_stopping(self) -> None:
        if self._gateway.has_ended() or self._world.clock() >= self._deadline:
            self._reap(0.0)
            self._phase, self._turn_at = Phase.DOWN, self._world.clock()

    # --- giving the kernel its connections ---

    def _hand_over(self, dialer: Dialer) -> None:
        """Give the kernel the dialer's connections: a new device, or in the place of dead ones of ours."""
        assert dialer.export is not None
        export, connections = dialer.export, dialer.take()
        self._dialer = None
        try:
            if self._index is None:
                self._index = self._kernel.connect(self._settings(export), connections)
            else:
                self._replace_dead(self._index, connections)
                if export.size_bytes != self._device_of(self._index).size_bytes:
                    self._kernel.resize(self._index, self._folder.identifier, export.size_bytes)
                    _LOG.info("%s is now %d bytes", self._folder.image, export.size_bytes)
        except BlockyardError:
            cut_all(connections)
            close_all(connections)
            raise
        self._export, self._connections, self._hung_up = export, connections, False
        for connection in connections:
            self._watch(connection.fileno(), select.EPOLLRDHUP, self._note_hang_up)
        self._gateway.settle()
        self._phase, self._backoff_s = Phase.SERVING, FIRST_BACKOFF_S
        self._turn_at = self._world.clock() + SIZE_CHECK_S
        self._write_down()
        _LOG.info("%s is served at /dev/nbd%d by gateway %s", self._folder.image, self._index, self._gateway.pid)
        if not self._announced:
            self._announced = True
            self._on_mapped(f"/dev/nbd{self._index}")

    def _replace_dead(self, index: int, connections: list[socket.socket]) -> None:
        """Offer each connection until the kernel has found the dead one that it replaces."""
        news = self._kernel.subscribe()
        deadline = self._world.clock() + HAND_OVER_DEADLINE_S
        for connection in connections:
            while not self._kernel.reconnect(index, self._folder.identifier, connection):
                if self._world.clock() > deadline:
                    raise WorldError(f"the kernel did not take a new connection for /dev/nbd{index}")
                if select.select([news], [], [], 0.05)[0]:
                    news.recv(4096)

    def _settings(self, export: Export) -> DeviceSettings:
        flags = export.flags | (ExportFlags.READ_ONLY if self._wishes.readonly else 0)
        return DeviceSettings(
            size_bytes=export.size_bytes,
            block_bytes=sector_bytes(export.size_bytes, self._wishes.block_bytes, export.minimum_bytes),
            server_flags=flags,
            timeout_s=self._wishes.timeout_s,
            dead_connection_timeout_s=self._wishes.dead_connection_timeout_s,
            identifier=self._folder.identifier,
        )

    def _write_down(self) -> None:
        """Put into the folder what stands now; it is for people and for whoever takes over, we go on without it."""
        state = MappingState(
            image=self._folder.image,
            index=self._index,
            serving=self._phase is Phase.SERVING,
            supervisor_pid=self._world.process_id,
            gateway_pid=self._gateway.pid,
            started=self._started,
            readonly=self._wishes.readonly or bool(self._export.flags & ExportFlags.READ_ONLY),
            connections=len(self._connections),
            size_bytes=self._export.size_bytes,
        )
        try:
            self._folder.write(state)
        except OSError as error:
            _LOG.error("writing down the state of %s: %s", self._folder.image, error)

    # --- when something is lost, or replaced ---

    def _failed(self, error: BlockyardError) -> None:
        """A gateway did not come up: tell the user if he still waits, else try again after a while."""
        self._drop_dialer()
        self._gateway.kill()
        how = self._reap(STOP_DEADLINE_S)
        text = f"the gateway of {self._folder.image} does not serve it: {error} ({how})"
        if words := self._gateway.last_words():
            text += f"\n{words}"
        if self._index is None:
            raise WorldError(text)
        if not self._device_of(self._index).attached:
            self._end("somebody else disconnected the device")
            return
        _LOG.error("%s; trying again in %.1f s", text, self._backoff_s)
        self._phase, self._turn_at = Phase.DOWN, self._world.clock() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)

    def _lost(self) -> None:
        """A connection broke while serving: the gateway died, or the kernel gave up on it, or on the device."""
        assert self._index is not None
        self._drop_connections()
        self._drop_dialer()
        died = self._gateway.wait(_DYING_S)
        if not self._device_of(self._index).attached:
            self._end("somebody else disconnected the device")
            return
        if not died:
            _LOG.error("a connection broke while the gateway lives; a request took too long, or it closed it")
            self._gateway.kill()
        _LOG.error("lost the gateway of %s: %s; starting another", self._folder.image, self._reap(STOP_DEADLINE_S))
        self._phase, self._turn_at = Phase.DOWN, self._world.clock()

    def _stop_for_another(self) -> None:
        self._restart_wanted = False
        self._drop_dialer()
        self._wait_for_idle()
        self._drop_connections()
        self._gateway.terminate()
        self._phase, self._deadline = Phase.STOPPING, self._world.clock() + STOP_DEADLINE_S
        self._turn_at = self._deadline

    def _look_at_size(self, dialer: Dialer | None) -> None:
        """Ask the gateway for the size; when it changed, replace the connections, which know the old one only."""
        assert dialer is not None
        try:
            dialer.advance()
            if not dialer.ready:
                self._turn_at = self._world.clock() + SIZE_CHECK_S
                return
            export = dialer.export
            if dialer.ask is Ask.GO:
                self._wait_for_idle()
                self._drop_connections()
                self._hand_over(dialer)
                return
            self._drop_dialer()
            if export is not None and export.size_bytes != self._export.size_bytes:
                self._dial(Ask.GO)
                self._look_at_size(self._dialer)
        except HandshakeError as error:
            _LOG.warning("asking for the size of %s: %s", self._folder.image, error)
            self._drop_dialer()
        except BlockyardError as error:
            self._failed(error)
            return
        self._turn_at = self._world.clock() + SIZE_CHECK_S

    def _wait_for_idle(self) -> None:
        """Requests in flight on a connection that is cut wait for the kernel's timeout: choose a moment without any."""
        assert self._index is not None
        device = self._device_of(self._index)
        if not wait_for_idle(device, self._world.clock, self._world.pause, IDLE_WAIT_S):
            _LOG.info("%s is busy; some requests are sent again after %d s", device.node, self._wishes.timeout_s)

    # --- the end ---

    def _hear(self) -> None:
        question = self._control.accept()
        if question is None:
            return
        if question.verb == UNMAP:
            self._unmap(question)
        else:
            question.answer(UsageError(f"a supervisor knows the verb {UNMAP!r}, not {question.verb!r}"))

    def _unmap(self, question: Question) -> None:
        """Disconnect and end; the asker has made sure that nobody uses the device, or does not care."""
        try:
            if self._index is not None:
                self._kernel.disconnect(self._index)
            self._end("unmapped")
        except BlockyardError as error:
            _LOG.exception("unmapping")
            question.answer(error)
            return
        question.answer()

    def _end(self, why: str) -> None:
        self._drop_connections()
        self._drop_dialer()
        self._gateway.terminate()
        how = self._reap(STOP_DEADLINE_S)
        _LOG.info("%s: %s; the gateway ended: %s", self._folder.image, why, how)
        self._phase = Phase.ENDED

    def _let_go(self) -> None:
        """Give everything back; when the loop broke while the device exists, leave gateway and connections to it."""
        self._drop_dialer()
        if self._phase is not Phase.ENDED and self._index is None:
            self._end("never mapped")
        close_all(self._connections)
        self._control.close()
        self._poller.close()

    # --- small change ---

    def _dial(self, ask: Ask) -> None:
        wanted = 1 if ask is Ask.INFO else self._wishes.connections
        self._dialer = Dialer(self._poller, self._gateway.socket_path, self._wishes.export_name, wanted, ask)
        self._turn_at = self._world.clock()

    def _drop_dialer(self) -> None:
        if self._dialer is not None:
            self._dialer.close()
            self._dialer = None

    def _drop_connections(self) -> None:
        for connection in self._connections:
            self._unwatch(connection.fileno())
        cut_all(self._connections)
        close_all(self._connections)
        self._connections = []

    def _reap(self, timeout_s: float) -> str:
        if self._gateway.pidfd >= 0:
            self._unwatch(self._gateway.pidfd)
        return self._gateway.reap(timeout_s)

    def _note_hang_up(self) -> None:
        self._hung_up = True

    def _watch(self, descriptor: int, events: int, heard: Callable[[], None]) -> None:
        self._watched[descriptor] = heard
        self._poller.register(descriptor, events)

    def _unwatch(self, descriptor: int) -> None:
        if self._watched.pop(descriptor, None) is not None:
            self._poller.unregister(descriptor)
