"""How the benchmark of large directories speaks to a metadata server, here to one that a test plays."""

import socket
import threading
from contextlib import contextmanager

import pytest

from bench.fs_scale import parse_entries
from bench.metadata_session import MetadataSession
from core.errors import UsageError, WorldError
from metadata_server.protocol.framing import Splitter, parse
from metadata_server.protocol.handshake import TOKEN_BYTES, Welcome, read_hello, welcome_frame
from metadata_server.protocol.messages import (
    GOODBYE,
    GOODBYE_FRAME,
    RECALL,
    REQUEST,
    answer_frame,
    closing_frame,
    read_acknowledgement,
    recall_frame,
)
from metadata_server.protocol.model import Lease
from metadata_server.protocol.requests import TakeSequences

FILESYSTEM = b"f" * 16


@contextmanager
def played(tmp_path, answer, *, welcome=True):
    """Serve one connection in a thread: `answer` gives the frames for each message after the hello."""
    path, heard = tmp_path / "socket", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        connection, _ = listener.accept()
        splitter = Splitter()
        with connection:
            while data := connection.recv(65536):
                for message in map(parse, splitter.feed(data)):
                    heard.append(message)
                    if len(heard) == 1:
                        assert read_hello(message).filesystem == FILESYSTEM
                        frames = [
                            welcome_frame(Welcome(5, 1, b"t" * TOKEN_BYTES, 15.0, False))
                            if welcome
                            else closing_frame(2, "another filesystem")
                        ]
                    elif message[0] == GOODBYE:
                        frames = [GOODBYE_FRAME]
                    else:
                        frames = answer(message)
                    connection.sendall(b"".join(frames))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path, heard
    finally:
        thread.join(10)
        listener.close()


def echo(message):
    _, slot, number, _, (count,) = message
    return [answer_frame(slot, number, 0, count)]


def test_operations_come_back_with_their_values_and_the_session_says_goodbye(tmp_path):
    with played(tmp_path, echo) as (path, heard), MetadataSession(path, FILESYSTEM) as session:
        assert session.call(TakeSequences(7)) == 7
        assert len(list(session.timed([TakeSequences(1), TakeSequences(2)]))) == 2
    assert heard[-1][0] == GOODBYE


def test_many_operations_in_flight_are_all_answered_and_each_slot_counts_by_itself(tmp_path):
    with played(tmp_path, echo) as (path, heard), MetadataSession(path, FILESYSTEM) as session:
        assert sorted(session.flood(TakeSequences(n) for n in range(500))) == list(range(500))
    numbers = {}
    for message in heard:
        if message[0] == REQUEST:
            assert message[2] == numbers.get(message[1], 0) + 1
            numbers[message[1]] = message[2]


def test_a_recall_is_answered_at_once_with_no_lease(tmp_path):
    def recalling(message):
        return [recall_frame(3, 9, None, Lease.NONE), *echo(message)] if message[0] == REQUEST else []

    with played(tmp_path, recalling) as (path, heard), MetadataSession(path, FILESYSTEM) as session:
        session.call(TakeSequences(1))
    assert [read_acknowledgement(message) for message in heard if message[0] == RECALL] == [(3, Lease.NONE)]


def test_a_refusal_says_what_the_server_said(tmp_path):
    def refusing(message):
        return [answer_frame(message[1], message[2], 17, "there already")]

    with (
        pytest.raises(WorldError, match="there already"),
        played(tmp_path, refusing) as (path, _),
        MetadataSession(path, FILESYSTEM) as session,
    ):
        session.call(TakeSequences(1))


def test_a_server_that_does_not_welcome_says_why(tmp_path):
    with (
        pytest.raises(WorldError, match="another filesystem"),
        played(tmp_path, echo, welcome=False) as (path, _),
    ):
        MetadataSession(path, FILESYSTEM)


def test_sizes_are_numbers_and_large_enough_to_remove_from():
    assert parse_entries("100000,1000") == (1000, 100000)
    with pytest.raises(UsageError, match="too small"):
        parse_entries("10")
    with pytest.raises(UsageError, match="numbers of entries"):
        parse_entries("many")
