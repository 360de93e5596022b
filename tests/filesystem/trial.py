"""One directory, seen through one or more mounts, against the reference model: do, compare, look, compare.

Run as a program it takes directories that are the same one (two mounts, or one given once or twice) and does random operations on them:

    python -m tests.filesystem.trial [--seed N] [--steps N] [--trials N] [--reduce] DIRECTORY [DIRECTORY]
"""

import argparse
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tests.filesystem import operations as ops
from tests.filesystem.actor import Hands, Look, Seen, digest
from tests.filesystem.nodes import Node, Unpredictable
from tests.filesystem.operations import ROOT, USERS, Operation, Outcome, User
from tests.filesystem.reference import Model

Files = Mapping[str, Any]


class Difference(AssertionError):  # noqa: N818
    """A filesystem and the model disagree."""

    actions: "list[Action]"


class Trial:
    """A fresh directory `name` below every root; `hands` are by mount, and so are `roots`, which show the same directory."""

    def __init__(self, hands: dict[str, Hands], roots: dict[str, str], name: str) -> None:
        self.hands = hands
        self.roots = roots
        self.name = name
        self.log: list[str] = []
        self.seen: Counter[str] = Counter()
        self.model = Model()
        self.model.now = time.time_ns()
        first = next(iter(roots))
        hands[first].call("make", os.fsencode(f"{roots[first]}/{name}"))
        self.model.is_fuse = hands[first].call("is_fuse")
        self.model.root.mtime.may_touch(0)
        self.model.root.ctime.may_touch(0)
        for mount in hands:
            self.enter(mount)
        for user, operation in ops.START:
            self.do(first, user, operation)

    def enter(self, mount: str) -> None:
        self.hands[mount].call("enter", os.fsencode(f"{self.roots[mount]}/{self.name}"))

    def do(self, mount: str, user: User, operation: Operation) -> bool:
        """Do one operation on one mount and in the model; their outcomes are the same. False: it is one that nobody can foretell."""
        try:
            expected = self.model.do(mount, user, operation, time.time_ns())
        except Unpredictable:
            return False
        self.log.append(f"{mount} {user.uid} {shown(operation)} → {shown(expected)}")
        self.seen[f"{type(operation).__name__} {expected.error or ''}"] += 1
        outcome = self.hands[mount].call("do", user, operation)
        if outcome != expected:
            raise self.difference(
                f"{shown(operation)} by {user.uid} on {mount} gave {shown(outcome)}, not {shown(expected)}"
            )
        return True

    def look(self, mount: str) -> None:
        """Look at the whole tree through one mount; it is the model's."""
        self.log[-1] += f"; look at {mount}"
        look: Look = self.hands[mount].call("look")
        problems = list(self._problems(mount, look))
        if problems:
            raise self.difference(f"seen on {mount}: " + "; ".join(problems))

    def _problems(self, mount: str, look: Look) -> list[str]:
        nodes = self.model.nodes()
        if nodes.keys() != look.tree.keys():
            more, fewer = look.tree.keys() - nodes.keys(), nodes.keys() - look.tree.keys()
            return [f"there should not be {sorted(more)}, there should be {sorted(fewer)}"]
        problems = []
        for path, node in nodes.items():
            self.model.seen_by(mount, node)
            problems += [f"{path!r}: {problem}" for problem in self._compare(mount, path, node, look)]
        for number, (inode, described) in look.handles.items():
            node = self.model.handles[mount, number].node
            if described != self.model.describe(node):
                problems.append(f"handle {number} shows {described}, not {self.model.describe(node)}")
            if node.inode not in (None, inode):
                problems.append(f"handle {number} leads to inode {inode}, not {node.inode}")
        return problems

    def _compare(self, mount: str, path: bytes, node: Node, look: Look) -> list[str]:
        seen = look.tree[path]
        problems = []
        if node.lost is not None and seen.kind == "reg":
            data = self.hands[mount].call("do", ROOT, ops.ReadFile(path)).value
            if not self.model.adopt(node, data):
                problems.append(f"{len(data)} bytes that were never written")
        if node.inode is None:
            node.inode = seen.inode
        expected = (node.inode, *self.model.describe(node), node.all_xattrs, content_of(node))
        shows = (*seen[: Seen._fields.index("rdev") + 1], seen.xattrs, seen.content)
        names = ("inode", "kind", "mode", "uid", "gid", "nlink", "size", "rdev", "xattrs", "content")
        for name, want, got in zip(names, expected, shows, strict=True):
            if want != got:
                problems.append(f"{name} is {shown(got)}, not {shown(want)}")
        for name, stamp, value in (("mtime", node.mtime, seen.mtime_ns), ("ctime", node.ctime, seen.ctime_ns)):
            was = str(stamp)
            if not stamp.observe(value, look.until_ns):
                problems.append(f"{name} is {value}, not {was}")
        return problems

    def difference(self, text: str) -> Difference:
        return Difference("\n".join([text, *self.log]))

    def end(self) -> None:
        """Remove the directory."""
        for hands in self.hands.values():
            hands.call("leave")
        first = next(iter(self.roots))
        self.hands[first].call("remove", os.fsencode(f"{self.roots[first]}/{self.name}"))


