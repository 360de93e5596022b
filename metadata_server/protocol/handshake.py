"""How a connection begins (docs/metadata-protocol.md, "Handshake"): the client says who it is, the server whether it knows it. Pure.

A new session says session 0 and an empty token; one that goes on says both as the welcome to its first hello gave them.
"""

from typing import Final, NamedTuple

from metadata_server.protocol.framing import MalformedError, frame
from metadata_server.protocol.messages import HELLO, INT_MAX, valid_client_name

MAGIC: Final = "blockyard-metadata"
VERSION: Final = 1
TOKEN_BYTES: Final = 32


class Hello(NamedTuple):
    """What a client begins with."""

    version: int
    filesystem: bytes
    client: str
    session: int
    token: bytes


class Welcome(NamedTuple):
    """What the server answers. `claims_wanted`: it was restarted since and asks the session what it holds."""

    session: int
    epoch: int
    token: bytes
    lease_s: float
    claims_wanted: bool


def hello_frame(hello: Hello) -> bytes:
    """Begin a connection."""
    return frame((HELLO, MAGIC, *hello))


def welcome_frame(welcome: Welcome) -> bytes:
    """Answer a hello."""
    return frame((HELLO, VERSION, *welcome))


def read_hello(message: tuple[object, ...]) -> Hello:
    """Give the client's hello; MalformedError for anything else. The version is the caller's to judge."""
    if message[0] != HELLO or len(message) < 3 or message[1] != MAGIC or type(message[2]) is not int:
        raise MalformedError("a connection begins with a hello of this protocol")
    if message[2] != VERSION:
        return Hello(message[2], b"", "", 0, b"")
    if len(message) == 7:
        _, _, version, filesystem, client, session, token = message
        if (
            type(version) is int
            and type(filesystem) is bytes
            and len(filesystem) <= 64
            and type(client) is str
            and valid_client_name(client)
            and type(session) is int
            and 0 <= session <= INT_MAX
            and type(token) is bytes
            and len(token) == (TOKEN_BYTES if session else 0)
        ):
            return Hello(version, filesystem, client, session, token)
    raise MalformedError("a hello is version, filesystem, client name, session and token")


def read_welcome(message: tuple[object, ...]) -> Welcome:
    """Give the server's welcome."""
    if len(message) == 7 and message[0] == HELLO and message[1] == VERSION:
        _, _, session, epoch, token, lease_s, claims_wanted = message
        if (
            type(session) is int
            and type(epoch) is int
            and type(token) is bytes
            and isinstance(lease_s, float)
            and type(claims_wanted) is bool
        ):
            return Welcome(session, epoch, token, lease_s, claims_wanted)
    raise MalformedError("a welcome is version, session, epoch, token, lease time and whether claims are wanted")
