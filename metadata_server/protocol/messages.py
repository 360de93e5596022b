"""What may stand in a message, both ways (docs/metadata-protocol.md, "Messages"). Each is an array whose first field is its kind.

Pure. `read_…` functions check every field before they give it: MalformedError, and nothing has happened.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from metadata_server.limits import CLIENT_NAME_BYTES, INODES_PER_MESSAGE, SEQUENCES_PER_NOTICE, SLOTS
from metadata_server.protocol.framing import MalformedError, frame
from metadata_server.protocol.model import Lease

INT_MAX: Final = (1 << 63) - 1

HELLO: Final = 0
"""Client: which session. Server: its welcome."""
REQUEST: Final = 1
"""Client: an operation in a slot. Server: its answer."""
RECALL: Final = 2
"""Server: give a lease back. Client: what it kept."""
HEARTBEAT: Final = 3
CLAIM: Final = 4
"""Client to a server that was restarted: what it holds."""
RESUMED: Final = 5
"""Client: after claims and requests sent again, this session goes on."""
GOODBYE: Final = 6
"""Client: end this session. Server: it has ended."""
RELOCATED: Final = 7
"""Server: these segments' blocks stand elsewhere now."""
EXPIRED: Final = 8
"""Server: this session has ended. Last message on its connection."""
CLOSING: Final = 9
"""Server: why it closes this connection. Last message on it."""
FLUSH: Final = 10
"""Server: bring what you buffer to where others can read it. Client: done, as well as it could be."""


class Recall(NamedTuple):
    """Ask the session to go down to `keep` on an inode; with a name, only what is known of this name of the directory is stale."""

    recall: int
    inode: int
    name: bytes | None
    keep: Lease


class Answer(NamedTuple):
    """The answer to a request: `errno` 0 and its value, or an errno and a text."""

    slot: int
    number: int
    errno: int
    value: object


def request_frame(slot: int, number: int, opcode: int, arguments: tuple[object, ...]) -> bytes:
    """Ask for an operation."""
    return frame((REQUEST, slot, number, opcode, arguments))


def answer_frame(slot: int, number: int, errno: int, value: object) -> bytes:
    """Answer a request."""
    return frame((REQUEST, slot, number, errno, value))


def recall_frame(recall: int, inode: int, name: bytes | None, keep: Lease) -> bytes:
    """Recall a lease."""
    return frame((RECALL, recall, inode, name, int(keep)))


def acknowledge_frame(recall: int, kept: Lease) -> bytes:
    """Answer a recall."""
    return frame((RECALL, recall, int(kept)))


def heartbeat_frame(number: int) -> bytes:
    """Say that the session lives; the same number comes back."""
    return frame((HEARTBEAT, number))


def claim_frames(claims: Iterable[tuple[int, Lease]]) -> list[bytes]:
    """Claim leases, in as many messages as it takes."""
    claimed = [(inode, int(lease)) for inode, lease in claims]
    return [
        frame((CLAIM, claimed[start : start + INODES_PER_MESSAGE]))
        for start in range(0, len(claimed), INODES_PER_MESSAGE)
    ]


def relocated_frames(sequences: Iterable[int]) -> list[bytes]:
    """Tell of relocated segments, in as many messages as it takes."""
    every = list(sequences)
    return [
        frame((RELOCATED, every[start : start + SEQUENCES_PER_NOTICE]))
        for start in range(0, len(every), SEQUENCES_PER_NOTICE)
    ]


def flush_frame(number: int, *, commit: bool) -> bytes:
    """Ask a session to publish what it committed, and with `commit` to commit all that it buffers before."""
    return frame((FLUSH, number, commit))


def flushed_frame(number: int) -> bytes:
    """Answer `flush_frame`."""
    return frame((FLUSH, number))


RESUMED_FRAME: Final = frame((RESUMED,))
GOODBYE_FRAME: Final = frame((GOODBYE,))


def expired_frame(why: str) -> bytes:
    """Tell that the session has ended."""
    return frame((EXPIRED, why))


def closing_frame(errno: int, why: str) -> bytes:
    """Tell why this connection is closed."""
    return frame((CLOSING, errno, why))


