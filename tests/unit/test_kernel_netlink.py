"""What goes to the kernel over netlink, byte by byte: include/uapi/linux/nbd-netlink.h is the judge."""

import errno
import socket
import struct

from pyroute2.netlink.exceptions import NetlinkError

from core.errors import UsageError, WorldError
from gateway_nbd.kernel import netlink

SETTINGS = netlink.DeviceSettings(
    size_bytes=1 << 40,
    block_bytes=4096,
    server_flags=0x16D,
    timeout_s=30,
    dead_connection_timeout_s=600,
    identifier="blockyard-1",
)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


def sockets(*descriptors: int) -> bytes:
    nested = 1 << 15
    items = (attribute(1 | nested, attribute(1, struct.pack("=I", descriptor))) for descriptor in descriptors)
    return attribute(7 | nested, b"".join(items))


def encoded(message: netlink.NbdMessage) -> bytes:
    message.encode()
    return bytes(message.data[16:])


def test_connect_carries_everything_the_kernel_must_know_and_every_socket():
    assert encoded(netlink.connect_message(SETTINGS, [5, 6])) == (
        struct.pack("=BBH", 1, 1, 0)
        + number(2, 1 << 40)
        + number(3, 4096)
        + number(4, 30)
        + number(5, 0x16D)
        + number(6, 0)
        + sockets(5, 6)
        + number(8, 600)
        + attribute(10, b"blockyard-1\0")
    )


def test_reconnect_names_the_device_its_owner_and_the_socket():
    assert encoded(netlink.reconnect_message(3, "blockyard-1", [9])) == (
        struct.pack("=BBH", 3, 1, 0) + attribute(1, struct.pack("=I", 3)) + attribute(10, b"blockyard-1\0") + sockets(9)
    )


def test_resize_changes_nothing_but_the_size():
    assert encoded(netlink.resize_message(3, "blockyard-1", 1 << 41)) == (
        struct.pack("=BBH", 3, 1, 0)
        + attribute(1, struct.pack("=I", 3))
        + attribute(10, b"blockyard-1\0")
        + number(2, 1 << 41)
    )


def test_disconnect_names_the_device():
    assert encoded(netlink.disconnect_message(3)) == struct.pack("=BBH", 2, 1, 0) + attribute(1, struct.pack("=I", 3))


def test_the_kernels_answer_tells_the_index():
    data = struct.pack("=BBH", 1, 1, 0) + attribute(1, struct.pack("=I", 7))
    message = netlink.NbdMessage(struct.pack("=IHHII", 16 + len(data), 30, 0, 1, 0) + data)
    message.decode()
    assert message.get_attr("NBD_ATTR_INDEX") == 7


def test_a_socket_counts_as_taken_once_it_has_the_drivers_timeout():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not netlink.was_taken(ours)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 30, 0))
        assert netlink.was_taken(ours)


def test_a_refusal_for_want_of_rights_says_who_may():
    error = netlink.translated(NetlinkError(errno.EPERM), "connecting")
    assert isinstance(error, UsageError)
    assert "root" in str(error)


def test_any_other_refusal_names_the_kernels_reason():
    error = netlink.translated(NetlinkError(errno.EINVAL), "connecting")
    assert isinstance(error, WorldError)
    assert "Invalid argument" in str(error)
