"""Errors of the client that are not an operation's."""

import errno

from core.errors import WorldError


class SessionLostError(WorldError):
    """The session that this request belonged to has ended; whether the request took effect is unknown. A new session has begun."""

    errno = errno.EIO


class ServerUnreachableError(WorldError):
    """No metadata server answered within the time there is for it. Whether a request took effect is unknown."""

    errno = errno.EIO


class ServerRefusedError(WorldError):
    """The metadata server does not take this client; its words say why."""

    errno = errno.ECONNREFUSED