def read_request(message: tuple[object, ...]) -> tuple[int, int, int, tuple[object, ...]]:
    """Give slot, number, opcode and arguments."""
    if len(message) == 5:
        _, slot, number, opcode, arguments = message
        if (
            type(slot) is int
            and type(number) is int
            and type(opcode) is int
            and type(arguments) is tuple
            and 0 <= slot < SLOTS
            and 0 < number <= INT_MAX
        ):
            return slot, number, opcode, arguments
    raise MalformedError(f"a request is slot (0 to {SLOTS - 1}), number, opcode and arguments")


def read_answer(message: tuple[object, ...]) -> Answer:
    """Give the answer to a request."""
    if len(message) == 5:
        _, slot, number, errno, value = message
        if type(slot) is int and type(number) is int and type(errno) is int and (not errno or type(value) is str):
            return Answer(slot, number, errno, value)
    raise MalformedError("an answer is slot, number, errno and value")


def read_recall(message: tuple[object, ...]) -> Recall:
    """Give the recall that the server sent."""
    if len(message) == 5:
        _, recall, inode, name, keep = message
        if (
            type(recall) is int
            and type(inode) is int
            and (name is None or type(name) is bytes)
            and type(keep) is int
            and 0 <= keep <= 2
        ):
            return Recall(recall, inode, name, Lease(keep))
    raise MalformedError("a recall is its number, inode, name and what may be kept")


def read_acknowledgement(message: tuple[object, ...]) -> tuple[int, Lease]:
    """Give the recall's number and the lease that was kept."""
    if len(message) == 3:
        _, recall, kept = message
        if type(recall) is int and type(kept) is int and 0 <= kept <= 3:
            return recall, Lease(kept)
    raise MalformedError("the answer to a recall is its number and the lease that was kept")


def read_heartbeat(message: tuple[object, ...]) -> int:
    """Give the heartbeat's number."""
    if len(message) == 2 and type(message[1]) is int and 0 <= message[1] <= INT_MAX:
        return message[1]
    raise MalformedError("a heartbeat is its number")


def read_flush(message: tuple[object, ...]) -> tuple[int, bool]:
    """Give the number of a wish to flush, and whether to commit."""
    if len(message) == 3 and type(message[1]) is int and 0 <= message[1] <= INT_MAX and type(message[2]) is bool:
        return message[1], message[2]
    raise MalformedError("a wish to flush is its number and whether to commit")


def read_flushed(message: tuple[object, ...]) -> int:
    """Give the number of the wish that was answered."""
    if len(message) == 2 and type(message[1]) is int and 0 <= message[1] <= INT_MAX:
        return message[1]
    raise MalformedError("the answer to a wish to flush is its number")


def read_claim(message: tuple[object, ...]) -> list[tuple[int, Lease]]:
    """Give the claimed leases."""
    if len(message) == 2 and type(message[1]) is tuple and len(message[1]) <= INODES_PER_MESSAGE:
        return [_claim(each) for each in message[1]]
    raise MalformedError(f"a claim is at most {INODES_PER_MESSAGE} pairs of inode and lease")


def _claim(pair: object) -> tuple[int, Lease]:
    if type(pair) is tuple and len(pair) == 2:
        inode, lease = pair
        if type(inode) is int and 0 < inode <= INT_MAX and type(lease) is int and 1 <= lease <= 3:
            return inode, Lease(lease)
    raise MalformedError("a claim is an inode and READ (1), WRITE (2) or OPEN (3)")


def read_relocated(message: tuple[object, ...]) -> tuple[int, ...]:
    """Give the sequences of relocated segments."""
    if len(message) == 2 and type(message[1]) is tuple and all(type(each) is int for each in message[1]):
        return message[1]
    raise MalformedError("a notice of relocated segments is a list of their numbers")


def read_text(message: tuple[object, ...], fields: int) -> str:
    """Give the text that ends a message of so many fields; nothing if there is none."""
    return message[fields - 1] if len(message) == fields and isinstance(message[fields - 1], str) else ""  # type: ignore[return-value]


def read_nothing(message: tuple[object, ...]) -> None:
    """Check a message that is its kind alone."""
    if len(message) != 1:
        raise MalformedError(f"a message of kind {message[0]} has nothing but its kind")


def valid_client_name(name: object) -> bool:
    """Tell whether a client may be called this."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="surrogateescape")) <= CLIENT_NAME_BYTES
        and name.isprintable()
    )
