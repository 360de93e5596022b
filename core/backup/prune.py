"""Deleting what no backup needs, beside runs and restores that go on (docs/durability.md, "The vault").

`Prune` belongs to one thread and one prune. Only one prune works at a time: it owns the vault's lock and a lease, and stops before its next
step when the lease ran out.

5. *Live stays.* What is to be deleted is condemned first, durably. THEN the leases are listed: while one lives whose
   holder does not know of the condemnation, its packs stay. THEN the manifests are listed again: what a new one needs of a
   condemned pack acquits it. A run that begins later knows of the condemnation and counts on none of its packs.
   Copies stand in new packs and in the index before what they were copied from is condemned.
   The index without the packs stands before the old index objects go, these go before the packs, and the condemnation
   goes last. So a crash between any two steps leaves what the next prune finishes.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.backup import limits
from core.backup.catalog import Catalog, load_catalog
from core.backup.chunk_index import ChunkIndex, PackName, each_once, join_packs
from core.backup.chunk_reader import ChunkReader
from core.backup.condemned import Condemnation, condemnations, packs_of, put_condemnation, withdraw
from core.backup.index_store import load_indexes, put_indexes
from core.backup.leases import Lease, drop_lease, leases
from core.backup.manifest import Manifest
from core.backup.pack_writer import PackWriter
from core.backup.prune_plan import Needed, PrunePlan, plan_prune
from core.backup.vault import Vault
from core.backup.whole import needed_ids
from core.errors import IntegrityError, WorldError
from core.format.compression import Compression
from core.format.pack import GroupKind, Ids
from core.store.contract import ObjectInfo
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock

Progress = Callable[[int, int | None], None]
_IN_USE = "the vault of {name} is being pruned by {owner}; wait until that is done"


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune did, or would do."""

    dead_packs: int
    repacked_packs: int
    deleted_packs: int
    deleted_bytes: int
    written_bytes: int
    live_bytes: int
    waiting_packs: int
    """Condemned packs that somebody at work may still count on: a later prune deletes them."""


def prune(
    vault: Vault,
    compression: Compression,
    progress: Progress,
    *,
    dry_run: bool = False,
    unused: float | None = None,
    carry_over: bool = False,
) -> PruneReport:
    """Delete what no backup needs. LockedError while another prune is at work; IntegrityError if a backup misses something.

    With `carry_over`, packs and indexes under keys of before a rotation are written anew. Manifests are not, since their children carry the
    digest of their bytes: they go when they are forgotten.
    """
    vault.pool.keys.require_writer("pruning a vault")
    share = limits.UNUSED_SHARE if unused is None else unused
    lock = OwnerLock(
        vault.store, VolumeNames(vault.names.prefix), vault.keys, vault.pool.store.url, vault.world, _IN_USE
    )
    lock.acquire(force=False)
    try:
        with Lease(vault, required=True, also=lock.renew) as lease:
            return Prune(vault, lease, compression, progress, share, carry_over=carry_over).run(dry_run=dry_run)
    finally:
        lock.release()


