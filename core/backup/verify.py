"""Proving that backups can be restored: chains, tables, every chunk; and the recovery test, which restores and looks at what came out.

Stateless; one thread each. A chunk that several backups share is read once. Damage is collected, not raised: each finding names the backup.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.backup import limits
from core.backup.catalog import Catalog, check_chain
from core.backup.chunk_index import ids_of
from core.backup.chunks import fixed_ids
from core.backup.manifest import Manifest
from core.backup.restore import restore_image
from core.backup.table import Table
from core.backup.trust import Standing, refuse_late
from core.backup.visit import Visit
from core.backup.whole import needed_ids
from core.errors import IntegrityError
from core.format.pack import Ids
from core.pool.pool import Pool
from core.volume.image import Image
from core.volume.images import open_image
from core.volume.options import ImageOptions
from core.volume.removal import remove_image

Progress = Callable[[int, int | None], None]
_STEP = 256
"""Chunks read in a row before progress is told."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with one backup."""

    manifest: Manifest
    what: str


@dataclass(slots=True)
class VerifyReport:
    """What was looked at, and what is wrong."""

    backups: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    retired: int = 0
    """Backups whose writer was retired since: whole, but the signature no longer says who made them."""


def verify(
    visit: Visit, catalog: Catalog, manifests: Iterable[Manifest], progress: Progress, *, data: bool = True
) -> VerifyReport:
    """Check backups: their chains, their tables, that every chunk is there, and with `data` that each holds what its id says."""
    report = VerifyReport()
    rows_of: list[tuple[Manifest, npt.NDArray[np.int64]]] = []
    for each in manifests:
        report.backups += 1
        try:
            report.retired += refuse_late(visit.vault, each) is Standing.RETIRED
            check_chain(catalog, each)
            rows_of.append((each, _rows(visit, each)))
        except IntegrityError as error:
            report.findings.append(Finding(each, str(error)))
    rows = np.unique(np.concatenate([rows for _, rows in rows_of])) if rows_of else np.zeros(0, np.int64)
    report.chunks = len(rows)
    report.chunk_bytes = int(visit.index.table.lengths[rows].sum())
    if data:
        bad = _bad_rows(visit, rows, report.chunk_bytes, progress)
        for each, mine in rows_of:
            hurt = [row for row in bad if row in mine]
            if hurt:
                report.findings.append(Finding(each, f"{len(hurt)} chunks are damaged: {bad[hurt[0]]}"))
    return report


def _rows(visit: Visit, manifest: Manifest) -> npt.NDArray[np.int64]:
    """Give the rows of every chunk that a backup needs; IntegrityError if one is missing or a page of its table is damaged."""
    found = [np.zeros(0, np.int64)]
    for ids in needed_ids([manifest], visit.reader.get):
        rows = visit.index.rows(ids)
        if (rows < 0).any():
            name = ids[rows < 0][0].tobytes().hex()
            raise IntegrityError(f"{int((rows < 0).sum())} chunks are missing from the vault, the first is {name}")
        found.append(rows)
    return np.unique(np.concatenate(found))


def _bad_rows(
    visit: Visit, rows: npt.NDArray[np.int64], total_bytes: int, progress: Progress
) -> dict[int, IntegrityError]:
    """Read chunks in the order they stand in; give those that cannot be read, with the reason."""
    bad: dict[int, IntegrityError] = {}
    done = 0
    for at in range(0, len(rows), _STEP):
        part = rows[at : at + _STEP]
        ids = visit.index.table.ids[part]
        try:
            for _ in visit.reader.many(ids):
                pass
        except IntegrityError:
            bad |= _one_by_one(visit, part, ids)
        done += int(visit.index.table.lengths[part].sum())
        progress(done, total_bytes)
    return bad


def _one_by_one(visit: Visit, rows: npt.NDArray[np.int64], ids: Ids) -> dict[int, IntegrityError]:
    bad: dict[int, IntegrityError] = {}
    for row, name in zip(rows.tolist(), ids, strict=True):
        try:
            visit.reader.get(name.tobytes())
        except IntegrityError as error:
            bad[row] = error
    return bad


def recovery_test(visit: Visit, manifest: Manifest, pool: Pool, options: ImageOptions, progress: Progress) -> None:
    """Restore an image's backup into a scratch image of `pool`, read that back and compare; IntegrityError if it differs.

    The scratch image goes whatever happens.
    """
    name = f"recovery-test-{manifest.key_part[:8]}-{pool.world.random_bytes(4).hex()}"
    restore_image(visit, manifest, pool, name, options, progress)
    try:
        image = open_image(pool, name, writable=False, options=options)
        try:
            _compare(visit, manifest, image)
        finally:
            image.close()
    finally:
        remove_image(pool, name, force=True)


def _compare(visit: Visit, manifest: Manifest, image: Image) -> None:
    """Cut and name the image's bytes as a run would, and hold that against the table: nothing that restored it is asked."""
    if image.size_bytes != manifest.size_bytes:
        raise IntegrityError(
            f"backup {manifest.key_part} came back with {image.size_bytes} bytes, not {manifest.size_bytes}"
        )
    wanted = Table(manifest.root, visit.reader.get)
    step = limits.BATCH_BYTES
    for offset in range(0, manifest.size_bytes, step):
        view = memoryview(bytearray(min(step, manifest.size_bytes - offset)))
        image.read_into(offset, view)
        found = ids_of(fixed_ids(visit.vault.chunk_key, view))
        expected = np.zeros(len(found), found.dtype)
        first = offset // limits.CHUNK_BYTES
        for slot, ids in wanted.runs(first, first + len(found)):
            expected[slot - first : slot - first + len(ids)] = ids
        if not np.array_equal(found, expected):
            slot = first + int(np.flatnonzero(found != expected)[0])
            raise IntegrityError(
                f"backup {manifest.key_part} came back with other bytes at {slot * limits.CHUNK_BYTES}"
            )
