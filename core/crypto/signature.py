"""Ed25519 signatures (RFC 8032): who may write, and who wrote."""

from collections.abc import Iterable
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from core.crypto.aead import Buffer
from core.errors import IntegrityError, ReadOnlyError

SIGNATURE_BYTES: Final = 64
WRITER_ID_BYTES: Final = 8


def writer_id_of(public_key: bytes) -> bytes:
    """Give the 8 bytes that name a 32-byte public key in headers."""
    return blake3(public_key).digest(length=WRITER_ID_BYTES)


class Signer:
    """A writer's private key. It never appears in a text form."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: bytes = self._key.public_key().public_bytes_raw()
        self.writer_id: bytes = writer_id_of(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """Sign `data`; 64 bytes."""
        return self._key.sign(data)


class Verifiers:
    """The public keys whose signatures count."""

    def __init__(self, public_keys: Iterable[bytes]) -> None:
        self._keys = {writer_id_of(key): Ed25519PublicKey.from_public_bytes(key) for key in public_keys}

    def verify(self, writer_id: bytes, signature: bytes, data: Buffer, what: str) -> None:
        """Return if `writer_id` is listed and signed `data`; otherwise raise IntegrityError naming `what`."""
        key = self._keys.get(bytes(writer_id))
        if key is None:
            raise IntegrityError(f"{what} is signed by {bytes(writer_id).hex()}, which is no writer of this pool")
        try:
            key.verify(signature, bytes(data))
        except InvalidSignature:
            raise IntegrityError(f"{what} has a signature that does not fit its bytes: it was altered") from None

    def require_active(self, writer_id: bytes) -> None:
        """Return if `writer_id` may sign something new; otherwise raise ReadOnlyError."""
        if bytes(writer_id) not in self._keys:
            raise ReadOnlyError(
                f"the pool does not list the writer {bytes(writer_id).hex()}, whose key was given; nobody would believe what it signs"
            )

    def is_retired(self, writer_id: bytes) -> bool:  # noqa: ARG002  # nobody is, in a list that never changes
        """Say whether `writer_id` was a writer and signs nothing any more."""
        return False

    def retired_at(self, writer_id: bytes) -> int | None:  # noqa: ARG002
        """Give the time, in unix seconds, from which on `writer_id` signs nothing any more; None if it was not retired."""
        return None

    def admit_object(self, writer_id: bytes, volume_id: bytes, sequence: int, what: str) -> None:
        """Return if this writer may have signed an object of `volume_id` at `sequence`; otherwise raise IntegrityError naming `what`."""

    def admit_record(self, writer_id: bytes, what: str) -> None:
        """Return if a record may be this writer's; otherwise raise IntegrityError naming `what`."""

    def refresh(self) -> None:
        """Learn of writers that are none any more, where that can change."""
