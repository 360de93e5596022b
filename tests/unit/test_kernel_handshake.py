"""The NBD handshake as bytes in and bytes out."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_nbd.kernel.handshake import Ask, Export, ExportFlags, Handshake, HandshakeError

HELLO = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
FLAGS = ExportFlags.HAS_FLAGS | ExportFlags.SEND_FLUSH | ExportFlags.CAN_MULTI_CONN


def reply(kind: int, data: bytes = b"", option: int = 7) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def told(size_bytes: int = 1 << 30, option: int = 7) -> bytes:
    return (
        reply(3, struct.pack(">HQH", 0, size_bytes, FLAGS), option)
        + reply(3, struct.pack(">HIII", 3, 1, 4096, 1 << 25), option)
        + reply(1, b"", option)
    )


def test_a_go_handshake_sends_golden_bytes_and_learns_size_flags_and_block_sizes():
    handshake = Handshake("disk", Ask.GO)
    asked = handshake.receive(HELLO)
    assert asked.hex(" ") == (
        "00 00 00 03 49 48 41 56 45 4f 50 54 00 00 00 07 00 00 00 0c 00 00 00 04 64 69 73 6b 00 01 00 03"
    )
    assert handshake.export is None
    assert handshake.receive(told()) == b""
    assert handshake.export == Export(1 << 30, FLAGS, 1, 4096, 1 << 25)


def test_looking_at_an_export_ends_with_an_abort():
    handshake = Handshake("", Ask.INFO)
    handshake.receive(HELLO)
    assert handshake.receive(told(option=6)) == b"IHAVEOPT" + struct.pack(">II", 2, 0)
    assert handshake.export is not None


def test_bytes_may_come_one_by_one():
    handshake, sent = Handshake("disk", Ask.GO), b""
    for byte in HELLO + told(4096):
        sent += handshake.receive(bytes([byte]))
    assert handshake.export is not None
    assert handshake.export.size_bytes == 4096
    assert sent.startswith(struct.pack(">I", 3))


def test_information_that_nobody_asked_for_is_passed_over():
    handshake = Handshake("disk", Ask.GO)
    handshake.receive(HELLO)
    handshake.receive(reply(3, struct.pack(">H", 1) + b"a name") + told())
    assert handshake.export is not None


def test_a_refusal_is_told_in_words_with_the_servers_text():
    handshake = Handshake("disk", Ask.GO)
    handshake.receive(HELLO)
    with pytest.raises(HandshakeError, match=r"'disk' refused: the server has no such export.*\(gone\)"):
        handshake.receive(reply((1 << 31) + 6, b"gone"))


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request", "not an NBD server"),
        (b"NBDMAGICIHAVEOPT" + struct.pack(">H", 0), "lacks the fixed newstyle"),
        (HELLO + b"\0" * 20, "no reply to option GO"),
        (HELLO + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30), "longer than"),
        (HELLO + reply(1), "without telling the export's size"),
        (HELLO + reply(77), "unknown type 77"),
        (HELLO + reply(3, b"\0\0\0"), "information of type 0 with 3 bytes"),
        (HELLO + reply(3, b"\0"), "with 1 bytes"),
        (HELLO + told() + b"?", "nobody asked for"),
    ],
)
def test_what_is_no_handshake_is_refused_with_a_sentence(said, complaint):
    with pytest.raises(HandshakeError, match=complaint):
        Handshake("disk", Ask.GO).receive(said)


@given(st.lists(st.binary(min_size=1, max_size=60)), st.booleans())
def test_no_bytes_of_a_server_break_it_otherwise(chunks, greeted):
    handshake = Handshake("disk", Ask.GO)
    try:
        if greeted:
            handshake.receive(HELLO)
        for chunk in chunks:
            handshake.receive(chunk)
    except HandshakeError:
        pass
