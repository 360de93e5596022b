"""A small certificate authority of one's own: who may be a metadata server, and who may use one. Stateless but for the files.

A directory holds `ca.crt` and, where certificates are made, `ca.key`; a server's has `server.crt` and `server.key`, a client's
`client.crt` and `client.key`. Keys are made here, written with mode 0600, and never stand in a text.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import AlreadyExistsError, NotFoundError, UsageError, WorldError
from core.world import World

CA: Final = "ca"
CA_DAYS: Final = 3653
LEAF_DAYS: Final = 825
_SKEW: Final = timedelta(hours=1)
"""Certificates are good a little before they were made: clocks differ."""
_COMMON_NAME_CHARACTERS: Final = 64


class Use(Enum):
    """What a certificate is for; the value names its files."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(directory: Path, name: str, world: World, days: int = CA_DAYS) -> None:
    """Make a certificate authority in `directory`; AlreadyExistsError if one is there."""
    _make_directory(directory)
    if (directory / f"{CA}.crt").exists() or (directory / f"{CA}.key").exists():
        raise AlreadyExistsError(
            f"there is a certificate authority in {directory} already; `blockyard tls issue` uses it"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    usage = _key_usage(signs_certificates=True)
    builder = _builder(subject, subject, key, key, world, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    _write_pair(directory, CA, certificate, key, overwrite=False)


def issue(
    authority: Path,
    use: Use,
    name: str,
    world: World,
    *,
    hosts: Sequence[str] = (),
    out: Path | None = None,
    days: int = LEAF_DAYS,
    overwrite: bool = False,
) -> Path:
    """Make a certificate signed by the authority in a directory, in `out` (the same directory if not given); give its path.

    A server's names the hosts (names or addresses) it is reached by. `out` gets the authority's certificate too, so that it can be handed
    to another machine as it is. AlreadyExistsError if such a certificate is there, unless `overwrite`.
    """
    signer = _load_authority(authority)
    out = authority if out is None else out
    _make_directory(out)
    if use is Use.SERVER and not hosts:
        raise UsageError("a server's certificate names the hosts it is reached by: give --host, as often as needed")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), signer.certificate.subject, key, signer.key, world, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if use is Use.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False)
    certificate = builder.sign(signer.key, hashes.SHA256())
    _write_pair(out, use.value, certificate, key, overwrite=overwrite)
    if out != authority:
        _write(out / f"{CA}.crt", _pem(signer.certificate), 0o644, overwrite=True)
    return out / f"{use.value}.crt"


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signing_key: ec.EllipticCurvePrivateKey,
    world: World,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(int(world.now()), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(world.random_bytes(16), "big") >> 1 | 1)
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    if not text or len(text) > _COMMON_NAME_CHARACTERS or not text.isprintable():
        raise UsageError(
            f"{text!r} cannot name a certificate: give 1 to {_COMMON_NAME_CHARACTERS} printable characters"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError:
        raise UsageError(f"{text!r} is neither an address nor the ASCII name of a host") from None


def _load_authority(directory: Path) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate((directory / f"{CA}.crt").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{CA}.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{error.filename} is not there: `blockyard tls init {directory}` makes an authority"
        ) from error
    except OSError as error:
        raise WorldError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{directory} holds no certificate authority that this program made: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UsageError(f"{directory}/{CA}.key does not belong to {CA}.crt beside it")
    return _Authority(certificate, key)


def _write_pair(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *, overwrite: bool
) -> None:
    for path in (directory / f"{name}.key", directory / f"{name}.crt"):
        if path.exists() and not overwrite:
            raise AlreadyExistsError(f"{path} is there already; give --overwrite to replace it, or another --out")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(directory / f"{name}.key", secret, 0o600, overwrite=overwrite)
    _write(directory / f"{name}.crt", _pem(certificate), 0o644, overwrite=overwrite)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WorldError(f"cannot make the directory {directory}: {error.strerror}") from error


def _write(path: Path, data: bytes, mode: int, *, overwrite: bool) -> None:
    """Write a file with its mode from the first byte on; what it replaces is there whole until then."""
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if overwrite:
            aside.replace(path)
        else:
            path.hardlink_to(aside)
            aside.unlink()
    except FileExistsError as error:
        aside.unlink(missing_ok=True)
        raise AlreadyExistsError(f"{path} is there already") from error
    except OSError as error:
        raise WorldError(f"cannot write {path}: {error.strerror}") from error
