"""The kernel's nbd generic netlink family: connect, reconfigure, disconnect, and its news of dead links.

Source: include/uapi/linux/nbd-netlink.h and drivers/block/nbd.c of Linux. Needs CAP_SYS_ADMIN.

An `NbdNetlink` belongs to one thread. It resolves file descriptors in the calling process: the kernel takes its own
reference to each socket, the caller keeps its own.
1. A socket counts as given only when `was_taken` says so: RECONFIGURE silently leaves sockets that it has no dead
   connection for, and answers success.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from core.errors import UsageError, WorldError

FAMILY: Final = "nbd"
GROUP: Final = "nbd_mc_group"
VERSION: Final = 1
CMD_CONNECT: Final = 1
CMD_DISCONNECT: Final = 2
CMD_RECONFIGURE: Final = 3
CMD_LINK_DEAD: Final = 4
_NETLINK_GENERIC: Final = 16
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1


class NoNbdDriverError(WorldError):
    """This kernel has no nbd driver, or it is not loaded."""


class NbdMessage(genlmsg):  # type: ignore[misc]
    """One request or answer of the family."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "hex"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]  # noqa: N801 - the name is the type's name in nla_map
        nla_flags = NLA_F_NESTED
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            nla_flags = NLA_F_NESTED
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


@dataclass(frozen=True)
class DeviceSettings:
    """What the kernel is told once about a device."""

    size_bytes: int
    block_bytes: int
    server_flags: int
    timeout_s: int
    dead_connection_timeout_s: int
    identifier: str


def connect_message(settings: DeviceSettings, descriptors: Sequence[int]) -> NbdMessage:
    """Ask for any free device that uses the sockets `descriptors`."""
    return _message(
        CMD_CONNECT,
        ("NBD_ATTR_SIZE_BYTES", settings.size_bytes),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", settings.block_bytes),
        ("NBD_ATTR_TIMEOUT", settings.timeout_s),
        ("NBD_ATTR_SERVER_FLAGS", settings.server_flags),
        ("NBD_ATTR_CLIENT_FLAGS", 0),
        _sockets(descriptors),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", settings.dead_connection_timeout_s),
        ("NBD_ATTR_BACKEND_IDENTIFIER", settings.identifier),
    )


def reconnect_message(index: int, identifier: str, descriptors: Sequence[int]) -> NbdMessage:
    """Put the sockets `descriptors` in the place of dead ones."""
    return _message(
        CMD_RECONFIGURE,
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_BACKEND_IDENTIFIER", identifier),
        _sockets(descriptors),
    )


def resize_message(index: int, identifier: str, size_bytes: int) -> NbdMessage:
    """Give a device in use another size."""
    return _message(
        CMD_RECONFIGURE,
        ("NBD_ATTR_INDEX", index),
        ("NBD_ATTR_BACKEND_IDENTIFIER", identifier),
        ("NBD_ATTR_SIZE_BYTES", size_bytes),
    )


def disconnect_message(index: int) -> NbdMessage:
    """Take a device down; what is still in flight fails."""
    return _message(CMD_DISCONNECT, ("NBD_ATTR_INDEX", index))


def was_taken(connection: socket.socket) -> bool:
    """Tell whether the kernel's driver holds `connection`: it puts its request timeout on every socket it takes."""
    seconds, microseconds = struct.unpack("ll", connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16))
    return bool(seconds or microseconds)


class NbdNetlink:
    """Talk to the family; `close` it, or use it as a context."""

    def __init__(self) -> None:
        """Raise NoNbdDriverError where the family does not exist."""
        self._socket = GenericNetlinkSocket()
        # The absence of the family is told by the error below, in our words.
        logging.getLogger("pyroute2.netlink.generic").setLevel(logging.CRITICAL)
        try:
            self._socket.bind(FAMILY, NbdMessage)
        except NetlinkError as error:
            self._socket.close()
            if error.code in (errno.ENOENT, errno.ENOTSUP):
                raise NoNbdDriverError("this kernel offers no generic netlink family 'nbd'") from error
            raise translated(error, "finding the netlink family nbd") from error
        self._news: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the sockets back."""
        self._socket.close()
        if self._news is not None:
            self._news.close()

    def connect(self, settings: DeviceSettings, connections: Sequence[socket.socket]) -> int:
        """Attach a free device and give its index (0 is /dev/nbd0)."""
        message = connect_message(settings, [connection.fileno() for connection in connections])
        answers = self._request(message, "connecting an nbd device")
        for answer in answers:
            index = answer.get_attr("NBD_ATTR_INDEX")
            if index is not None:
                return int(index)
        raise WorldError("the kernel connected an nbd device without saying which; see /sys/block/nbd*/pid")

    def reconnect(self, index: int, identifier: str, connection: socket.socket) -> bool:
        """Offer one socket in the place of a dead one; False if the kernel had no dead connection to replace."""
        message = reconnect_message(index, identifier, [connection.fileno()])
        self._request(message, f"giving /dev/nbd{index} a new connection")
        return was_taken(connection)

    def resize(self, index: int, identifier: str, size_bytes: int) -> None:
        """Change the size of a device in use; users of the device see it at once."""
        self._request(resize_message(index, identifier, size_bytes), f"resizing /dev/nbd{index}")

    def disconnect(self, index: int) -> None:
        """Take the device down. Write back what its users wrote before; requests still in flight fail."""
        self._request(disconnect_message(index), f"disconnecting /dev/nbd{index}")

    def subscribe(self) -> socket.socket:
        """Give a non-blocking socket that becomes readable when the kernel gives up any nbd connection."""
        if self._news is None:
            self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_GENERIC)
            self._news.bind((0, 0))
            self._news.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, self._socket.mcast_groups[GROUP])
        return self._news

    def _request(self, message: NbdMessage, doing: str) -> Sequence[NbdMessage]:
        try:
            return tuple(self._socket.nlm_request(message, self._socket.prid, NLM_F_REQUEST | NLM_F_ACK))
        except NetlinkError as error:
            raise translated(error, doing) from error


def translated(error: NetlinkError, doing: str) -> UsageError | WorldError:
    """Give the error that tells the user what the kernel's refusal means."""
    if error.code == errno.EPERM:
        return UsageError(f"{doing}: the kernel allows it to root only (CAP_SYS_ADMIN); use sudo")
    return WorldError(f"{doing}: the kernel answered {os.strerror(error.code)}; the last lines of dmesg say more")


def _message(command: int, *attributes: tuple[str, object]) -> NbdMessage:
    message = NbdMessage()
    message["cmd"] = command
    message["version"] = VERSION
    message["attrs"] = list(attributes)
    return message


def _sockets(descriptors: Sequence[int]) -> tuple[str, object]:
    items = [("NBD_SOCK_ITEM", {"attrs": [("NBD_SOCK_FD", descriptor)]}) for descriptor in descriptors]
    return ("NBD_ATTR_SOCKETS", {"attrs": items})