class Prune:
    """One prune. See the opening of the module."""

    def __init__(
        self,
        vault: Vault,
        lease: Lease,
        compression: Compression,
        progress: Progress,
        unused_share: float,
        *,
        carry_over: bool,
    ) -> None:
        self._vault = vault
        self._lease = lease
        self._compression = compression
        self._progress = progress
        self._unused_share = unused_share
        self._carry_over = carry_over
        self._written_bytes = 0

    def run(self, *, dry_run: bool) -> PruneReport:
        """Do it all; give what was done."""
        standing = {self._vault.names.pack_of(each.key): each.size_bytes for each in self._list_packs()}
        found = self._strays(standing)
        old = condemnations(self._vault)
        catalog = load_catalog(self._vault)  # before the index, which then has everything that they need
        index = ChunkIndex(join_packs(load_indexes(self._vault).values()))
        strays = sorted(found.difference(index.names))
        needed, acquitted = self._needed(index, catalog.manifests, old)
        old = self._acquit(old, acquitted, dry_run=dry_run)
        settled = packs_of(old)
        key_id = self._vault.keys.newest()[0] if self._carry_over else None
        plan = plan_prune(index, needed, settled, self._unused_share, key_id)
        if dry_run:
            doomed = {*(index.names[row] for row in (*plan.dead, *plan.repacked)), *strays, *settled}
            return self._report(plan, 0, _bytes_of(doomed, standing), len(settled))
        self._repack(index, needed, plan)
        new = self._condemn([*(index.names[row] for row in (*plan.dead, *plan.repacked)), *strays])
        ready, waiting = self._ready([*old, *new], catalog)
        gone = packs_of(ready)
        self._rewrite_index(gone)
        deleted = self._delete(sorted(gone & standing.keys()))
        for each in ready:
            self._check()
            withdraw(self._vault, each)
        return self._report(plan, deleted, _bytes_of(gone, standing), waiting)

    def _list_packs(self) -> list[ObjectInfo]:
        return list(self._vault.store.list(self._vault.names.packs))

    def _strays(self, standing: Iterable[PackName]) -> set[PackName]:
        """Give packs that nobody goes on from, if no index tells of them. They were listed before leases are, the index is loaded after."""
        busy = {self._lease.nonce}
        for each in leases(self._vault):
            if each.lives(self._vault.world) or not each.forgotten(self._vault.world):
                busy.add(each.nonce)
            elif each.nonce:
                drop_lease(self._vault, each.nonce)
        return {name for name in standing if name[0] not in busy}

    def _needed(
        self, index: ChunkIndex, manifests: Iterable[Manifest], condemned: list[Condemnation]
    ) -> tuple[Needed, set[PackName]]:
        """Mark the copy of each chunk that these backups need; and name the condemned packs that have the only one."""
        standing = ChunkIndex(index.table, packs_of(condemned))
        needed = np.zeros(len(index.table.ids), bool)
        acquitted: set[PackName] = set()
        reader = ChunkReader(self._vault, index, lambda: index)
        try:
            for ids in needed_ids(manifests, reader.get):
                rows = standing.rows(ids)
                lost = rows < 0
                if lost.any():
                    rows[lost] = index.rows(ids[lost])
                    self._refuse_missing(ids, rows)
                    packs = index.pack_of_group[index.group_of_chunk[rows[lost]]]
                    acquitted |= {index.names[pack] for pack in np.unique(packs).tolist()}
                needed[rows] = True
        finally:
            reader.close()
        return needed, acquitted

    def _refuse_missing(self, ids: Ids, rows: npt.NDArray[np.int64]) -> None:
        missing = ids[rows < 0]
        if len(missing):
            raise IntegrityError(
                f"the vault at {self._vault.store.url} misses {len(missing)} chunks that backups need, the first is "
                f"{missing[0].tobytes().hex()}; nothing was pruned. `blockyard backup verify` says which backups are damaged"
            )

    def _acquit(
        self, condemned: list[Condemnation], acquitted: set[PackName], *, dry_run: bool = False
    ) -> list[Condemnation]:
        """Withdraw the condemnations that name a pack somebody needs; give the rest."""
        rest = []
        for each in condemned:
            if each.packs.isdisjoint(acquitted):
                rest.append(each)
            elif not dry_run:
                self._check()
                withdraw(self._vault, each)
        return rest

    def _repack(self, index: ChunkIndex, needed: Needed, plan: PrunePlan) -> None:
        """Copy what is needed out of sparse packs into new ones; durable and indexed on return."""
        if not plan.repacked:
            return
        reader = ChunkReader(self._vault, index, lambda: index)
        with ThreadPoolExecutor(limits.WORK_THREADS, thread_name_prefix="repack") as threads:
            writer = PackWriter(self._vault, self._lease.nonce, self._compression, threads)
            try:
                for done, pack in enumerate(plan.repacked):
                    first, last = index.first_chunk[[index.first_group[pack], index.first_group[pack + 1]]].tolist()
                    rows = first + np.flatnonzero(needed[first:last])
                    kinds = index.table.groups["kind"][index.group_of_chunk[rows]].tolist()
                    ids = index.table.ids[rows]
                    for at, data in enumerate(reader.many(ids)):
                        writer.add(GroupKind(kinds[at]), ids[at].tobytes(), bytes(data))
                    self._progress(done + 1, len(plan.repacked))
                tables = writer.finish()
            except BaseException:
                writer.abandon()
                raise
            finally:
                reader.close()
        put_indexes(self._vault, self._lease.nonce, 0, tables)
        self._written_bytes = writer.stored_bytes

    def _condemn(self, packs: list[PackName]) -> list[Condemnation]:
        step = limits.CONDEMNED_PACKS
        self._check()
        return [put_condemnation(self._vault, packs[at : at + step]) for at in range(0, len(packs), step)]

    def _ready(self, condemned: list[Condemnation], before: Catalog) -> tuple[list[Condemnation], int]:
        """Give the condemnations that everybody at work knows and no backup made meanwhile contradicts, and the packs of the others."""
        at_work = [
            each for each in leases(self._vault) if each.nonce != self._lease.nonce and each.lives(self._vault.world)
        ]
        ready = [each for each in condemned if all(each.id in lease.knows for lease in at_work)]
        waiting = sum(len(each.packs) for each in condemned if each not in ready)
        known = {each.id for each in before.manifests}
        newer = [each for each in load_catalog(self._vault).manifests if each.id not in known]
        if newer and ready:
            index = ChunkIndex(join_packs(load_indexes(self._vault).values()))
            _, acquitted = self._needed(index, newer, condemned)
            ready = self._acquit(ready, acquitted)
        return ready, waiting

    def _rewrite_index(self, doomed: frozenset[PackName]) -> None:
        """Put the index without the doomed packs, then remove the objects it was made of. What is put meanwhile stays."""
        tables = load_indexes(self._vault)
        if not (doomed or self._carry_over) and len(tables) <= limits.INDEXES_KEPT:
            return
        self._check()
        put_indexes(self._vault, self._vault.world.random_bytes(16), 0, each_once(tables.values(), doomed))
        for key in tables:
            self._check()
            self._vault.store.delete(key)

    def _delete(self, packs: list[PackName]) -> int:
        with ThreadPoolExecutor(limits.STORE_THREADS, thread_name_prefix="prune") as threads:
            for at in range(0, len(packs), limits.STORE_THREADS):
                self._check()
                part = packs[at : at + limits.STORE_THREADS]
                list(threads.map(lambda name: self._vault.store.delete(self._vault.names.pack(*name)), part))
                self._progress(at + len(part), len(packs))
        return len(packs)

    def _check(self) -> None:
        if not self._lease.held():
            raise WorldError("the store did not answer for so long that this prune lost its lease; run it again")

    def _report(self, plan: PrunePlan, deleted: int, deleted_bytes: int, waiting: int) -> PruneReport:
        return PruneReport(
            dead_packs=len(plan.dead),
            repacked_packs=len(plan.repacked),
            deleted_packs=deleted,
            deleted_bytes=deleted_bytes,
            written_bytes=self._written_bytes,
            live_bytes=plan.live_bytes,
            waiting_packs=waiting,
        )


def _bytes_of(packs: Iterable[PackName], standing: Mapping[PackName, int]) -> int:
    return sum(standing.get(name, 0) for name in packs)
