"""Several processes do random operations in one tree at once, through one or more mounts (after the idea of SGI's fsstress).

    python -m tests.filesystem.fsstress [--processes N] [--seconds N] [--seed N] DIRECTORY [DIRECTORY ...]

Every process has a directory that only it changes, where each outcome and, now and then, the whole tree is compared with the reference
model; between that it does what it likes in a directory that all share, where any outcome is good that a local filesystem could give.
In the end every tree is looked at through every mount: the own ones are as their models say, the shared one is everywhere the same.
"""

import argparse
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.filesystem import operations as ops
from tests.filesystem.actor import Actor, Hands, Look, Seen, Served, become
from tests.filesystem.operations import USERS
from tests.filesystem.trial import Difference, Trial, shown

SHARED = "shared"
TOLERATED = {
    *("ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EINVAL", "ENXIO"),
    *("EACCES", "EPERM", "EBUSY", "ENODATA", "ERANGE", "ENAMETOOLONG", "EBADF", "ENOTSUP", "ESTALE"),
}
"""What a race may give; ESTALE where a name that was just looked up has gone twice in a row, as on NFS. Not EIO, not EDEADLK."""
SHARED_KINDS = (*ops.NAMESPACE, *ops.FREQUENT, *ops.CONTENTS, ops.Chmod, ops.Stat, ops.SetXattr, ops.ListXattrs)


class OwnHands:
    """What `Hands` does, in this process."""

    def __init__(self) -> None:
        self.served = Served()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.served, method)(*arguments)


class SharedActor(Actor):
    """Opens nothing that could make it wait, and forgets open files that fail."""

    def act(self, rng: random.Random) -> str | None:
        """Do something; gives what went wrong if that cannot be."""
        operation = ops.random_operation(rng.choice, SHARED_KINDS)
        try:
            outcome = self.do(operation)
        except KeyError:
            return None  # a file that is not open
        if outcome.error is None or outcome.error in TOLERATED:
            return None
        return f"{shown(operation)} gave {outcome.error}"


def one_process(number: int, seed: int, seconds: float, roots: list[str], result: str) -> None:
    """Be one of the processes. `result` gets the model of the own tree, or what went wrong."""
    rng = random.Random(seed * 1000 + number)
    root = roots[number % len(roots)]
    hands = OwnHands()
    shared = SharedActor()
    outside = os.open("/", os.O_RDONLY)
    trial = Trial({"A": hands}, {"A": root}, f"own-{number}")  # type: ignore[dict-item]
    inside = os.open("/", os.O_RDONLY)
    shared_root = os.fsencode(f"{root}/{SHARED}")
    until = time.monotonic() + seconds
    done: Counter[str] = Counter()
    while time.monotonic() < until:
        become(ops.ROOT)
        if rng.random() < 0.4:
            _change_root(outside)
            os.chdir(shared_root)
            os.chroot(".")
            become(rng.choice(USERS))
            problem = shared.act(rng)
            become(ops.ROOT)
            _change_root(inside)
            if problem:
                raise Difference(problem)
            done["shared"] += 1
        elif trial.do("A", rng.choice(USERS), ops.random_operation(rng.choice)):
            done["own"] += 1
            if rng.random() < 0.05:
                trial.look("A")
    trial.look("A")
    trial.model.drop_handles("A")
    shared.close()
    hands.call("leave")
    with open(result, "wb") as file:
        pickle.dump((trial.model, done), file)


def _change_root(directory: int) -> None:
    os.fchdir(directory)
    os.chroot(".")


def stress(roots: list[str], processes: int, seconds: float, seed: int) -> Counter[str]:
    """Run the processes, then compare what is there through every root. Raises Difference. Gives how many operations were done."""
    os.mkdir(f"{roots[0]}/{SHARED}")
    os.chmod(f"{roots[0]}/{SHARED}", 0o777)
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as results:
        running = []
        for number in range(processes):
            arguments = [
                "--one",
                str(number),
                "--seed",
                str(seed),
                "--seconds",
                str(seconds),
                "--result",
                f"{results}/{number}",
            ]
            command = [sys.executable, "-m", "tests.filesystem.fsstress", *arguments, *roots]
            running.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE))
        problems = []
        for number, process in enumerate(running):
            try:
                _, errors = process.communicate(timeout=seconds + 60)
            except subprocess.TimeoutExpired:
                process.kill()
                errors = b"hangs"
            if process.returncode:
                problems.append(f"process {number}: {errors.decode(errors='replace')}")
        if problems:
            raise Difference(f"seed {seed}\n" + "\n".join(problems))
        for number in range(processes):
            model, count = pickle.loads(Path(f"{results}/{number}").read_bytes())
            done += count
            check_own(model, roots, f"own-{number}")
    check_shared(roots)
    return done


def check_own(model: Any, roots: list[str], name: str) -> None:
    """Compare a tree with its model through every root."""
    for number, root in enumerate(roots):
        trial = Trial.__new__(Trial)
        mount = f"look {number}"
        trial.hands, trial.roots, trial.name, trial.log, trial.model = (
            {mount: Hands()},
            {mount: root},
            name,
            [name],
            model,
        )
        try:
            trial.enter(mount)
            trial.look(mount)
        finally:
            trial.hands[mount].end()


def check_shared(roots: list[str]) -> None:
    """Compare the shared tree as every root shows it, and its link counts with its names."""
    trees: list[dict[bytes, Seen]] = []
    for root in roots:
        hands = Hands()
        hands.call("enter", os.fsencode(f"{root}/{SHARED}"))
        look: Look = hands.call("look")
        trees.append(look.tree)
        hands.end()
    for root, tree in zip(roots, trees, strict=True):
        for path in trees[0].keys() | tree.keys():
            if trees[0].get(path) != tree.get(path):
                raise Difference(f"{path!r} is {tree.get(path)} in {root} and {trees[0].get(path)} in {roots[0]}")
    if problems := list(wrong_links(trees[0])):
        raise Difference("; ".join(problems))


def wrong_links(tree: dict[bytes, Seen]) -> Iterator[str]:
    """Find link counts that are not the number of names."""
    names = Counter(seen.inode for seen in tree.values())
    for path, seen in tree.items():
        expected = names[seen.inode]
        if seen.kind == "dir":
            below = (path + b"/" + name if path != b"." else name for name in seen.content)
            expected = 2 + sum(1 for child in below if tree[child].kind == "dir")
        if seen.nlink != expected:
            yield f"{path!r} says it has {seen.nlink} links, and has {expected}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--result", default="", help=argparse.SUPPRESS)
    parser.add_argument("directory", nargs="+")
    options = parser.parse_args()
    try:
        if options.one is not None:
            one_process(options.one, options.seed, options.seconds, options.directory, options.result)
            return
        done = stress(options.directory, options.processes, options.seconds, options.seed)
    except Difference as difference:
        sys.exit(str(difference))
    print(", ".join(f"{count} {what} operations" for what, count in done.items()))


if __name__ == "__main__":
    main()
