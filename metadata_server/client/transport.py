"""Connecting to a metadata server, up to its welcome."""

import errno
import os
import socket
import ssl

import trio

from metadata_server.client.errors import ServerRefusedError, ServerUnreachableError
from metadata_server.limits import CONNECT_S
from metadata_server.protocol.address import Address, UnixAddress
from metadata_server.protocol.framing import MalformedError, Splitter, parse
from metadata_server.protocol.handshake import Hello, Welcome, hello_frame, read_welcome
from metadata_server.protocol.messages import CLOSING, HELLO, read_text
from metadata_server.protocol.wire import PlainWire, TlsWire, Wire


class SessionEndedError(Exception):
    """The server does not know the session of a hello any more."""


async def connect(
    address: Address, context: ssl.SSLContext | None, hello: Hello
) -> tuple[Wire, Splitter, Welcome, list[bytes]]:
    """Connect and say hello; give the connection, the welcome, and the bodies that came right behind it.

    ServerUnreachableError: try again. ServerRefusedError: the server does not want this client. SessionEndedError. A cancellation leaves
    no connection behind.
    """
    wire: Wire | None = None
    try:
        with trio.fail_after(CONNECT_S):
            wire = await _open(address, context)
            wire.send(hello_frame(hello))
            splitter = Splitter()
            bodies: list[bytes] = []
            while not bodies:
                await (trio.lowlevel.wait_writable if wire.unsent else trio.lowlevel.wait_readable)(wire.fileno())
                wire.flush()
                data = wire.receive()
                if data == b"":
                    raise ServerUnreachableError(f"the metadata server at {address} closed the connection")
                if data:
                    bodies = splitter.feed(data)
        message = parse(bodies[0])
        if message[0] == CLOSING:
            _refused(address, message)
        if message[0] != HELLO:
            raise ServerRefusedError(f"what listens at {address} is no metadata server")
        connected, wire = wire, None
        return connected, splitter, read_welcome(message), bodies[1:]
    except trio.TooSlowError as error:
        raise ServerUnreachableError(
            f"the metadata server at {address} did not answer within {CONNECT_S:g} s"
        ) from error
    except MalformedError as error:
        raise ServerRefusedError(f"what listens at {address} is no metadata server: {error}") from error
    except ssl.SSLError as error:
        raise ServerRefusedError(f"TLS with the metadata server at {address} failed: {error}") from error
    except OSError as error:
        raise ServerUnreachableError(f"cannot reach the metadata server at {address}: {error}") from error
    finally:
        if wire is not None:
            wire.close()


def _refused(address: Address, message: tuple[object, ...]) -> None:
    why = read_text(message, 3)
    if len(message) == 3 and message[1] == errno.ESTALE:
        raise SessionEndedError
    if len(message) == 3 and message[1] in (errno.EUSERS, errno.ENOSPC, errno.ETIMEDOUT):
        raise ServerUnreachableError(f"the metadata server at {address}: {why}")
    raise ServerRefusedError(f"the metadata server at {address} refuses: {why}")


async def _open(address: Address, context: ssl.SSLContext | None) -> Wire:
    if isinstance(address, UnixAddress):
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connected.setblocking(False)
            connected.connect(os.fspath(address.path))
        except BaseException:
            connected.close()
            raise
        await trio.lowlevel.checkpoint()
        return PlainWire(connected)
    if context is None:
        raise ServerRefusedError(f"{address} is reached only with mutual TLS: give --tls-dir")
    stream = await trio.open_tcp_stream(address.host or "localhost", address.port)
    connected = socket.socket(fileno=stream.socket.detach())
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return TlsWire(PlainWire(connected), context, server_name=address.host or "localhost")
