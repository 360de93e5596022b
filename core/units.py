"""Sizes and the distinct types of the numbers that must not be mixed up."""

import re
from typing import Final, NewType

from core.errors import UsageError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

BLOCK_BYTES: Final = 4096
BLOCKS_PER_FRAME: Final = 8
FRAME_BYTES: Final = BLOCK_BYTES * BLOCKS_PER_FRAME

BlockNumber = NewType("BlockNumber", int)
Sequence = NewType("Sequence", int)
Epoch = NewType("Epoch", int)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(text: str) -> int:
    """Read a number of bytes as people write it: `4096`, `64k`, `1.5GiB`, `2T`. Units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write bytes or a number with K, M, G, T or P, such as 10G")
    value = float(match[1]) * 1024 ** _POWERS[match[2].upper()]
    if value != int(value):
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return int(value)


def format_size(size_bytes: int) -> str:
    """Write a number of bytes for people, in powers of 1024 with at most one decimal: `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
