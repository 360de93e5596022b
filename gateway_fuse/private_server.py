"""A metadata server for the mounts of one user on one machine: started by the first mount that finds none, gone with the last session.

Its socket and database have places that are known by the filesystem's id. A lock file beside the socket makes mounts that start at the
same moment start one server: who has the lock looks whether somebody answers, and starts a server if not. The lock is held until clients
can connect. The server has no terminal: it writes to a log, whose end is shown if it does not come up. A passphrase reaches it by a pipe.
"""

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from core.errors import WorldError
from gateway_fuse import limits
from metadata_server.client.places import ServerPlaces

_LOG_SHOWN_BYTES: Final = 2000
_UNIX_PATH_BYTES: Final = 107


def ensure_server(
    reference: str,
    places: ServerPlaces,
    options: Sequence[str],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    passphrase: bytes | None = None,
) -> str:
    """Return the address of a server that answers, after starting one if there is none. WorldError with its last words if it fails."""
    if len(os.fsencode(places.socket)) > _UNIX_PATH_BYTES:
        raise WorldError(f"{places.socket} is too long for a socket; set XDG_RUNTIME_DIR to a shorter directory")
    places.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(places.socket.with_suffix(".lock")):
        if not answers(places.socket):
            program = [
                sys.executable,
                "-m",
                "core.cli",
                *([] if config is None else ["--config", str(config.absolute())]),
            ]
            _start(reference, places, options, program, environment, passphrase)
    return places.address


def answers(path: Path) -> bool:
    """Say whether somebody takes connections at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(limits.SERVER_START_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(
    reference: str,
    places: ServerPlaces,
    options: Sequence[str],
    program: Sequence[str],
    environment: Mapping[str, str] | None,
    passphrase: bytes | None,
) -> None:
    places.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    passed = [writing]
    command = [*program, "metadata-server", reference, "--listen", places.address, "--data-dir", str(places.data_dir)]
    command += ["--end-with-last-session", "--ready-fd", str(writing), *options]
    secret = _pipe_with(passphrase) if passphrase is not None else None
    if secret is not None:
        passed.append(secret)
        command += ["--passphrase-fd", str(secret)]
    try:
        with places.log.open("ab") as log:
            began = log.tell()
            server = subprocess.Popen(  # noqa: S603  # a list, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
                cwd="/",
                env=environment,
            )
    finally:
        for descriptor in passed:
            os.close(descriptor)
    try:
        if not _is_ready(reading):
            raise WorldError(f"the metadata server did not come up: {_last_words(places.log, began, server)}")
    finally:
        os.close(reading)


def _pipe_with(secret: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, secret)  # a passphrase is shorter than a pipe is deep
    os.close(writing)
    return reading


def _is_ready(reading: int) -> bool:
    deadline = time.monotonic() + limits.SERVER_START_S
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    left_ms = max(0.0, deadline - time.monotonic()) * 1000
    return bool(poll.poll(left_ms)) and bool(os.read(reading, 4096))


def _last_words(log: Path, began: int, server: "subprocess.Popen[bytes]") -> str:
    server.terminate()
    server.wait(limits.SERVER_START_S)
    with log.open("rb") as file:
        file.seek(max(began, log.stat().st_size - _LOG_SHOWN_BYTES))
        words = " ".join(file.read().decode(errors="replace").split())
    return words.removeprefix("blockyard: ") or f"it said nothing, see {log}"
