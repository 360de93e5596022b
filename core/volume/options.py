"""How an image is opened: what its user may choose."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core import limits
from core.errors import UsageError
from core.format.compression import DEFAULT_COMPRESSION, Compression
from core.units import MIB


class Durability(StrEnum):
    """Where a flushed write stands when the flush returns: in the pool, or in a journal on this machine."""

    POOL = "pool"
    JOURNAL = "journal"

    @classmethod
    def parse(cls, text: str) -> "Durability":
        """Read `pool` or `journal`."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"durability {text!r} is not known; write pool or journal") from None


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Choices of one opening; they leave no trace in the pool but the codec of new frames.

    `journal_dir` holds a directory for each image and is required by Durability.JOURNAL. `cache_dir` keeps ciphertext only.
    """

    durability: Durability = Durability.POOL
    compression: Compression = DEFAULT_COMPRESSION
    ram_cache_bytes: int = limits.RAM_CACHE_BYTES
    cache_dir: Path | None = None
    cache_bytes: int = 1024 * MIB
    journal_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.durability is Durability.JOURNAL and self.journal_dir is None:
            raise UsageError("durability=journal needs journal_dir, a local directory that survives a restart")
        if self.ram_cache_bytes < 0 or self.cache_bytes < 0:
            raise UsageError("a cache cannot have a negative size")
