"""Run the public pjdfstest suite on a mount and say what fails: `python tests/system/run_pjdfstest.py SUITE [TEST…] [--at DIRECTORY]`.

SUITE is a built checkout of https://github.com/pjd/pjdfstest (autoreconf -ifs && ./configure && make pjdfstest); it needs root and prove
(perl). TESTs are files or directories below SUITE/tests; without any, all are run. A fresh filesystem in a temporary directory is
mounted for it, or the suite runs in the DIRECTORY given, to see what another filesystem does. Exit status 1: something unforeseen failed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from mounts import SharedFilesystem  # noqa: E402  both are found by the lines above
from nbd_server import DirectoryPool  # noqa: E402

FORESEEN: dict[str, str] = {}
"""Tests that are known to fail, and why."""
JOBS = 4
_SUMMARY = re.compile(r"^(\S+\.t)\s+\(Wstat.*Tests: (\d+) Failed: (\d+)")
_TOTAL = re.compile(r"^Files=(\d+), Tests=(\d+)")


@contextmanager
def a_mount() -> Iterator[Path]:
    """Give a directory on a fresh filesystem, mounted as the suite needs it."""
    with tempfile.TemporaryDirectory(prefix="by-pjd-") as name:
        root = Path(name)
        pool = DirectoryPool.create(root / "p")
        with SharedFilesystem(root / "fs", pool.url, pool.key, watchdog_s=3600) as filesystem:
            filesystem.create().start_server()
            mounted = filesystem.mount("pjd", "-o", "allow_other,dev,suid")
            yield mounted.path
            mounted.unmount()
            filesystem.check()


def run(suite: Path, tests: list[str], directory: Path) -> bool:
    """Run tests of the suite in a directory and print what fails; True if nothing unforeseen did."""
    chosen = [suite / "tests" / each for each in tests] or [suite / "tests"]
    done = subprocess.run(
        ["prove", "-r", "-j", str(JOBS), *map(str, chosen)], cwd=directory, capture_output=True, text=True, check=False
    )
    passed = True
    lines = done.stdout.splitlines()
    for number, line in enumerate(lines):
        if found := _SUMMARY.match(line):
            name = str(Path(found[1]).relative_to(suite / "tests"))
            reason = FORESEEN.get(name)
            passed = passed and (reason is not None or not int(found[3]))
            which = lines[number + 1].strip() if number + 1 < len(lines) else ""
            print(f"{name}: {found[3]} of {found[2]}: {which}{f' (foreseen: {reason})' if reason else ''}")
        elif _TOTAL.match(line) or line.startswith("Result:"):
            print(line)
    if not any(_TOTAL.match(line) for line in lines):
        print(done.stdout[-2000:], done.stderr[-2000:])
        return False
    return passed


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--at", type=Path, metavar="DIRECTORY")
    given = parser.parse_args()
    suite = given.suite.resolve()
    if given.at:
        passed = run(suite, given.tests, given.at)
    else:
        with a_mount() as directory:
            passed = run(suite, given.tests, directory)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
