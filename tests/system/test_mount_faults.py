"""Mounts that stand still, are cut off, expire or are thrown out: no peer waits beyond the lease, no lost write was acknowledged."""

import contextlib
import errno
import itertools
import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator

import pytest
from mount_litmus import Clock, make_exclusively, read_over_and_over
from mount_worker import read_whole, write_whole
from mounts import Mounted, SharedFilesystem
from nbd_server import wait_until

from metadata_server.protocol import messages
from metadata_server.protocol.arguments import arguments_of
from metadata_server.protocol.framing import Splitter, parse
from metadata_server.protocol.handshake import VERSION, Hello, hello_frame, read_welcome
from metadata_server.protocol.model import ROOT, Lease
from metadata_server.protocol.requests import Acquire, Lookup, Request, node_of

pytestmark = pytest.mark.system

LEASE_S = 1.5
SLACK_S = 3.0
"""What a peer may wait beyond the lease: a heartbeat's age, a look at the clock, a machine that is busy."""
OLD, BUFFERED, NEW = (word * 2000 for word in (b"old.", b"buff", b"new!"))


@pytest.fixture
def served(shared_filesystem) -> SharedFilesystem:
    """A filesystem whose server gives short leases."""
    shared_filesystem.start_server(lease_s=LEASE_S)
    return shared_filesystem


