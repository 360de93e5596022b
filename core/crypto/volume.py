"""What a volume is sealed and signed with."""

from dataclasses import dataclass

from core.crypto.aead import Algorithm
from core.crypto.rings import KeyRing
from core.crypto.signature import Signer, Verifiers


@dataclass(frozen=True, repr=False, slots=True)
class VolumeKeys:
    """The keys of one image or filesystem of a pool. `signer` is None for a reader, who cannot write (or forge).

    `key` is the volume's first key, and stays so: what names are derived from. A volume whose key was rotated has more; they are in
    `ring`, which everybody who holds these keys shares, and which learns newer ones while the volume is open. Seal under `newest`; open
    with what `find` gives for the id that a header names.
    """

    pool_id: bytes
    volume_id: bytes
    key_id: int
    key: bytes
    algorithm: Algorithm
    signer: Signer | None
    verifiers: Verifiers
    ring: KeyRing | None = None

    def newest(self) -> tuple[int, bytes]:
        """Give the id and the key that new objects are sealed under."""
        return self.ring.newest() if self.ring is not None else (self.key_id, self.key)

    def find(self, key_id: int) -> bytes | None:
        """Give the key that opens objects sealed under `key_id`; None if the volume has no such key (any more)."""
        if self.ring is not None:
            return self.ring.find(key_id)
        return self.key if key_id == self.key_id else None

    def refresh(self) -> None:
        """Learn, if that was not done for a while, of newer keys and of writers that are none any more.

        Whoever has a volume open for writing calls this with its heartbeat. ReadOnlyError if our own signing key was retired: stop writing.
        """
        if self.ring is not None:
            self.ring.refresh()
        self.verifiers.refresh()
        if self.signer is not None:
            self.verifiers.require_active(self.signer.writer_id)
