"""The C library's allocator, told to waste less: frames of many sizes come and go on many threads.

With an arena for each thread glibc keeps what each of them freed: after nbd-8 the gateway had 409 MB where two arenas need 294 (the same
cache, the same work). Python's interpreter lock lets one thread allocate at a time, so more arenas win nothing.
"""

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_ARENAS: Final = 2


def bound_arenas() -> bool:
    """Limit the arenas of this process; say whether the C library took it. Threads that allocated before keep theirs."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, _ARENAS) == 1
