"""What both ends of a TCP connection need for TLS: 1.3, certificates of one authority on both sides. Stateless.

`directory` is what `blockyard tls init` or `blockyard tls issue --out` made.
"""

import ssl
from pathlib import Path

from core.errors import NotFoundError, UsageError, WorldError
from metadata_server.certificates import CA, Use


def server_context(directory: Path) -> ssl.SSLContext:
    """Give the context of a server: it shows `server.crt`, and takes only clients of its authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _loaded(context, directory, Use.SERVER)


def client_context(directory: Path) -> ssl.SSLContext:
    """Give the context of a client: it shows `client.crt`, and takes only a server of its authority that is the host it asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _loaded(context, directory, Use.CLIENT)


def _loaded(context: ssl.SSLContext, directory: Path, use: Use) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key, authority = (directory / name for name in (f"{use.value}.crt", f"{use.value}.key", f"{CA}.crt"))
    for path in (certificate, key, authority):
        if not path.exists():
            raise NotFoundError(
                f"{path} is not there; `blockyard tls init` and `blockyard tls issue --{use.value}` make what a {use.value} needs"
            )
    try:
        if key.stat().st_mode & 0o077:
            raise UsageError(f"{key} is open to others; `chmod 600 {key}` first")
        context.load_verify_locations(cafile=authority)
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise UsageError(f"{directory} holds no usable {use.value} certificate: {error.reason or error}") from error
    except OSError as error:
        raise WorldError(f"cannot read the certificates in {directory}: {error.strerror}") from error
    return context
