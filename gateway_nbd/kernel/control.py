"""The supervisor's private socket: one JSON line asks, one JSON line answers, one question per connection.

Who may open the folder may ask; the folder is its owner's alone.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Final

from core.errors import BlockyardError, WorldError
from gateway_nbd.kernel.limits import CONTROL_DEADLINE_S, CONTROL_MESSAGE_BYTES

UNMAP: Final = "unmap"
_ASKING_DEADLINE_S: Final = 2.0


class ToldError(BlockyardError):
    """An error of another process, in its words and with its exit status."""

    def __init__(self, text: str, exit_status: int) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class ControlServer:
    """The supervisor's end. Its descriptor is readable when somebody asks."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(4)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> "Question | None":
        """Take the next question; None if the asker was not worth waiting for."""
        connection, _ = self._socket.accept()
        connection.settimeout(_ASKING_DEADLINE_S)
        try:
            return Question(connection, str(json.loads(_line(connection))["verb"]))
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return None

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


class Question:
    """One question that waits for its one answer."""

    def __init__(self, connection: socket.socket, verb: str) -> None:
        self.verb = verb
        self._connection = connection

    def answer(self, error: BlockyardError | None = None) -> None:
        """Say that it is done, or why not; an asker who has gone is no concern of ours."""
        reply = {} if error is None else {"error": str(error), "exit_status": error.exit_status}
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(reply).encode() + b"\n")
        self._connection.close()


def ask(path: Path, verb: str) -> None:
    """Ask the supervisor behind `path` and wait until it has done it. Raises ToldError with its error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONTROL_DEADLINE_S)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"verb": verb}).encode() + b"\n")
            reply = json.loads(_line(connection))
        except (OSError, ValueError) as error:
            raise WorldError(f"the supervisor at {path} gave no answer to {verb!r}: {error}") from error
    if "error" in reply:
        raise ToldError(str(reply["error"]), int(reply["exit_status"]))


def report(descriptor: int, device: str | None, error: BlockyardError | None) -> None:
    """Tell the process that waits at the other end of a pipe how the start went, and close the pipe."""
    reply = {"device": device} if error is None else {"error": str(error), "exit_status": error.exit_status}
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(reply).encode())
    os.close(descriptor)


def await_report(descriptor: int) -> str:
    """Wait for `report` at the other end of a pipe and give the device. Raises ToldError."""
    with os.fdopen(descriptor, "rb") as pipe:
        text = pipe.read(CONTROL_MESSAGE_BYTES)
    try:
        reply = json.loads(text)
    except ValueError:
        raise WorldError("the supervisor ended without a word") from None
    if "error" in reply:
        raise ToldError(str(reply["error"]), int(reply["exit_status"]))
    return str(reply["device"])


def _line(connection: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        more = connection.recv(4096)
        if not more or len(data) > CONTROL_MESSAGE_BYTES:
            raise ValueError("no whole line")
        data += more
    return bytes(data)
