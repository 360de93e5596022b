"""Who counts as a living owner of an image's lock on this host."""

import os
import subprocess

from core.volume.log.owner_lock import process_start


def test_a_living_process_is_told_by_when_it_began():
    assert process_start(os.getpid()).isdecimal()


def test_a_process_that_ended_and_was_not_waited_for_owns_nothing():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{child.pid}/stat")
    assert process_start(child.pid) == ""
    child.wait()
