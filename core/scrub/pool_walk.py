"""What stands at the top of a pool: who may open it and write, which volumes it has, what their names are.

Stateless but for one walk; one thread.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from core.errors import IntegrityError
from core.format.record import RecordKind, open_record
from core.pool.description import PREFIX as REVISIONS
from core.pool.description import description_key
from core.pool.keys import Role
from core.pool.names import PREFIX as NAMES
from core.pool.names import VOLUME_ID_BYTES, Name, VolumeKind
from core.pool.object_families import ObjectFamily
from core.pool.pool import Pool
from core.pool.slots import PREFIX as SLOTS
from core.pool.slots import read_slots, slot_info, slot_key
from core.pool.volumes import FILESYSTEMS, IMAGES, VAULTS, VolumeFamily
from core.scrub.families import family_of
from core.scrub.report import NO_SOURCE, Finding, Trouble
from core.scrub.run import Run
from core.store.contract import ObjectMissingError

VOLUMES: Final = (IMAGES, FILESYSTEMS, VAULTS)


class PoolWalk:
    """The records of a pool that belong to no volume."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.names: dict[bytes, Name] = {}

    def records(self) -> None:
        """Prove the pool's own records, and see that those stand which others tell of."""
        run = self._run
        for prefix in (REVISIONS, SLOTS):
            run.look_at_all(prefix, None)
        self._check_revisions()
        self._check_slots()
        for key in ("name/", "removed/", "removing/", "retired/"):
            run.look_at_all(key, None)
        known = tuple(f"{each.directory}/" for each in VOLUMES)
        apart = (*known, REVISIONS, SLOTS, "name/", "removed/", "removing/", "retired/")
        run.look_at_all("", None, lambda key: key.startswith(apart))
        self._learn_names()

    def _learn_names(self) -> None:
        self.names = {}
        for info in list(self._run.pool.store.list(NAMES)):
            with suppress(IntegrityError, ObjectMissingError):  # the one was reported, the other removed
                each = read_name(self._run.pool, info.key, self._run.pool.store.get(info.key))
                if each.volume_id not in self.names or each.renames > self.names[each.volume_id].renames:
                    self.names[each.volume_id] = each

    def _check_revisions(self) -> None:
        """Revisions count up by one and are never removed; and we have read one that must be there still."""
        run = self._run
        there = {int(info.key.removeprefix(REVISIONS), 16) for info in run.pool.store.list(REVISIONS)}
        newest = max([run.pool.description.revision, *there, *self._mirrored_revisions()])
        for revision in sorted(set(range(newest + 1)) - there):
            key = description_key(revision)
            if run.pool.store.head(key) is None:
                self._missing(key, f"{key} is missing: revisions of a pool's description are never removed")

    def _mirrored_revisions(self) -> list[int]:
        return [
            int(info.key.removeprefix(REVISIONS), 16)
            for source in self._run.mender.sources
            if source.mirror
            for info in source.store.list(REVISIONS)
        ]

    def _check_slots(self) -> None:
        """Every member that the description lists has a slot; else whoever it is cannot open the pool any more."""
        run = self._run
        own = slot_key(run.pool.slot_id)
        lacking = self._lacking()
        if lacking and run.pool.store.head(own) is None:
            self._missing(own, f"{own} is missing, which opened this pool")
            lacking = self._lacking()
        for source in run.mender.sources:
            for info in source.store.list(SLOTS) if lacking else ():
                if run.pool.store.head(info.key) is None:
                    self._missing(info.key, f"{info.key} is missing, and a member of the pool has no slot")
                    lacking = self._lacking()
                    if not lacking:
                        break
        if lacking:
            problem = (
                f"{lacking} of the pool's members have no slot: slots were lost, or a change of keys was interrupted"
            )
            run.report.find(Finding(f"{SLOTS}(unknown)", "key slot", Trouble.MISSING, problem, remedy=NO_SOURCE))

    def _lacking(self) -> int:
        """Count the members that have no slot. Who is no owner sees of slots only the roles."""
        pool = self._run.pool
        members = Counter(each.role for each in pool.description.members)
        slots = Counter(self._roles())
        return sum((members - slots).values())

    def _roles(self) -> list[Role]:
        found: list[Role] = []
        pool = self._run.pool
        try:
            found.extend(
                slot_info(slot, slot_id, pool.keys, pool.ring).role for slot_id, slot in read_slots(pool.store)
            )
        except IntegrityError:
            return [each.role for each in pool.description.members]  # a bad slot was reported; nothing is told from it
        return found

    def is_named(self, volume_id: bytes) -> bool:
        """Say whether a name leads to a volume as of now."""
        self._learn_names()
        return volume_id in self.names

    def check_name(self, family: VolumeFamily, volume_id: bytes, *, used: bool) -> None:
        """Every volume has a name; one without, and without content, was never finished."""
        run = self._run
        if volume_id in self.names or self._is_removed(volume_id):
            return
        self._learn_names()  # it may have been named since
        key = family.description_key(volume_id)
        if volume_id in self.names or run.pool.store.head(key) is None:
            return
        if self._restore_name(volume_id):
            self._learn_names()
            return
        if used:
            problem = f"no name leads to {key}: its name was lost, or its removal was interrupted"
            finding = Finding(f"{NAMES}(of {volume_id.hex()})", "name", Trouble.MISSING, problem, remedy=NO_SOURCE)
            run.report.find(finding)
        else:
            run.report.stray(key, "an empty volume without a name: its creation was interrupted")

    def _is_removed(self, volume_id: bytes) -> bool:
        return self._run.pool.store.head(f"removed/{volume_id.hex()}") is not None

    def _restore_name(self, volume_id: bytes) -> bool:
        for source in self._run.mender.sources:
            for info in source.store.list(NAMES):
                if self._run.pool.store.head(info.key) is None and self._leads_to(info.key, volume_id):
                    return self._missing(info.key, f"{info.key} is missing, which leads to {volume_id.hex()}")
        return False

    def _leads_to(self, key: str, volume_id: bytes) -> bool:
        """Say whether a source has a name record of this volume under a key."""
        found: list[bytes] = []
        pool = self._run.pool

        def proves(data: bytes) -> None:
            found.append(read_name(pool, key, data).volume_id)

        return any(self._run.mender.copies(key, proves)) and found[-1] == volume_id

    def check_named(self, told: Callable[[bytes], bool]) -> None:
        """Every name leads to a volume that is there."""
        store = self._run.pool.store
        for each in self.names.values():
            family = next(family for family in VOLUMES if family.kind is each.kind)
            key = family.description_key(each.volume_id)
            if told(each.volume_id) and store.head(key) is None and not self._is_removed(each.volume_id):
                fresh = self._run.pool.names.find(each.name)
                if fresh is not None and fresh.volume_id == each.volume_id:
                    self._missing(key, f"{key} is missing, and the name {each.name!r} leads to it")

    def _missing(self, key: str, problem: str) -> bool:
        family = self._family(key)
        return self._run.mender.missing(key, family.name, problem, self._run.prover(family, key, None))

    def _family(self, key: str) -> ObjectFamily:
        found = family_of(self._run.families, key)
        assert found is not None, "records of the pool are in the table"
        return found


def read_name(pool: Pool, key: str, data: bytes) -> Name:
    """Read a name record, wherever it was read from; IntegrityError if it is not what belongs under this key."""
    fields = open_record(pool.keys.record_keys(pool.algorithm, pool.verifiers, pool.ring), RecordKind.NAME, key, data)
    kind = fields.text("kind") if fields.has("kind") else VolumeKind.IMAGE.value
    if kind not in {each.value for each in VolumeKind}:
        raise IntegrityError(f"{key} leads to something this program does not know: use a newer one")
    return Name(fields.text("name"), fields.blob("image", VOLUME_ID_BYTES), fields.integer("renames"), VolumeKind(kind))
