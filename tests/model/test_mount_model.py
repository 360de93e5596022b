"""Two mounts of one filesystem against a plain-Python model of POSIX, which is first held against filesystems that are known to be right.

`BLOCKYARD_MODEL_EXAMPLES` says how many examples are tried on the mounts; with it, a failing one is also reduced.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from mounts import Mounted, SharedFilesystem
from nbd_server import DirectoryPool

from tests.filesystem import operations as ops
from tests.filesystem.actor import Hands
from tests.filesystem.operations import USERS, Operation, User
from tests.filesystem.trial import Trial

MOUNTS = ("A", "B")
EXAMPLES = int(os.environ.get("BLOCKYARD_MODEL_EXAMPLES") or 0)
SETTINGS = settings(
    max_examples=EXAMPLES or 12,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, *([Phase.shrink] if EXAMPLES else [])],
    print_blob=True,
)
LEASE_S = 1.0
ENDS = 0.2
"""How many times a mount may be killed or unmounted for each example: it costs seconds."""


def operations_of(kinds: tuple[type[Operation], ...]) -> st.SearchStrategy[Operation]:
    """Draw one of these operations with fields from their domains."""

    def one(kind: type[Operation]) -> st.SearchStrategy[Operation]:
        return st.builds(kind, **{part.name: st.sampled_from(ops.domain(kind, part.name)) for part in fields(kind)})

    return st.sampled_from(kinds).flatmap(one)


@dataclass
class Place:
    """One directory under two names, and the hands there."""

    roots: dict[str, str]
    hands: dict[str, Hands] = field(default_factory=dict)
    trials: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for mount in self.roots:
            self.hands[mount] = Hands()

    def trial(self) -> Trial:
        self.trials += 1
        return Trial(self.hands, self.roots, f"trial-{self.trials}")

    def end(self) -> None:
        for hands in self.hands.values():
            hands.end()


class MountedPlace(Place):
    """Two mounts of a filesystem of Blockyard."""

    def __init__(self, filesystem: SharedFilesystem) -> None:
        self.filesystem = filesystem
        self.mounted = {mount: self._mount(mount) for mount in MOUNTS}
        super().__init__({mount: str(mounted.path) for mount, mounted in self.mounted.items()})

    def _mount(self, mount: str) -> Mounted:
        return self.filesystem.mount(mount.lower(), "-o", "allow_other")

    def remount(self, trial: Trial, mount: str, *, kills: bool) -> None:
        """Let a mount end, as an administrator or as a crash does it, and begin again."""
        self.seen["kill" if kills else "unmount"] += 1
        if kills:
            trial.model.crash(mount)
            self.mounted[mount].kill()
            self.hands[mount].end()
        else:
            trial.model.sync(mount)
            trial.model.drop_handles(mount)
            self.hands[mount].end()
            self.mounted[mount].unmount()
        trial.log.append(f"{mount} was {'killed' if kills else 'unmounted'} and mounted")
        self.mounted[mount] = self._mount(mount)
        self.hands[mount] = Hands()
        trial.enter(mount)


mounts = st.sampled_from(MOUNTS)
users = st.sampled_from(USERS)
looks = st.sampled_from(("AB", "BA", "AB", "BA", "A", "B", ""))


class DirectoryMachine(RuleBasedStateMachine):
    """Operations by several users through either name, each followed by looks at the whole tree."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.trial: Trial | None = None
        self.has_failed = True
        """Until the present step has ended well."""

    @initialize()
    def begin(self) -> None:
        self.trial = self.place.trial()
        self.has_failed = False

    @rule(mount=mounts, user=users, operation=operations_of(ops.NAMESPACE), look=looks)
    def change_names(self, mount, user, operation, look) -> None:
        self.do(mount, user, operation, look)

    @rule(mount=mounts, user=users, operation=operations_of(ops.ATTRIBUTES), look=looks)
    def change_attributes(self, mount, user, operation, look) -> None:
        self.do(mount, user, operation, look)

    @rule(mount=mounts, user=users, operation=operations_of(ops.CONTENTS), look=looks)
    def change_contents(self, mount, user, operation, look) -> None:
        self.do(mount, user, operation, look)

    @rule(mount=mounts, user=users, operation=operations_of((*ops.HANDLED, ops.Open, ops.Open)), look=looks)
    def use_handles(self, mount, user, operation, look) -> None:
        self.do(mount, user, operation, look)

    @rule(mount=mounts)
    def sync(self, mount) -> None:
        self.has_failed = True
        self.trial.log.append(f"fsync everything on {mount}")
        self.trial.hands[mount].call("sync")
        self.trial.model.sync(mount)
        self.has_failed = False

    def do(self, mount: str, user: User, operation: Operation, look: str) -> None:
        self.has_failed = True
        if self.trial.do(mount, user, operation):
            for seer in look:
                self.trial.look(seer)
        self.has_failed = False

    def teardown(self) -> None:
        if self.trial is None:
            return
        try:
            if not self.has_failed:
                for mount in MOUNTS:
                    self.trial.look(mount)
        finally:
            self.place.seen += self.trial.seen
            self.trial.end()


class MountMachine(DirectoryMachine):
    """The same with mounts that come and go."""

    place: MountedPlace

    @rule(mount=mounts)
    def unmount_and_mount(self, mount) -> None:
        self.end_and_begin(mount, kills=False)

    @rule(mount=mounts, synced=st.booleans())
    def kill_and_mount(self, mount, synced) -> None:
        if synced:
            self.sync(mount)
        self.end_and_begin(mount, kills=True)

    def end_and_begin(self, mount: str, *, kills: bool) -> None:
        if self.place.seen["kill"] + self.place.seen["unmount"] >= ENDS * self.place.trials:
            return
        self.has_failed = True
        self.place.remount(self.trial, mount, kills=kills)
        self.trial.look(mount)
        self.has_failed = False


def try_out(machine: type[DirectoryMachine], place: Place) -> Counter[str]:
    """Run a machine at a place; gives how often each outcome was seen."""
    try:
        run_state_machine_as_test(type(machine.__name__, (machine,), {"place": place}), settings=SETTINGS)
    finally:
        place.end()
    return place.seen


@pytest.mark.parametrize("base", ["/dev/shm", "/var/tmp"])
def test_the_model_is_what_the_kernels_own_filesystems_are(base):
    with tempfile.TemporaryDirectory(dir=base) as root:
        Path(root).chmod(0o755)
        seen = try_out(DirectoryMachine, Place(dict.fromkeys(MOUNTS, root)))
    assert len(seen) > 50, "an oracle that is asked little proves little"


@pytest.fixture
def mounted_place(tmp_path) -> Iterator[MountedPlace]:
    """Two mounts of a fresh filesystem with a short lease, so that a crash holds nobody up for long."""
    pool = DirectoryPool.create(tmp_path / "p")
    with SharedFilesystem(tmp_path / "fs", pool.url, pool.key) as filesystem:
        filesystem.create()
        filesystem.start_server(lease_s=LEASE_S)
        yield MountedPlace(filesystem)


@pytest.mark.system
def test_two_mounts_are_the_model_after_every_operation(mounted_place):
    seen = try_out(MountMachine, mounted_place)
    assert len(seen) > 50