@contextlib.contextmanager
def within_the_lease() -> Iterator[None]:
    """See that the block took no longer than a lost mount may hold others up."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert took_s < LEASE_S + SLACK_S, f"a peer waited {took_s:.1f} s for a lease of {LEASE_S:g} s"


def dirty_file(filesystem: SharedFilesystem, mounted: Mounted):
    """Let a worker hold a file open at a mount, synced bytes overwritten by others that only the mount has."""
    path = mounted / "file"
    write_whole(path, OLD, sync=True)
    worker = filesystem.worker("holder")
    descriptor = worker.do(os.open, path, os.O_RDWR)
    worker.do(os.pwrite, descriptor, BUFFERED, 0)
    return worker, descriptor


def goes_on_with_fresh_data(here: Mounted, there: Mounted) -> None:
    """See that a mount works, and sees what its peer does."""
    wait_until(lambda: _or_none(lambda: read_whole(here / "file")) == NEW, "the mount shows what its peer wrote")
    write_whole(here / "file", b"again", sync=True)
    assert read_whole(there / "file") == b"again"
    write_whole(there / "after", b"after")
    assert read_whole(here / "after") == b"after"


def _or_none(call):
    try:
        return call()
    except OSError:
        return None


def test_peers_of_a_mount_that_stands_still_go_on_after_its_lease_and_its_buffered_write_is_not_acknowledged(served):
    a, b = served.mount("a"), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    a.stop()
    peer = served.worker("peer")
    with within_the_lease():
        found = peer.do(read_whole, b / "file")
    assert found in (OLD, BUFFERED), "a write is there or not"
    peer.do(write_whole, b / "file", NEW, True)
    a.cont()
    if found == OLD:
        with pytest.raises(OSError) as raised:
            holder.do(os.fsync, descriptor)
        assert raised.value.errno == errno.EIO
    assert holder.do(os.pread, descriptor, len(NEW), 0) == NEW
    holder.do(os.fsync, descriptor)  # told once
    assert peer.do(read_whole, b / "file") == NEW
    goes_on_with_fresh_data(a, b)


def test_a_write_of_a_fenced_mount_fails_at_close_or_before_where_nobody_synced_it(served):
    a, b = served.mount("a"), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    a.stop()
    peer = served.worker("peer")
    peer.do(write_whole, b / "file", NEW, True)
    a.cont()
    wait_until(lambda: _or_none(lambda: read_whole(a / "file")) == NEW, "the mount began anew")
    with contextlib.suppress(OSError):
        holder.do(os.close, descriptor)
    assert peer.do(read_whole, b / "file") == NEW
    with contextlib.suppress(OSError):  # nobody was told: as on a local disk, whoever opens the file next may be
        write_whole(a / "file", NEW, sync=True)
    goes_on_with_fresh_data(a, b)


def test_a_mount_that_stands_still_with_things_cached_holds_nobody_up_for_long_and_sees_the_news_when_it_goes_on(
    served,
):
    a, b = served.mount("a"), served.mount("b")
    write_whole(a / "file", OLD)
    (a / "d").mkdir()
    assert read_whole(a / "file") == read_whole(b / "file") and os.listdir(a / "d") == []
    descriptor = os.open(a / "file", os.O_RDONLY)
    a.stop()
    peer = served.worker("peer")
    with within_the_lease():
        peer.do(write_whole, b / "file", NEW)
        peer.do(os.mkdir, b / "d" / "e")
        peer.do(os.chmod, b / "file", 0o600)
    a.cont()
    wait_until(lambda: os.listdir(a / "d") == ["e"], "the mount shows the directory its peer made", LEASE_S + SLACK_S)
    wait_until(lambda: os.pread(descriptor, len(NEW), 0) == NEW, "and what it wrote", LEASE_S + SLACK_S)
    assert (a / "file").stat().st_mode & 0o777 == 0o600
    os.close(descriptor)
    goes_on_with_fresh_data(a, b)


def test_who_needs_nothing_of_a_mount_that_stands_still_does_not_wait_at_all(served):
    a, b = served.mount("a"), served.mount("b")
    (b / "own").mkdir()
    write_whole(b / "own" / "file", OLD)
    dirty_file(served, a)
    a.stop()
    peer = served.worker("peer")
    took_s = []
    for each in range(20):
        began = time.monotonic()
        peer.do(write_whole, b / "own" / f"n{each}", NEW, True)
        assert peer.do(read_whole, b / "own" / "file") == OLD
        took_s.append(time.monotonic() - began)
    assert max(took_s) < LEASE_S / 2, "one that waited would have waited for the rest of the lease"


def test_the_peers_of_a_killed_mount_go_on_after_its_lease_and_what_it_had_removed_but_open_goes(served):
    a, b = served.mount("a"), served.mount("b")
    write_whole(a / "gone", OLD, sync=True)
    keeper = served.worker("keeper")
    kept = keeper.do(os.open, a / "gone", os.O_RDWR)
    (b / "gone").unlink()
    assert keeper.do(os.pread, kept, 4, 0) == b"old."
    dirty_file(served, a)
    _, used = served.used()
    a.kill()
    peer = served.worker("peer")
    with within_the_lease():
        assert peer.do(read_whole, b / "file") in (OLD, BUFFERED)
        peer.do(write_whole, b / "file", NEW, True)
    wait_until(lambda: served.used()[1] == used - 1, "the file that only the dead mount had open is gone")
    again = served.mount("a")
    assert read_whole(again / "file") == NEW


def test_a_mount_cut_off_from_the_server_is_fenced_like_one_that_stands_still(served):
    cable, address = served.forward()
    a, b = served.mount("a", server=address), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    cable.stop()
    sync = holder.begin(os.fsync, descriptor)
    peer = served.worker("peer")
    with within_the_lease():
        found = peer.do(read_whole, b / "file")
    assert found in (OLD, BUFFERED)
    peer.do(write_whole, b / "file", NEW, True)
    cable.cont()
    try:
        sync.result()
    except OSError as error:
        assert error.errno == errno.EIO
    else:
        assert found == BUFFERED, "the sync was acknowledged, and its bytes are lost"
    assert peer.do(read_whole, b / "file") == NEW
    goes_on_with_fresh_data(a, b)


def test_a_mount_that_was_cut_off_shows_nothing_stale_once_its_peers_go_on(served, tmp_path):
    cable, address = served.forward()
    a, b = served.mount("a", server=address), served.mount("b")
    write_whole(b / "file", OLD)
    clock = Clock.make(tmp_path / "clock")
    reader = served.worker("reader")
    reads = reader.begin(read_over_and_over, a / "file", clock, len(OLD))
    wait_until(lambda: Clock(clock).get(1) > 10, "the reader reads")
    cable.stop()
    peer = served.worker("peer")
    with within_the_lease():
        peer.do(write_whole, b / "file", NEW)
    written = time.monotonic()
    time.sleep(LEASE_S)  # in which the reader finds nothing old: there is no event for what must not happen
    cable.cont()
    wait_until(lambda: _or_none(lambda: read_whole(a / "file")) == NEW, "the mount shows what its peer wrote")
    Clock(clock).set(0, 1)
    stale = [began - written for began, data in reads.result() if data == OLD and began > written]
    assert not stale, f"{len(stale)} stale reads, the last one {stale[-1]:.3f} s after its peer had written"
    goes_on_with_fresh_data(a, b)


def test_connections_that_break_again_and_again_cost_no_operation_and_repeat_none(served, tmp_path):
    cable, address = served.forward()
    a, b = served.mount("a", server=address), served.mount("b")
    (b / "d").mkdir()
    clock = Clock.make(tmp_path / "clock")
    maker = served.worker("maker")
    made = maker.begin(make_exclusively, a / "d", clock)
    for number in range(6):
        reached = Clock(clock).get(1)
        wait_until(lambda enough=reached + 20: Clock(clock).get(1) > enough or made.done(), "files are being made")
        cable.kill()
        cable, _ = served.forward(f"cable-{number}", at=address)
    Clock(clock).set(0, 1)
    count = made.result()
    assert sorted(os.listdir(b / "d"), key=int) == [str(each) for each in range(count)]
    assert all(read_whole(b / "d" / str(each)) == b"%d" % each for each in range(count))


def test_a_server_that_stands_still_beyond_the_lease_makes_no_sync_lie(served):
    a, b = served.mount("a"), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    assert served.server is not None
    served.server.stop()
    sync = holder.begin(os.fsync, descriptor)
    assert not sync.done(LEASE_S + 1)
    served.server.cont()
    synced = _or_none(lambda: sync.result() or True)
    wait_until(lambda: _or_none(lambda: read_whole(b / "file")) is not None, "the filesystem answers")
    assert read_whole(b / "file") == read_whole(a / "file") == (BUFFERED if synced else read_whole(b / "file"))
    write_whole(b / "file", NEW)
    goes_on_with_fresh_data(a, b)


def test_an_evicted_mount_begins_anew_and_loses_only_what_it_is_told_of(served):
    a, b = served.mount("a"), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    for session in sessions(served):
        if session["leases"] and session["client"] != "":
            served.run("fs", "sessions", served.reference, "--evict", str(session["session"]), *served.at_server)
    assert read_whole(b / "file") in (OLD, BUFFERED)
    write_whole(b / "file", NEW, sync=True)
    with contextlib.suppress(OSError):
        holder.do(os.fsync, descriptor)
    holder.do(os.fsync, descriptor)
    goes_on_with_fresh_data(a, b)


def sessions(filesystem: SharedFilesystem) -> list[dict[str, object]]:
    """Give what `fs sessions` tells."""
    return json.loads(filesystem.run("fs", "sessions", filesystem.reference, "--json", *filesystem.at_server))


def test_a_mount_that_stood_still_is_fenced_though_nobody_wanted_what_it_had(served):
    a, b = served.mount("a"), served.mount("b")
    holder, descriptor = dirty_file(served, a)
    a.stop()
    wait_until(lambda: len(sessions(served)) == 1, "its session has expired", LEASE_S * 2 + SLACK_S)
    a.cont()
    synced = _or_none(lambda: holder.do(os.fsync, descriptor) or True)
    assert read_whole(b / "file") == (BUFFERED if synced else OLD)
    write_whole(b / "file", NEW)
    goes_on_with_fresh_data(a, b)


class MuteClient:
    """A session that talks to the server and lives, but answers no recall."""

    def __init__(self, filesystem: SharedFilesystem) -> None:
        described = json.loads(filesystem.run("fs", "info", filesystem.reference, "--json"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(filesystem.address.removeprefix("unix:"))
        self._splitter = Splitter()
        self._messages: deque[tuple[object, ...]] = deque()
        self._requests = itertools.count(1)
        self.seen: list[object] = []
        """The kinds of the messages that were received."""
        self._socket.sendall(hello_frame(Hello(VERSION, bytes.fromhex(described["id"]), "mute", 0, b"")))
        self.welcome = read_welcome(self._next())

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, request: Request) -> object:
        """Do a request; gives the plain value of the answer."""
        number = next(self._requests)
        self._socket.sendall(messages.request_frame(0, number, request.opcode, arguments_of(request)))
        while (message := self._next())[0] != messages.REQUEST:
            pass
        answer = messages.read_answer(message)
        assert not answer.errno, answer
        return answer.value

    def live_until_expired(self, timeout_s: float) -> None:
        """Send heartbeats until the server ends the session."""
        deadline = time.monotonic() + timeout_s
        for number in itertools.count(1):
            assert time.monotonic() < deadline, f"not expired within {timeout_s:g} s"
            with contextlib.suppress(BrokenPipeError):  # what the server said before it closed is there to be read
                self._socket.sendall(messages.heartbeat_frame(number))
            while (kind := self._next()[0]) != messages.HEARTBEAT:
                if kind == messages.EXPIRED:
                    return
            time.sleep(LEASE_S / 20)

    def _next(self) -> tuple[object, ...]:
        while not self._messages:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._messages.extend(parse(body) for body in self._splitter.feed(data))
        self.seen.append(self._messages[0][0])
        return self._messages.popleft()


@pytest.mark.parametrize("lease", [Lease.READ, Lease.WRITE])
def test_a_client_that_answers_no_recall_is_thrown_out_after_the_lease_though_its_heart_beats(served, lease):
    b = served.mount("b")
    (b / "d").mkdir()
    write_whole(b / "d" / "file", OLD, sync=True)
    with contextlib.closing(MuteClient(served)) as mute:
        _is_thrown_out(served, b, mute, lease)


def _is_thrown_out(served: SharedFilesystem, b: Mounted, mute: MuteClient, lease: Lease) -> None:
    directory = node_of(mute.ask(Lookup(ROOT, b"d"))).attributes.inode
    file = node_of(mute.ask(Lookup(directory, b"file"))).attributes.inode
    mute.ask(Acquire(file, lease))
    peer = served.worker("peer")
    began = time.monotonic()
    written = peer.begin(write_whole, b / "d" / "file", NEW)
    made = peer.begin(write_whole, b / "d" / "new", NEW, True)
    mute.live_until_expired(LEASE_S + SLACK_S)
    written.result(1)
    made.result(1)
    assert LEASE_S * 0.7 < time.monotonic() - began < LEASE_S + SLACK_S
    assert messages.RECALL in mute.seen
    assert read_whole(b / "d" / "file") == NEW
