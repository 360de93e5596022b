"""Whose snapshots a name leads to: an image's, or those of a kind of volume that another package understands.

Other packages offer an object under the entry point group `blockyard.providers`, named as the kind is (`VolumeKind`). Stateless.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from core.cli.lazy import entry_points
from core.cli.output import Row
from core.cli.session import Session
from core.errors import NotFoundError, UsageError
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.volume.generations import snapshots
from core.volume.generations.snapshots import Snapshot

PROVIDERS: Final = "blockyard.providers"


class SnapshotKind(Protocol):
    """What can be done with the snapshots of a volume `name` of an open pool. Rows have `name`, `created` (Unix seconds),
    `size_bytes` and `protected`, and what else there is to tell."""

    def create_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, *, protect: bool) -> Row:
        """Make one, with everything that was flushed before; durable on return."""

    def list_snapshots(self, session: Session, pool: Pool, name: str) -> Sequence[Row]:
        """Give them, oldest first."""

    def remove_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str) -> None:
        """Forget one; UsageError if it is protected."""

    def rename_snapshot(self, session: Session, pool: Pool, name: str, old: str, new: str) -> object:
        """Give one another name."""

    def protect_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, on: bool, /) -> object:
        """Keep one from being removed, or let it be removed again."""

    def rollback_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str) -> object:
        """Make the volume what it was; LockedError while it is in use."""


class ImageSnapshots:
    """The snapshots of images."""

    def create_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, *, protect: bool) -> Row:
        del session
        return image_row(snapshots.create_snapshot(pool, name, snapshot, protect=protect))

    def list_snapshots(self, session: Session, pool: Pool, name: str) -> Sequence[Row]:
        del session
        return [image_row(each) for each in snapshots.list_snapshots(pool, name)]

    def remove_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str) -> None:
        del session
        snapshots.remove_snapshot(pool, name, snapshot)

    def rename_snapshot(self, session: Session, pool: Pool, name: str, old: str, new: str) -> None:
        del session
        snapshots.rename_snapshot(pool, name, old, new)

    def protect_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, on: bool, /) -> None:
        del session
        snapshots.protect_snapshot(pool, name, snapshot, on=on)

    def rollback_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, *, force: bool = False) -> None:
        """Make the image what it was; `force` cuts a living writer off."""
        del session
        snapshots.rollback(pool, name, snapshot, force=force)


def image_row(snapshot: Snapshot) -> Row:
    """Describe a snapshot of an image."""
    return {
        "name": snapshot.name,
        "id": snapshot.id.hex(),
        "created": snapshot.created,
        "size_bytes": snapshot.size_bytes,
        "generation": snapshot.pin.generation,
        "protected": snapshot.protected,
        "group": None if snapshot.group is None else snapshot.group.hex(),
    }


def kind_of(pool: Pool, name: str) -> VolumeKind:
    """Say what a name leads to; NotFoundError if nothing has it."""
    found = pool.names.find(name)
    if found is None:
        raise NotFoundError(f"nothing is called {name!r} in the pool at {pool.store.url}")
    return found.kind


def has_snapshots(kind: VolumeKind) -> bool:
    """Say whether this program makes snapshots of this kind of volume."""
    return kind is VolumeKind.IMAGE or bool(entry_points(group=PROVIDERS, name=kind.value))


def snapshots_of(kind: VolumeKind) -> SnapshotKind:
    """Give what makes snapshots of this kind of volume; UsageError if nothing does."""
    if kind is VolumeKind.IMAGE:
        return ImageSnapshots()
    for each in entry_points(group=PROVIDERS, name=kind.value):
        provider: SnapshotKind = each.load()
        return provider
    raise UsageError(
        f"{kind.with_article} has no snapshots here; images have, and filesystems where their server is installed"
    )
