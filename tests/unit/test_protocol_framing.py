"""Messages on a stream: cut as they come, never more than their bound, and nothing but well-formed ones."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UsageError
from metadata_server.limits import MESSAGE_BYTES
from metadata_server.protocol import requests
from metadata_server.protocol.address import TcpAddress, UnixAddress, parse_address
from metadata_server.protocol.arguments import arguments_of, decode_request
from metadata_server.protocol.framing import LENGTH_BYTES, MalformedError, Splitter, frame, parse
from metadata_server.protocol.handshake import Hello, Welcome, hello_frame, read_hello, read_welcome, welcome_frame
from metadata_server.protocol.messages import (
    acknowledge_frame,
    claim_frames,
    read_acknowledgement,
    read_answer,
    read_claim,
    read_recall,
    read_relocated,
    read_request,
    recall_frame,
    relocated_frames,
    request_frame,
)
from metadata_server.protocol.model import ClosedSegment, Lease, Update

INT = st.integers(-(2**63) + 1, 2**63 - 1)
MAYBE = st.none() | INT
UPDATES = st.builds(
    Update, INT, st.none() | st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), INT, INT, st.binary()
)
INODE = st.integers(1, 2**63 - 1)
REQUESTS = st.one_of(
    st.builds(requests.Lookup, INT, st.binary()),
    st.builds(requests.Acquire, INT, st.integers(1, 2)),
    st.builds(requests.ReadDirectory, INT, INT, st.integers(1, 1024)),
    st.builds(requests.Make, INT, st.binary(), INT, INT, INT, INT, st.none() | st.binary()),
    st.builds(requests.Link, INT, INT, st.binary()),
    st.builds(requests.Remove, INT, st.binary(), st.booleans(), st.booleans()),
    st.builds(requests.Rename, INT, st.binary(), INT, st.binary(), INT, st.booleans()),
    st.builds(requests.SetAttributes, INT, MAYBE, MAYBE, MAYBE, MAYBE, MAYBE),
    st.builds(requests.ReadMap, INT, st.integers(0, 2**40), st.integers(1, 256)),
    st.builds(requests.Commit, st.lists(UPDATES), st.lists(st.builds(ClosedSegment, INT, INT, INT)), st.booleans()),
    st.builds(requests.GetXattrs, INT),
    st.builds(requests.SetXattr, INT, st.binary(), st.binary()),
    st.builds(requests.RemoveXattr, INT, st.binary()),
    st.builds(requests.Release, st.lists(INODE)),
    st.builds(requests.Touch, st.lists(st.tuples(INT, INT))),
    st.builds(requests.Space),
    st.builds(requests.TakeSequences, INT),
    st.builds(requests.SetQuota, INT, MAYBE, MAYBE),
    st.builds(requests.GetQuota, INT),
    st.builds(requests.Sync),
    st.builds(requests.ListSessions),
    st.builds(requests.Evict, INT),
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=9)
    | st.text(max_size=9)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.binary(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_what_is_framed_comes_out_as_it_was_however_it_is_cut(contents: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame([7, content]) for content in contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=9)))
    splitter = Splitter()
    bodies: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        bodies += splitter.feed(stream[start:end])
    assert [parse(body) for body in bodies] == [(7, content) for content in contents]
    assert splitter.unfinished == 0


def test_a_length_beyond_the_bound_is_refused_before_a_byte_of_it_is_kept() -> None:
    for splitter, length in ((Splitter(), MESSAGE_BYTES + 1), (Splitter(100), 101), (Splitter(), 2**32 - 1)):
        with pytest.raises(MalformedError, match="at most"):
            splitter.feed(struct.pack(">I", length))
    with pytest.raises(ValueError, match="does not fit"):
        frame([bytes(MESSAGE_BYTES)])


@given(st.binary(max_size=80))
def test_noise_is_malformed_or_an_array_that_begins_with_a_kind(noise: bytes) -> None:
    try:
        message = parse(noise)
    except MalformedError:
        return
    assert type(message) is tuple and type(message[0]) is int


@given(REQUESTS, st.integers(0, 63), st.integers(1, 2**63 - 1))
def test_every_request_arrives_as_it_was_made(request_made: requests.Request[object], slot: int, number: int) -> None:
    body = request_frame(slot, number, request_made.opcode, arguments_of(request_made))[LENGTH_BYTES:]
    assert read_request(parse(body))[:3] == (slot, number, request_made.opcode)
    assert decode_request(*read_request(parse(body))[2:]) == request_made


@given(st.integers(-1, 25), st.lists(PLAIN, max_size=7))
def test_arguments_of_other_kinds_are_malformed_or_a_request(opcode: int, arguments: list[object]) -> None:
    plain = parse(frame([0, *arguments])[LENGTH_BYTES:])[1:]
    try:
        assert decode_request(opcode, plain).opcode == opcode
    except MalformedError as error:
        assert str(error)


@given(st.lists(PLAIN, max_size=8), st.integers(0, 9))
def test_every_kind_of_message_is_read_whole_or_refused(fields: list[object], kind: int) -> None:
    message = parse(frame([kind, *fields])[LENGTH_BYTES:])
    for read in (
        read_hello, read_welcome, read_request, read_answer, read_recall, read_acknowledgement, read_claim, read_relocated,
    ):  # fmt: skip
        try:
            read(message)  # type: ignore[operator]
        except MalformedError as error:
            assert str(error)


def test_messages_say_what_they_were_made_of() -> None:
    hello = Hello(1, b"fs", "a client", 5, b"t" * 32)
    assert read_hello(parse(hello_frame(hello)[LENGTH_BYTES:])) == hello
    welcome = Welcome(5, 6, b"t" * 32, 15.0, True)
    assert read_welcome(parse(welcome_frame(welcome)[LENGTH_BYTES:])) == welcome
    assert read_recall(parse(recall_frame(9, 8, b"n", Lease.READ)[LENGTH_BYTES:])) == (9, 8, b"n", Lease.READ)
    assert read_acknowledgement(parse(acknowledge_frame(9, Lease.WRITE)[LENGTH_BYTES:])) == (9, Lease.WRITE)
    claims = [(inode, Lease.READ) for inode in range(1, 40000)]
    assert [each for body in claim_frames(claims) for each in read_claim(parse(body[LENGTH_BYTES:]))] == claims
    (body,) = relocated_frames([1, 2, 3])
    assert read_relocated(parse(body[LENGTH_BYTES:])) == (1, 2, 3)


def test_addresses_are_unix_paths_or_tcp_hosts_with_a_port() -> None:
    assert isinstance(parse_address("unix:/run/x"), UnixAddress)
    assert parse_address("tcp://host:99") == TcpAddress("host", 99)
    for text in ("unix:/run/x", "tcp://host:99", "tcp://[::1]:7"):
        assert str(parse_address(text)) == text
    for text in (
        "",
        "unix:",
        "unix:" + "x" * 108,
        "tcp://host",
        "http://host:1",
        "tcp://host:1/path",
        "tcp://host:99999",
        "host:1",
    ):
        with pytest.raises(UsageError):
            parse_address(text)
