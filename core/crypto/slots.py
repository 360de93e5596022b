"""Wrapping of a pool's keys under a secret that a person holds: a key file's bytes or a passphrase. Pure functions.

The person's secret wraps a *member key*, and that wraps the pool's keys (the *grant*): so an owner, who can open a copy of every member key
(the *escrow*), gives everybody the pool's next key without knowing anybody's secret.

A passphrase is stretched with Argon2id (RFC 9106); its cost stands in the slot and is bounded before it is spent.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from core import limits
from core.crypto.aead import TAG_BYTES, Aead, Algorithm, Buffer, InvalidTag
from core.crypto.derive import KEY_BYTES, derive_key
from core.errors import IntegrityError

SLOT_SALT_BYTES: Final = 16
MEMBER_ID_BYTES: Final = 16
ESCROW_BYTES: Final = SLOT_SALT_BYTES + KEY_BYTES + TAG_BYTES
_CONTEXT: Final = "blockyard 2026 key slot v1"


class SlotKind(IntEnum):
    """What opens a slot, as its header numbers it."""

    KEY_FILE = 1
    PASSPHRASE = 2


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """What stretching a passphrase takes: memory in KiB, passes over it, lanes."""

    memory_kib: int
    iterations: int
    lanes: int


DEFAULT_COST: Final = Argon2Cost(memory_kib=64 * 1024, iterations=3, lanes=4)
"""The second recommended option of RFC 9106, section 4: 64 MiB, three passes, four lanes."""
NO_COST: Final = Argon2Cost(0, 0, 0)
"""The cost of a key file, whose 32 random bytes need no stretching."""


def check_cost(kind: SlotKind, cost: Argon2Cost, what: str) -> None:
    """Return if a slot of this kind may ask for this cost; otherwise raise IntegrityError naming `what`."""
    if kind is SlotKind.KEY_FILE:
        fits = cost == NO_COST
    else:
        fits = (
            1 <= cost.lanes <= limits.ARGON2_LANES
            and 1 <= cost.iterations <= limits.ARGON2_ITERATIONS
            and 8 * cost.lanes <= cost.memory_kib <= limits.ARGON2_MEMORY_KIB
        )
    if not fits:
        raise IntegrityError(f"{what} asks for a key derivation that is out of bounds: it was altered")


def stretch(passphrase: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
    """Turn a passphrase into 32 secret bytes. Takes the memory and time that `cost` says."""
    derivation = Argon2id(
        salt=salt, length=KEY_BYTES, iterations=cost.iterations, lanes=cost.lanes, memory_cost=cost.memory_kib
    )
    return derivation.derive(passphrase)


def wrap(secret: bytes, algorithm: Algorithm, header: bytes, payload: bytes) -> bytes:
    """Seal `payload` under a 32-byte secret. The header, which holds a fresh salt, is bound to every byte."""
    aead = Aead(algorithm, derive_key(secret, _CONTEXT, header))
    return aead.seal(0, _committed(secret, header) + payload, header)


def unwrap(secret: bytes, algorithm: Algorithm, header: bytes, wrapped: bytes) -> bytes | None:
    """Give what `wrap` sealed, or None if the secret is another one or the bytes were altered."""
    aead = Aead(algorithm, derive_key(secret, _CONTEXT, header))
    try:
        plaintext = aead.open(0, wrapped, header)
    except InvalidTag:
        return None
    commitment = _committed(secret, header)
    return plaintext[len(commitment) :] if plaintext.startswith(commitment) else None


def _committed(secret: bytes, header: bytes) -> bytes:
    # An AEAD tag alone lets one ciphertext open under several keys; a stored digest of the key ends that, and with it
    # the guessing of many passphrases with one forged slot (partitioning oracles).
    return derive_key(secret, "blockyard 2026 key slot commitment v1", header)


def member_id_of(member_key: bytes) -> bytes:
    """Give the 16 bytes by which the pool's signed description knows a member key."""
    return derive_key(member_key, "blockyard 2026 slot member v1")[:MEMBER_ID_BYTES]


def seal_salted(secret: bytes, context: str, salt: bytes, plaintext: bytes, aad: Buffer) -> bytes:
    """Seal under a key of its own, made of a secret and a fresh 16-byte salt, which stands before the sealed bytes."""
    assert len(salt) == SLOT_SALT_BYTES, "the salt is drawn by us"
    return salt + Aead(Algorithm.AES_256_GCM, derive_key(secret, context, salt)).seal(0, plaintext, aad)


def open_salted(secret: bytes, context: str, sealed: bytes, aad: Buffer) -> bytes | None:
    """Give what `seal_salted` sealed; None if the secret is another one or the bytes were altered."""
    salt, body = sealed[:SLOT_SALT_BYTES], sealed[SLOT_SALT_BYTES:]
    if len(body) < TAG_BYTES:
        return None
    try:
        return Aead(Algorithm.AES_256_GCM, derive_key(secret, context, salt)).open(0, body, aad)
    except InvalidTag:
        return None
