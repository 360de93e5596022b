"""Authenticated encryption with counters for nonces.

Invariant 4 (*never reuse*) rests on one rule: a key is derived from a header with a random salt, used by one writer for one
object, and every counter below it is used once. The counter fills the 96-bit nonce as a little-endian integer.
"""

from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

Buffer = bytes | bytearray | memoryview

TAG_BYTES: Final = 16
INDEX_COUNTER: Final = (1 << 96) - 1
"""The counter of an object's index, far from any frame number."""

__all__ = ["INDEX_COUNTER", "TAG_BYTES", "Aead", "Algorithm", "InvalidTag"]


class Algorithm(IntEnum):
    """The AEADs a pool may use, as the formats number them."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


class Aead:
    """One key under one algorithm. Safe to use from several threads at once."""

    __slots__ = ("_cipher",)

    def __init__(self, algorithm: Algorithm, key: bytes) -> None:
        self._cipher = AESGCM(key) if algorithm is Algorithm.AES_256_GCM else ChaCha20Poly1305(key)

    def seal(self, counter: int, plaintext: Buffer, aad: Buffer) -> bytes:
        """Encrypt and authenticate; the answer is `TAG_BYTES` longer than the plaintext. Use a counter once."""
        return self._cipher.encrypt(counter.to_bytes(12, "little"), plaintext, aad)

    def open(self, counter: int, ciphertext: Buffer, aad: Buffer) -> bytes:
        """Give the plaintext, or raise InvalidTag, which the caller turns into an IntegrityError with a name."""
        return self._cipher.decrypt(counter.to_bytes(12, "little"), ciphertext, aad)
