"""Consistency groups: snapshots of several images at one moment. Stateless; any thread, any machine.

Every living writer is asked to publish, so that from then on it looks for requests often, and then to hold still. A writer holds still
for `limits.FREEZE_S` after its answer, so when the last answer came sooner after the first question than that, all of them held
still at one moment, that of the last answer. What each answered with is pinned after they were let go.

1. *One moment.* After the last answer every request still stands and every lock is still its owner's: nobody let go early, nobody was
   taken over. An image without a writer had none and logged nothing from before the first question until after the last answer.
2. *All or none.* Should one record not be put, the others go again; a crash while they are put leaves some, and `ls` shows the group.
5. *Live stays.* Leases on everything stand from before the writers are asked until after the records do.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from core import limits
from core.errors import LockedError, StoreError, UsageError
from core.pool.pool import Pool
from core.volume.ancestry import image_log
from core.volume.generations.snapshots import lease, pin_newest, publish
from core.volume.images import image_keys
from core.volume.imports import ImportNotes
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import Owner, OwnerLock, living_owner
from core.volume.log.replay import Log, VolumeState, follow_log, load_state
from core.volume.snapshot_records import ID_BYTES, Snapshot, SnapshotRecords
from core.volume.writer_requests import Request, Wish, WriterRequests, unanswered

_TRIES: Final = 3
_POLL_S: Final = 0.005
Sleep = Callable[[float], None]


def create_group(
    pool: Pool, wanted: Sequence[tuple[str, str]], *, protect: bool = False, sleep: Sleep = time.sleep
) -> list[Snapshot]:
    """Make snapshots (image, name) of several images at one moment; durable on return, in the order given.

    Writers hold still for as long as the slowest of them takes to publish. AlreadyExistsError if a name is taken, LockedError if the
    writers could not be held at one moment; then nothing was made.
    """
    pool.require_writer("making snapshots")
    members = [_Member(pool, image, name) for image, name in wanted]
    if len({each.info.volume_id for each in members}) != len(members):
        raise UsageError("an image stands twice in the group; it has one state at one moment, so name it once")
    for each in members:
        each.records.check_free(each.name)
    with contextlib.ExitStack() as leases:
        held = [leases.enter_context(lease(pool, each.info, each.keys)) for each in members]
        generations = _at_one_moment(pool, members, sleep)
        group = pool.world.random_bytes(ID_BYTES)
        made = []
        with contextlib.ExitStack() as undo:
            for each, generation in zip(members, generations, strict=True):
                made.append(
                    pin_newest(
                        pool, each.info, each.keys, each.name, protect=protect, group=group, generation=generation
                    )
                )
                undo.callback(each.records.remove, each.name)
            if not all(each() for each in held):
                raise StoreError(f"the store of {pool.store.url} is too slow at the moment: a lease ran out; try again")
            undo.pop_all()
    return made


class _Member:
    """One image of a group, and what is needed to look at it. `asked` is what its writer was asked for last."""

    def __init__(self, pool: Pool, image: str, name: str) -> None:
        self.name = name
        self.info, self.keys = image_keys(pool, image)
        self.records = SnapshotRecords(pool.store, self.info, self.keys, pool.world)
        self.requests = WriterRequests(pool.store, self.info.prefix, self.keys, pool.world)
        self.asked: Request | None = None
        self._lock = OwnerLock(pool.store, VolumeNames(self.info.prefix), self.keys, self.info.name, pool.world)
        self._pool = pool

    def writer(self) -> Owner | None:
        """Give the living writer, None if there is none."""
        return living_owner(self._lock, self._pool.world)

    def has_still(self, owner: Owner | None) -> bool:
        """Say whether this writer has the image still."""
        now = self.writer()
        return now is not None and owner is not None and now.nonce == owner.nonce

    def ask(self, wish: Wish) -> None:
        """Ask the writer, who is let go by it from whatever it was asked for before."""
        self.asked = self.requests.ask(wish)

    def answer(self) -> int | None:
        """Give the generation of the writer's answer, None while there is none."""
        assert self.asked is not None, "asked before"
        return self.requests.answer_to(self.asked)

    def stands(self) -> bool:
        """Say whether the writer was asked for nothing else meanwhile, by nobody."""
        return self.asked is not None and self.requests.stands(self.asked)

    def let_go(self) -> None:
        """Withdraw what was asked, answered or not."""
        with contextlib.suppress(StoreError):  # it ends by itself
            if self.stands():
                self.requests.withdraw()
        self.asked = None


