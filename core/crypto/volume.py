"""What a volume is sealed and signed with."""

from dataclasses import dataclass

from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers


@dataclass(frozen=True, repr=False, slots=True)
class VolumeKeys:
    """The keys of one image or filesystem of a pool. `signer` is None for a reader, who cannot write (or forge)."""

    pool_id: bytes
    volume_id: bytes
    key_id: int
    key: bytes
    algorithm: Algorithm
    signer: Signer | None
    verifiers: Verifiers