def content_of(node: Node) -> Any:
    """Give a node's content as `Seen` has it."""
    if node.kind == "reg":
        return digest(bytes(node.data))
    if node.kind == "lnk":
        return node.target
    return sorted(node.entries) if node.kind == "dir" else None


def shown(value: Any) -> str:
    """Write a value down without the bulk of its bytes."""
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:8]!r}…×{len(value)}"
    if isinstance(value, Operation):
        return f"{type(value).__name__}({', '.join(f'{name}={shown(field)}' for name, field in vars(value).items())})"
    if isinstance(value, Outcome):
        return value.error or shown(value.value)
    return repr(value)


Action = tuple[str, User | None, Operation | None]
"""An operation on a mount, or a look at it."""


def random_actions(mounts: list[str], rng: random.Random, looks: float) -> Iterator[Action]:
    """Choose operations on random mounts without end, and look through random ones after that share of them."""
    while True:
        yield rng.choice(mounts), rng.choice(USERS), ops.random_operation(rng.choice)
        for mount in rng.sample(mounts, rng.randint(1, len(mounts)) if rng.random() < looks else 0):
            yield mount, None, None


def act(trial: Trial, actions: Iterable[Action], steps: int) -> list[Action]:
    """Do that many operations and look through every mount; gives what was done, of which a Difference has its own list."""
    done: list[Action] = []
    try:
        for mount, user, operation in actions:
            if len(done) >= steps:
                break
            done.append((mount, user, operation))
            if user is None or operation is None:
                trial.look(mount)
            elif not trial.do(mount, user, operation):
                done.pop()
        for mount in sorted(trial.hands):
            done.append((mount, None, None))
            trial.look(mount)
    except Difference as difference:
        difference.actions = done
        raise
    return done


def reduced(actions: list[Action], fails: Callable[[list[Action]], bool]) -> list[Action]:
    """Leave actions out as long as what is left still fails."""
    size = len(actions) // 2
    while size:
        at = 0
        while at < len(actions):
            fewer = actions[:at] + actions[at + size :]
            if fails(fewer):
                actions = fewer
            else:
                at += size
        size //= 2
    return actions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--reduce", action="store_true", help="try to fail with fewer operations")
    parser.add_argument("--looks", type=float, default=0.7)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("directory", nargs="+")
    options = parser.parse_args()
    roots = dict(zip("ABCDEFGH", options.directory, strict=False))
    hands = {mount: Hands() for mount in roots}
    seen: Counter[str] = Counter()
    numbers = itertools.count()

    def attempt(actions: Iterable[Action], steps: int) -> Difference | None:
        trial = Trial(hands, roots, f"trial-{os.getpid()}-{next(numbers)}")
        try:
            act(trial, actions, steps)
        except Difference as difference:
            return difference
        finally:
            seen.update(trial.seen)
            trial.end()
        return None

    for seed in range(options.seed, options.seed + options.trials):
        difference = attempt(random_actions(sorted(roots), random.Random(seed), options.looks), options.steps)
        if difference is None:
            continue
        print(f"seed {seed}: {difference}", flush=True)
        if options.reduce:
            shortest = reduced(difference.actions, lambda fewer: attempt(fewer, len(fewer)) is not None)
            print(f"reduced: {attempt(shortest, len(shortest))}")
        sys.exit(1)
    for what, count in sorted(seen.items()):
        print(f"{count:8} {what}")


if __name__ == "__main__":
    main()
