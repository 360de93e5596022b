"""The metadata server without sockets and database: a tree of a few inodes, outlets that remember, and a clock to turn."""

import dataclasses
import errno
from collections.abc import Iterable, Sequence
from typing import Any

from core.world import World
from metadata_server.engine.rows import AnswerRow, SessionRow
from metadata_server.protocol.arguments import arguments_of
from metadata_server.protocol.errors import OperationError
from metadata_server.protocol.framing import LENGTH_BYTES, Splitter, parse
from metadata_server.protocol.handshake import Hello, hello_frame, read_welcome
from metadata_server.protocol.messages import RECALL, REQUEST, acknowledge_frame, request_frame
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import Acquire, Commit, Lookup, Make, ReadMap, Remove, Request, SetAttributes
from metadata_server.runtime.service import Service
from metadata_server.tree.state import Access, Touch

FILESYSTEM = b"fake"
NODE = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), b"", None)


class FakeTree:
    """Inode numbers are names, too: looking up b"7" finds inode 7. Counts what is applied, and what is committed."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, Request[Any]]] = []
        self.committed: list[tuple[int, Request[Any]]] = []
        self.rows: dict[int, SessionRow] = {}
        self.rows_of_answers: dict[tuple[int, int], AnswerRow] = {}
        self.nameless: set[int] = set()
        self.dropped: list[int] = []
        self.epoch = 0
        self.failures: list[Exception] = []
        """Errors that the next calls of apply raise."""
        self.commit_failures: list[Exception] = []
        self._saved: tuple[Any, ...] = ({}, {}, set())

    def touches(self, session: int, request: Request[Any]) -> Sequence[Touch]:
        if isinstance(request, Acquire):
            return [Touch(request.inode, None, Access.WRITE if request.lease == Lease.WRITE else Access.READ)]
        if isinstance(request, Lookup):
            return [Touch(request.directory, None, Access.READ), Touch(int(request.name), None, Access.READ)]
        if isinstance(request, Make | Remove):
            return [
                Touch(request.directory, request.name, Access.NAME),
                Touch(int(request.name), None, Access.ATTRIBUTES),
            ]
        if isinstance(request, SetAttributes):
            return [Touch(request.inode, None, Access.ATTRIBUTES)]
        return []

    def apply(self, session: int, request: Request[Any]) -> tuple[Any, Sequence[tuple[int, Lease]]]:
        if self.failures:
            raise self.failures.pop(0)
        self.applied.append((session, request))
        if isinstance(request, Acquire):
            return NODE, [(request.inode, Lease(request.lease))]
        if isinstance(request, Lookup):
            return NODE, [(request.directory, Lease.READ), (int(request.name), Lease.READ)]
        if isinstance(request, Make):
            if request.mode == 0:
                raise OperationError(errno.EEXIST)
            return (NODE, NODE[0]), [(request.directory, Lease.READ)]
        if isinstance(request, Remove):
            inode = int(request.name)
            self.nameless.add(inode)
            return ((inode, 0, 0, *NODE[0][3:]), NODE[0]), []
        if isinstance(request, Commit):
            return [(NODE[0], None) for _ in request.updates], []
        return b"" if isinstance(request, ReadMap) else None, []

    def drop_orphan(self, inode: int) -> None:
        self.nameless.discard(inode)
        self.dropped.append(inode)

    def orphans(self) -> Iterable[int]:
        return sorted(self.nameless)

    def is_orphan(self, inode: int) -> bool:
        return inode in self.nameless

    def take_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def put_session(self, row: SessionRow) -> None:
        self.rows[row.session] = row

    def delete_session(self, session: int) -> None:
        self.rows.pop(session, None)
        for key in [key for key in self.rows_of_answers if key[0] == session]:
            del self.rows_of_answers[key]

    def list_sessions(self) -> Iterable[SessionRow]:
        return list(self.rows.values())

    def put_answer(self, session: int, slot: int, number: int, body: bytes) -> None:
        self.rows_of_answers[session, slot] = AnswerRow(slot, number, body)

    def answers_of(self, session: int) -> Iterable[AnswerRow]:
        return [row for (of, _), row in self.rows_of_answers.items() if of == session]

    def commit(self) -> None:
        if self.commit_failures:
            raise self.commit_failures.pop(0)
        self.committed += self.applied
        self.applied = []
        self._saved = (dict(self.rows), dict(self.rows_of_answers), set(self.nameless))

    def rollback(self) -> None:
        self.applied = []
        rows, answers, nameless = self._saved
        self.rows, self.rows_of_answers, self.nameless = dict(rows), dict(answers), set(nameless)

    def sync(self) -> None:
        pass

    def checkpoint(self) -> None:
        pass


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fake_world(clock: Clock) -> World:
    """Give a world with that clock."""
    return dataclasses.replace(World.real(), monotonic=clock)


class Peer:
    """A client as the server sees one: an outlet that remembers what it was sent."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.session = 0
        self.is_open = True
        self.received: list[tuple[Any, ...]] = []
        self.number = 0
        self.splitter = Splitter()

    def send(self, data: bytes) -> None:
        self.received += [parse(body) for body in self.splitter.feed(data)]

    def close_after(self, last: bytes) -> None:
        self.send(last)
        self.is_open = False
        self.service.disconnected(self)

    def say(self, *frames: bytes) -> None:
        """Send messages, in one turn of the server's."""
        for data in frames:
            self.service.receive(self, data[LENGTH_BYTES:])
        self.service.finish()

    def greet(self, session: int = 0, token: bytes = b"") -> Any:
        """Say hello; give the welcome."""
        self.say(hello_frame(Hello(1, FILESYSTEM, "peer", session, token)))
        return read_welcome(self.take()[0])

    def take(self) -> list[tuple[Any, ...]]:
        """Give what was received since."""
        received, self.received = self.received, []
        return received

    def ask(self, request: Request[Any], slot: int = 0, number: int | None = None) -> None:
        """Send a request; by default each in a slot of its own numbers."""
        if number is None:
            self.number += 1
            number = self.number
        self.say(request_frame(slot, number, request.opcode, arguments_of(request)))

    def answers(self) -> list[tuple[int, int]]:
        """Give (number, errno) of the answers received, and forget all that was."""
        return [(each[2], each[3]) for each in self.take() if each[0] == REQUEST]

    def recalls(self) -> list[tuple[int, int, bytes | None, int]]:
        """Give (recall, inode, name, keep) of the recalls received; they stay."""
        return [(each[1], each[2], each[3], each[4]) for each in self.received if each[0] == RECALL]

    def give_back(self, recall: int, kept: Lease) -> None:
        """Answer a recall."""
        self.say(acknowledge_frame(recall, kept))


def fake_service(tree: FakeTree | None = None, clock: Clock | None = None, *, lease_s: float = 15.0) -> Service:
    """Give a server on a fake tree."""
    return Service(tree or FakeTree(), filesystem=FILESYSTEM, lease_s=lease_s, world=fake_world(clock or Clock()))


def peer(service: Service) -> Peer:
    """Give a peer that has greeted."""
    made = Peer(service)
    made.greet()
    return made
