"""Clients, a server and the connections between them, in every order that hypothesis thinks of: what the clients believe to hold never
conflicts, every request is answered, and every change is made once, over lost connections and restarts of the server."""

import os
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metadata_server.protocol.arguments import arguments_of
from metadata_server.protocol.framing import MalformedError
from metadata_server.protocol.messages import (
    RECALL,
    REQUEST,
    RESUMED_FRAME,
    acknowledge_frame,
    claim_frames,
    request_frame,
)
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Acquire, Lookup, Make, Release, Request, SetAttributes
from metadata_server.runtime.service import Service
from tests.unit.metadata_fakes import Clock, FakeTree, Peer, fake_service

LONG = bool(os.environ.get("BLOCKYARD_LONG_TESTS"))
CLIENTS = 3 if LONG else 2
INODES = st.integers(2, 4 if LONG else 2)
"""Few of both: it is when they meet that things go wrong."""


class Client:
    """A client as its library behaves: it looks at messages in order, and sends again what was not answered."""

    def __init__(self, service: Service) -> None:
        self.peer = Peer(service)
        welcome = self.peer.greet()
        self.session, self.token = welcome.session, welcome.token
        self.book: dict[int, Lease] = {}
        self.flying: dict[int, tuple[int, Request[Any]]] = {}
        self.numbers = [0] * 8
        self.recalls: dict[int, tuple[int, Lease]] = {}
        self.changes_asked = 0

    def ask(self, request: Request[Any]) -> None:
        for slot in range(8):
            if slot not in self.flying:
                self.numbers[slot] += 1
                self.flying[slot] = (self.numbers[slot], request)
                self.changes_asked += isinstance(request, Make)
                self.peer.say(request_frame(slot, self.numbers[slot], request.opcode, arguments_of(request)))
                return

    def look(self) -> None:
        """Look at the next message."""
        if not self.peer.received:
            return
        message = self.peer.received.pop(0)
        if message[0] == REQUEST:
            number, request = self.flying.pop(message[1])
            assert number == message[2] and message[3] == 0, message
            for inode, lease in granted(request):
                self.book[inode] = max(lease, self.book.get(inode, Lease.NONE))
        elif message[0] == RECALL:
            _, recall, inode, name, keep = message
            self.recalls[recall] = (inode, Lease.READ if name is not None else Lease(keep))

    def give_back(self, chosen: int, *, all_of_it: bool) -> None:
        """Answer one of the recalls."""
        if self.recalls:
            recall = list(self.recalls)[chosen % len(self.recalls)]
            inode, keep = self.recalls.pop(recall)
            kept = Lease.NONE if all_of_it else min(keep, self.book.get(inode, Lease.NONE))
            self.book[inode] = kept
            self.peer.say(acknowledge_frame(recall, kept))

    def release(self) -> None:
        """Give up a lease that nobody else of this client is about to use."""
        busy = {inode for _, request in self.flying.values() for inode, _ in granted(request)}
        recalled = {inode for inode, _ in self.recalls.values()}
        for inode in set(self.book) - busy - recalled:
            del self.book[inode]
            self.ask(Release([inode]))
            return

    def reconnect(self, service: Service) -> None:
        """Lose the connection and what is on it, and come back."""
        if self.peer.service is service:  # else that server is dead
            service.disconnected(self.peer)
            service.finish()
        self.recalls.clear()
        self.peer = Peer(service)
        if self.peer.greet(self.session, self.token).claims_wanted:
            self.peer.say(*claim_frames((inode, lease) for inode, lease in self.book.items() if lease))
        for slot, (number, request) in self.flying.items():
            self.peer.say(request_frame(slot, number, request.opcode, arguments_of(request)))
        self.peer.say(RESUMED_FRAME)


def granted(request: Request[Any]) -> list[tuple[int, Lease]]:
    """Give what a request grants by the fake tree."""
    if isinstance(request, Acquire):
        return [(request.inode, Lease(request.lease))]
    if isinstance(request, Lookup):
        return [(request.directory, Lease.READ), (int(request.name), Lease.READ)]
    return [(request.directory, Lease.READ)] if isinstance(request, Make) else []


