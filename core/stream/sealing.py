"""Who can read a stream: everybody, whoever has the source image's key, or whoever knows a passphrase.

`StreamKeys` never changes after it was made; any thread. Nothing here has a text form that holds a secret.

4. *Never reuse.* The key of a leg is derived from a salt that was drawn for it; the counter is the chunk's sequence. Going on with an
   interrupted stream begins a new leg, for the chunk that was cut off may be there under the old one with other bytes.
"""

from dataclasses import dataclass, replace
from typing import Final

from core.crypto.aead import Aead, Buffer, InvalidTag
from core.crypto.derive import derive_key
from core.crypto.slots import SLOT_SALT_BYTES, stretch
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, KeyRefusedError
from core.pool.slots import Passphrase
from core.stream.format import SALT_BYTES, Preamble, Seal
from core.world import World

_VOLUME_CONTEXT: Final = "blockyard 2026 stream of a volume v1"
_CHECK_CONTEXT: Final = "blockyard 2026 stream key check v1"
_LEG_CONTEXT: Final = "blockyard 2026 stream leg v1"


@dataclass(frozen=True, repr=False, slots=True)
class Sealing:
    """How a stream is to be sealed: by default under the image's own key, which never leaves its pool."""

    plain: bool = False
    passphrase: Passphrase | None = None

    @property
    def seal(self) -> Seal:
        """Give the kind as the preamble names it."""
        if self.passphrase is not None:
            return Seal.PASSPHRASE
        return Seal.PLAIN if self.plain else Seal.VOLUME


BY_THE_VOLUME: Final = Sealing()


class StreamKeys:
    """What the chunks of one stream are sealed under: made of its preamble and a secret, None for a plain one."""

    def __init__(self, preamble: Preamble, secret: bytes | None) -> None:
        self.preamble = preamble
        self._secret = secret

    def leg(self, salt: bytes) -> "Leg":
        """Give what seals the chunks of one leg."""
        bound = self.preamble.bound()
        if self._secret is None:
            return Leg(None, bound)
        return Leg(Aead(self.preamble.algorithm, derive_key(self._secret, _LEG_CONTEXT, bound + salt)), bound)


class Leg:
    """Seals and opens the bodies of chunks; passes them on as they are in a plain stream."""

    def __init__(self, aead: Aead | None, bound: bytes) -> None:
        self._aead = aead
        self._bound = bound

    @property
    def overhead_bytes(self) -> int:
        """Bytes that sealing adds to a body."""
        return 16 if self._aead is not None else 0

    def seal(self, sequence: int, header: bytes, payload: bytes) -> bytes:
        """Give the body of a chunk. Use a sequence once."""
        return payload if self._aead is None else self._aead.seal(sequence, payload, self._bound + header)

    def open(self, sequence: int, header: bytes, body: Buffer, what: str) -> Buffer:
        """Give the payload of a chunk, or raise IntegrityError naming `what`."""
        if self._aead is None:
            return body
        try:
            return self._aead.open(sequence, body, self._bound + header)
        except InvalidTag:
            raise IntegrityError(f"chunk {sequence} of {what} does not open: it was altered") from None


def new_stream(sealing: Sealing, keys: VolumeKeys, writer: bytes, world: World) -> StreamKeys:
    """Draw the preamble of a new stream of the volume that `keys` belong to, and make its keys."""
    key_id, key = keys.newest()
    seal = sealing.seal
    preamble = Preamble(
        seal,
        keys.algorithm,
        key_id if seal is Seal.VOLUME else 0,
        keys.pool_id,
        keys.volume_id,
        writer,
        world.random_bytes(SALT_BYTES),
    )
    if sealing.passphrase is not None:
        preamble = replace(preamble, cost=sealing.passphrase.cost)
        secret: bytes | None = _stretched(preamble, sealing.passphrase)
    else:
        secret = None if seal is Seal.PLAIN else _volume_secret(keys, key)
    return StreamKeys(replace(preamble, check=_check(preamble, secret)), secret)


def open_stream(preamble: Preamble, keys: VolumeKeys | None, passphrase: Passphrase | None, what: str) -> StreamKeys:
    """Make the keys of a stream that is to be read. `keys` are those of its source image, None if they are not to be had.

    KeyRefusedError if what is given does not open it.
    """
    secret: bytes | None = None
    if preamble.seal is Seal.PASSPHRASE:
        if passphrase is None:
            raise KeyRefusedError(
                f"{what} is sealed under a passphrase; name the file that holds it (--seal-passphrase-file)"
            )
        secret = _stretched(preamble, passphrase)
    elif preamble.seal is Seal.VOLUME:
        key = keys.find(preamble.key_id) if keys is not None and keys.pool_id == preamble.pool_id else None
        if keys is None or key is None:
            raise KeyRefusedError(
                f"{what} is sealed under key {preamble.key_id} of image {preamble.volume_id.hex()} of pool "
                f"{preamble.pool_id.hex()}, which is not at hand; export it with --seal-passphrase-file or --plain"
            )
        secret = _volume_secret(keys, key)
    if _check(preamble, secret) != preamble.check:
        refused = (
            "this passphrase does not open it" if preamble.seal is Seal.PASSPHRASE else "its beginning was altered"
        )
        raise (KeyRefusedError if preamble.seal is Seal.PASSPHRASE else IntegrityError)(f"{what}: {refused}")
    return StreamKeys(preamble, secret)


def _stretched(preamble: Preamble, passphrase: Passphrase) -> bytes:
    return stretch(passphrase.secret, preamble.salt[:SLOT_SALT_BYTES], preamble.cost)


def _volume_secret(keys: VolumeKeys, key: bytes) -> bytes:
    return derive_key(key, _VOLUME_CONTEXT, keys.volume_id)


def _check(preamble: Preamble, secret: bytes | None) -> bytes:
    return bytes(SALT_BYTES) if secret is None else derive_key(secret, _CHECK_CONTEXT, preamble.bound())
