"""A process between a client and a server, for tests to stop (SIGSTOP: packets are held) or to kill (connections break).

`python forwarder.py LISTEN TARGET`; both are `unix:PATH` or `tcp:HOST:PORT`. Prints a line once it listens.
"""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path


def _address(text: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest
    host, _, port = rest.removeprefix("//").rpartition(":")
    return socket.AF_INET, (host, int(port))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def main() -> None:
    (family, place), (target_family, target) = map(_address, sys.argv[1:3])
    listener = socket.socket(family)
    if isinstance(place, str):
        Path(place).unlink(missing_ok=True)
        os.umask(0o077)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place)
    listener.listen()
    print("listening", flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.socket(target_family)
        try:
            server.connect(target)
        except OSError:
            client.close()
            continue
        for pair in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()


if __name__ == "__main__":
    main()
