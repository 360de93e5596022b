"""Changing an image's size, whoever has it open. Stateless; the caller's thread waits.

A free image is opened for writing and resized. An image with a live writer is resized by that writer, which is asked through
a record (core/volume/resize_requests.py) and answers at its next heartbeat.
"""

from collections.abc import Callable
from typing import Final

from core import limits
from core.errors import LockedError, StoreTimeoutError, UsageError
from core.pool.pool import Pool
from core.volume.images import check_size, image_keys, open_image
from core.volume.options import ImageOptions
from core.volume.resize_requests import ResizeRequests

ANSWER_WAIT_S: Final = 3 * limits.LOCK_HEARTBEAT_S
_POLL_S: Final = 0.1


def resize_image(
    pool: Pool,
    name: str,
    size_bytes: int,
    *,
    allow_shrink: bool,
    sleep: Callable[[float], None],
    wait_s: float = ANSWER_WAIT_S,
) -> None:
    """Give an image another size; durable on return. New connections of a gateway that has it open see it.

    UsageError if it would shrink without `allow_shrink`, or the live writer refuses; StoreTimeoutError if that one does not
    answer within `wait_s`: the request is withdrawn then.
    """
    check_size(size_bytes)
    try:
        image = open_image(pool, name, writable=True, options=ImageOptions())
    except LockedError as error:
        _ask_writer(pool, name, size_bytes, allow_shrink=allow_shrink, sleep=sleep, wait_s=wait_s, locked=error)
        return
    try:
        image.resize(size_bytes, allow_shrink=allow_shrink)
        image.flush()
    finally:
        image.close()


def _ask_writer(
    pool: Pool,
    name: str,
    size_bytes: int,
    *,
    allow_shrink: bool,
    sleep: Callable[[float], None],
    wait_s: float,
    locked: LockedError,
) -> None:
    info, keys = image_keys(pool, name)
    requests = ResizeRequests(pool.store, info.prefix, keys, pool.world)
    request = requests.ask(size_bytes, allow_shrink=allow_shrink)
    until = pool.world.monotonic() + wait_s
    while (answer := requests.answer_to(request)) is None:
        if pool.world.monotonic() >= until:
            requests.withdraw(request)
            raise StoreTimeoutError(
                f"the writer of image {name!r} did not take the new size within {wait_s:.0f} s ({locked})"
            )
        sleep(_POLL_S)
    if answer:
        raise UsageError(answer)
