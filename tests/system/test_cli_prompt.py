"""Passphrases asked for on a terminal: a real pseudo-terminal, a real process that it controls."""

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from command import Command

pytestmark = pytest.mark.system


def talk(command: Command, arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run the command on a terminal of its own, answer each question, and give status and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "core.cli", *arguments], command.environment)
    shown = b""
    waiting = list(answers)
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the terminal's other end is closed: the process has ended
            break
        if waiting and len(re.findall(rb"(?:passphrase|again|at file://\S+): ", shown)) > len(answers) - len(waiting):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_a_passphrase_is_asked_for_twice_when_new_and_once_to_open(tmp_path: Path) -> None:
    command = Command(tmp_path)
    status, shown = talk(command, ["pool", "create", command.pool, "--new-passphrase"], ["sesame", "sesame"])
    assert status == 0, shown
    assert "sesame" not in shown, "what is typed is not shown"
    status, shown = talk(command, ["pool", "info", command.pool], ["sesame"])
    assert status == 0, shown
    assert "owner" in shown
    status, shown = talk(command, ["pool", "info", command.pool], ["simsim"])
    assert status == 5
    assert "opens no key slot" in shown
    assert "simsim" not in shown


def test_two_different_new_passphrases_make_no_pool(tmp_path: Path) -> None:
    command = Command(tmp_path)
    status, shown = talk(command, ["pool", "create", command.pool, "--new-passphrase"], ["sesame", "simsim"])
    assert status == 2
    assert "differ" in shown
    assert not (tmp_path / "pool").exists()