@dataclass(frozen=True, slots=True)
class _Idle:
    """An image without a writer: its newest state."""

    member: _Member
    state: VolumeState
    log: Log

    @classmethod
    def of(cls, pool: Pool, member: _Member) -> "_Idle":
        """Load the state."""
        log = image_log(pool, member.info)
        state = load_state(log)
        follow_log(state, log, None)
        return cls(member, state, log)

    def is_same(self) -> bool:
        """Say whether nobody writes it now or did since: a writer begins with a barrier in the log."""
        return self.member.writer() is None and follow_log(self.state, self.log, None) == 0


def _at_one_moment(pool: Pool, members: list[_Member], sleep: Sleep) -> list[int]:
    """Give the generation that each image had at a moment at which all of them held still (1)."""
    for _ in range(_TRIES):
        found = _attempt(pool, members, sleep)
        if found is not None:
            return [found[id(each)] for each in members]
    raise LockedError(
        f"{', '.join(each.info.name for each in members)} could not be held still at one moment in {_TRIES} attempts of "
        f"{limits.FREEZE_S:.0f} s: their store is slow, or somebody else asks their writers for something; try again"
    )


def _attempt(pool: Pool, members: list[_Member], sleep: Sleep) -> dict[int, int] | None:
    """Hold everything still once; give the generations by members, None if it was no one moment."""
    owners = {id(each): _writer_after_publishing(pool, each, sleep) for each in members}
    written = [(each, owner) for each in members if (owner := owners[id(each)]) is not None]
    for each, _ in written:
        each.requests.wait_for_turn(sleep)
    try:
        # Two rounds: an answer to the first makes writers behind a network look often, so the second is quick.
        if _ask(pool, written, Wish.PUBLISH, limits.REQUEST_WAIT_S, sleep) is None:
            return None
        idle = [_Idle.of(pool, each) for each in members if owners[id(each)] is None]
        begun = pool.world.monotonic()
        found = _ask(pool, written, Wish.FREEZE, limits.FREEZE_S, sleep)
        if found is None:
            return None
        nobody_came = all(each.is_same() for each in idle)
        nobody_left = all(each.has_still(owner) and each.stands() for each, owner in written)
        for each in members:  # still held, so a note that does not stand yet is of an import that changed nothing yet
            ImportNotes(pool, each.info, each.keys).refuse_begun()
        if not (nobody_came and nobody_left and pool.world.monotonic() - begun < limits.FREEZE_S):
            return None
        return {**found, **{id(each.member): each.state.generation for each in idle}}
    finally:
        for each, _ in written:
            each.let_go()


def _writer_after_publishing(pool: Pool, member: _Member, sleep: Sleep) -> Owner | None:
    """Give the living writer; where there is none, what a dead one left in growing files is logged first."""
    owner = member.writer()
    if owner is None:
        publish(pool, member.info, member.keys, sleep)
        owner = member.writer()
    return owner


def _ask(
    pool: Pool, written: list[tuple[_Member, Owner]], wish: Wish, wait_s: float, sleep: Sleep
) -> dict[int, int] | None:
    """Ask every writer, then wait for all; give the answers. None where one left, or was asked for something else meanwhile.

    An answer to FREEZE that does not come in time gives None as well; any other is LockedError.
    """
    until = pool.world.monotonic() + wait_s
    for each, _ in written:
        each.ask(wish)
    found: dict[int, int] = {}
    while True:
        for each, owner in written:
            if id(each) not in found:
                generation = each.answer()
                if generation is not None:
                    found[id(each)] = generation
                elif not (each.stands() and each.has_still(owner)):
                    return None
        if len(found) == len(written):
            return found
        if pool.world.monotonic() >= until:
            if wish is Wish.FREEZE:
                return None
            raise unanswered(", ".join(repr(each.info.name) for each, _ in written if id(each) not in found), wait_s)
        sleep(_POLL_S)
