"""Waiting for a process that is no child of ours to end."""

import os
import select


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Wait until a process has ended; say whether it did in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)
