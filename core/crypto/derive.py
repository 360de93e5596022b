"""Key derivation: BLAKE3's derive-key mode (BLAKE3 paper, section 2.3), one context string for each use."""

from typing import Final

from blake3 import blake3

KEY_BYTES: Final = 32


def derive_key(secret: bytes, context: str, material: bytes = b"") -> bytes:
    """Derive 32 bytes from a 32-byte `secret` and public `material` for the one use that `context` names.

    `context` is a constant of the program and never made of data; `material` may be any bytes.
    """
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a secret is {KEY_BYTES} bytes, not {len(secret)}")
    return blake3(secret + material, derive_key_context=context).digest()


def keyed_digest(key: bytes, data: bytes) -> bytes:
    """Give the keyed 32-byte BLAKE3 digest of `data`: a fingerprint that tells nothing without the key."""
    return blake3(data, key=key).digest()