class Conversation(RuleBasedStateMachine):
    """Everything that may happen between them."""

    @initialize()
    def begin(self) -> None:
        self.tree, self.clock = FakeTree(), Clock()
        self.service = fake_service(self.tree, self.clock)
        self.clients = [Client(self.service) for _ in range(CLIENTS)]

    @rule(who=st.integers(0, CLIENTS - 1), inode=INODES, lease=st.integers(1, 2))
    def acquire(self, who: int, inode: int, lease: int) -> None:
        self.clients[who].ask(Acquire(inode, lease))

    @rule(who=st.integers(0, CLIENTS - 1), inode=INODES)
    def look_up(self, who: int, inode: int) -> None:
        self.clients[who].ask(Lookup(1, b"%d" % inode))

    @rule(who=st.integers(0, CLIENTS - 1), inode=INODES)
    def make(self, who: int, inode: int) -> None:
        self.clients[who].ask(Make(1, b"%d" % inode, 1, 0, 0, 0, None))

    @rule(who=st.integers(0, CLIENTS - 1), inode=INODES)
    def change(self, who: int, inode: int) -> None:
        self.clients[who].ask(SetAttributes(inode, 1, None, None, None, None))

    @rule(who=st.integers(0, CLIENTS - 1))
    def release(self, who: int) -> None:
        self.clients[who].release()

    @rule(who=st.integers(0, CLIENTS - 1), times=st.integers(1, 4))
    def look(self, who: int, times: int) -> None:
        for _ in range(times):
            self.clients[who].look()

    @rule(who=st.integers(0, CLIENTS - 1), chosen=st.integers(0, 9), all_of_it=st.booleans())
    def give_back(self, who: int, chosen: int, all_of_it: bool) -> None:
        self.clients[who].give_back(chosen, all_of_it=all_of_it)

    @rule(who=st.integers(0, CLIENTS - 1))
    def lose_the_connection(self, who: int) -> None:
        self.clients[who].reconnect(self.service)

    @rule(order=st.permutations(range(CLIENTS)))
    def restart_the_server(self, order: list[int]) -> None:
        self.tree.rollback()
        self.service = fake_service(self.tree, self.clock)
        self.clock.now += 1
        for who in order:
            self.clients[who].reconnect(self.service)

    @invariant()
    def what_clients_believe_does_not_conflict(self) -> None:
        for inode in range(1, 5):
            leases = [client.book.get(inode, Lease.NONE) for client in self.clients]
            assert Lease.WRITE not in leases or sum(map(bool, leases)) == 1, (inode, leases)

    @invariant()
    def the_server_knows_every_lease_that_is_believed_in(self) -> None:
        for client in self.clients:
            for inode, lease in client.book.items():
                assert self.service.operations.leases.held_by(client.session, inode) >= lease

    def teardown(self) -> None:
        """Everybody answers: then every request is answered, and every change was made once."""
        for _ in range(2000):
            for client in self.clients:
                client.look()
                client.give_back(0, all_of_it=False)
            if not any(client.flying or client.peer.received or client.recalls for client in self.clients):
                break
        for client in self.clients:
            assert not client.flying
            made = [r for session, r in self.tree.committed if session == client.session and isinstance(r, Make)]
            assert len(made) == client.changes_asked


Conversation.TestCase.settings = settings(
    max_examples=2000 if LONG else 60, stateful_step_count=100 if LONG else 50, deadline=None
)
test_leases_never_conflict_and_every_request_ends = Conversation.TestCase


FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.integers() | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=10,
)


class Noise(RuleBasedStateMachine):
    """Peers that say anything: each message is done or refused, and the server's accounts hold."""

    @initialize()
    def begin(self) -> None:
        self.tree = FakeTree()
        self.service = fake_service(self.tree)
        self.peers = [Peer(self.service) for _ in range(3)]
        for peer in self.peers[:2]:
            peer.greet()

    @rule(who=st.integers(0, 2), kind=st.integers(-1, 10), fields=st.lists(FIELDS, max_size=7))
    def say_anything(self, who: int, kind: int, fields: list[Any]) -> None:
        self.say(who, [kind, *fields])

    @rule(
        who=st.integers(0, 2),
        slot=st.integers(-1, 64),
        number=st.integers(0, 3),
        opcode=st.integers(0, 23),
        arguments=st.lists(st.integers(-1, 5) | st.sampled_from([b"", b"2", b"3"]) | FIELDS, max_size=7),
    )
    def ask_anything(self, who: int, slot: int, number: int, opcode: int, arguments: list[Any]) -> None:
        self.say(who, [REQUEST, slot, number, opcode, arguments])

    @rule(who=st.integers(0, 2), noise=st.binary(max_size=40))
    def send_noise(self, who: int, noise: bytes) -> None:
        self.send(who, noise)

    def say(self, who: int, message: list[Any]) -> None:
        from metadata_server.protocol.framing import LENGTH_BYTES, frame

        try:
            data = frame(message)
        except OverflowError:
            return
        self.send(who, data[LENGTH_BYTES:])

    def send(self, who: int, body: bytes) -> None:
        peer = self.peers[who]
        before = len(self.tree.applied) + len(self.tree.committed)
        try:
            self.service.receive(peer, body)
        except MalformedError as error:
            assert str(error)
            assert len(self.tree.applied) + len(self.tree.committed) == before
            self.service.disconnected(peer)
            peer.is_open = False
        self.service.finish()
        if not peer.is_open:
            self.peers[who] = Peer(self.service)
            self.peers[who].greet()

    @invariant()
    def a_writer_is_alone(self) -> None:
        leases = self.service.operations.leases
        for inode in range(-1, 71):
            holders = leases.holders(inode)
            assert len(holders) <= 1 or all(leases.held_by(holder, inode) is Lease.READ for holder in holders)


Noise.TestCase.settings = settings(
    max_examples=1000 if LONG else 25, stateful_step_count=100 if LONG else 30, deadline=None
)
test_no_message_whatever_it_says_upsets_the_server = Noise.TestCase
