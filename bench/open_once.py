"""Opens an image once and tells how long that took, as JSON: `python -m bench.open_once URL KEYFILE IMAGE OFFSET`.

A process of its own, so that nothing is warm but what the machine and the store keep. Imports are not counted: a gateway
has made them before its first client comes.
"""

import json
import os
import sys
import time
from pathlib import Path

from bench.processes import memory_bytes
from core.pool.key_files import load_key_file
from core.pool.pool import open_pool
from core.store.factory import open_store
from core.units import BLOCK_BYTES
from core.volume.images import open_image
from core.volume.options import ImageOptions
from core.world import World


def main(url: str, key_file: Path, name: str, offset: int) -> None:
    """Open the pool, then the image for writing, then read one block; print the seconds of each and the resident memory."""
    before_bytes = memory_bytes(os.getpid(), "VmRSS")
    begin = time.monotonic()
    pool = open_pool(open_store(url), load_key_file(key_file), World.real())
    pool_open = time.monotonic()
    image = open_image(pool, name, writable=True, options=ImageOptions())
    image_open = time.monotonic()
    image.read_into(offset, bytearray(BLOCK_BYTES))
    first_read = time.monotonic()
    print(
        json.dumps(
            {
                "pool_s": round(pool_open - begin, 4),
                "image_s": round(image_open - pool_open, 4),
                "read_s": round(first_read - image_open, 4),
                "grown_bytes": memory_bytes(os.getpid(), "VmRSS") - before_bytes,
                "epoch": image.epoch,
            }
        )
    )
    image.close()
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
