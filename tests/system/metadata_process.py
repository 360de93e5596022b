"""A metadata server for tests: `python metadata_process.py DATABASE-DIRECTORY ADDRESS LEASE-SECONDS [TLS-DIRECTORY]`."""

import logging
import os
import sys
import time
from pathlib import Path

import trio

from core.world import World
from metadata_server.engine.sqlite import SqliteEngine
from metadata_server.protocol.address import parse_address
from metadata_server.runtime.listeners import listen
from metadata_server.runtime.server import Server, serve
from metadata_server.tree.tree import Tree


def main() -> None:
    """Serve until SIGTERM; say where on standard output."""
    directory, address, lease_s, *tls = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    context = None
    if tls:
        from metadata_server.tls import server_context

        context = server_context(Path(tls[0]))
    Path(directory).mkdir(mode=0o700, exist_ok=True)
    engine = SqliteEngine(Path(directory), filesystem=b"f" * 16, random_bytes=os.urandom)
    try:
        tree = Tree(engine, time.time_ns)
        listener = listen(parse_address(address), context)

        def started(_: Server) -> None:
            print(listener.address, flush=True)

        trio.run(lambda: serve(tree, [listener], lease_s=float(lease_s), world=World.real(), started=started))
    finally:
        engine.close()


if __name__ == "__main__":
    main()
