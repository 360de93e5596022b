"""One process's claim on the metadata of a filesystem: the pool's lock, the database, and the record of which database counts.

A `Claim` belongs to one thread, but for `beat`, which one thread at a time may call (it blocks on the store). It owns the lock record
while it holds it, and the engine. Safety is that of core.filesystem.serving (its invariants 1 to 3); what this module adds:

1. *Not an older copy.* The data directory remembers the revision it was last served under (file `revision`). A copy of it that stayed
   behind when the metadata moved on has a lower one than the pool, and is refused; the place the newest record names is always good.
2. *Not behind the pool.* A database that never gave out a segment number that stands in the pool is an older state of itself; served,
   it would give that number again. It is refused.
3. *Whoever lost it ends.* `beat` raises FencedError once the lock or the newest revision is another's: the server stops at once.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from blake3 import blake3

from core.errors import FencedError, IntegrityError, LockedError, NotFoundError, UsageError, WorldError
from core.filesystem.filesystems import Filesystem
from core.filesystem.serving import DATABASE_ID_BYTES, MetadataPlace, MetadataRecords, server_lock
from core.world import World
from metadata_server.client.places import server_places
from metadata_server.engine.contract import Counter
from metadata_server.engine.sqlite import SqliteEngine, exists
from metadata_server.protocol.model import ROOT
from metadata_server.protocol.requests import SetAttributes
from metadata_server.tree.tree import Tree

_REVISION_NAME: Final = "revision"


def data_directory(filesystem: Filesystem, given: Path | None) -> Path:
    """Say where this machine keeps a filesystem's metadata: where it is told to, else where it was, else the default place."""
    if given is not None:
        return given.expanduser().absolute()
    place = MetadataRecords(filesystem).newest()
    if place is not None and place.host == filesystem.world.hostname:
        return Path(place.directory)
    return server_places(filesystem.info.volume_id).data_dir


def now_ns_of(world: World) -> Callable[[], int]:
    """Give the clock that stamps inodes."""
    now = world.now
    return lambda: int(now() * 1e9)


def database_id(engine: SqliteEngine) -> bytes:
    """Give what names this database among all others: it goes with its name key, which is drawn when the database is made."""
    return blake3(engine.name_key).digest()[:DATABASE_ID_BYTES]


class Claim:
    """See the module. Take one with `take_claim`."""

    def __init__(self, filesystem: Filesystem, directory: Path) -> None:
        self.filesystem: Final = filesystem
        self.directory: Final = directory
        self._records = MetadataRecords(filesystem)
        self._lock = server_lock(
            filesystem.store, filesystem.names, filesystem.keys, filesystem.info.name, filesystem.world
        )
        self._place: MetadataPlace | None = None
        self._engine: SqliteEngine | None = None

    @property
    def engine(self) -> SqliteEngine:
        """The open database."""
        assert self._engine is not None, "take_claim opened it"
        return self._engine

    def beat(self) -> None:
        """Renew the lock and look whether the metadata is still ours; FencedError if it is not. StoreError: try again."""
        if not self._lock.renew():
            raise FencedError(
                f"another process took over the filesystem {self.filesystem.info.name}: this server serves it no more"
            )
        self._check_newest()

    def verify(self) -> None:
        """Look whether the metadata is still ours, as `beat` does; any thread. FencedError if it is not."""
        self._check_newest()

    def release(self) -> None:
        """Close the database and give the lock back."""
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self) -> None:
        self._lock.acquire(force=False)
        try:
            newest = self._records.newest()
            if newest is not None and not exists(self.directory):
                raise _lost(self.filesystem.info.name, self.directory, newest)
            self._open_engine()
            if newest is None:
                self._begin_tree()
            self._register(newest)
            self._check_not_behind()
        except BaseException:
            with contextlib.suppress(WorldError):
                self.release()
            raise

    def _open_engine(self) -> None:
        make_directory(self.directory)
        world = self.filesystem.world
        self._engine = SqliteEngine(
            self.directory, filesystem=self.filesystem.info.volume_id, random_bytes=world.random_bytes
        )

    def _begin_tree(self) -> None:
        """Make the root directory and give it to whom the filesystem belongs. Done again after a crash: nobody has used it yet."""
        info = self.filesystem.info
        tree = Tree(self.engine, now_ns_of(self.filesystem.world))
        root = tree.attributes(ROOT)
        assert root is not None, "a tree has a root"
        if (root.uid, root.gid) != (info.uid, info.gid):
            tree.apply(0, SetAttributes(ROOT, None, info.uid, info.gid, None, None))
        tree.commit()
        tree.sync()

    def _register(self, newest: MetadataPlace | None) -> None:
        """Make sure that the newest record names this database in this place (invariant 1)."""
        name, here = self.filesystem.info.name, str(self.directory)
        own = database_id(self.engine)
        is_here = newest is not None and (newest.host, newest.directory) == (self.filesystem.world.hostname, here)
        if newest is not None:
            stale = newest.database_id != own or (not is_here and _read_revision(self.directory) != newest.revision)
            if stale:
                raise UsageError(
                    f"{here} holds an older copy of the metadata of {name}: it moved to {newest.directory} on host "
                    f"{newest.host}; serve it from there"
                )
        if newest is None or not is_here:
            newest = self._records.put(0 if newest is None else newest.revision + 1, own, here)
            if newest is None:
                raise LockedError(f"another server took the filesystem {name} at the same moment; use that one")
        self._place = newest
        _write_revision(self.directory, newest.revision)

    def _check_newest(self) -> None:
        newest = self._records.newest()
        if newest != self._place:
            raise FencedError(
                f"the metadata of the filesystem {self.filesystem.info.name} is elsewhere now: this server serves it no more"
            )

    def _check_not_behind(self) -> None:
        """Refuse a database that is older than what stands in the pool (invariant 2)."""
        names = self.filesystem.names
        last_given = names.segment(self.engine.next_of(Counter.SEQUENCE) - 1)
        for info in self.filesystem.store.list(names.log, after=last_given):
            raise IntegrityError(
                f"{self.directory} holds an older state of the metadata of {self.filesystem.info.name}: the pool has {info.key}, which "
                "it knows nothing of. Bring the newest state back; if there is none, `blockyard fs dump` this one and "
                "`blockyard fs load` it"
            )


def take_claim(filesystem: Filesystem, directory: Path) -> Claim:
    """Claim the filesystem and open its metadata in `directory`; a filesystem that has none anywhere gets an empty database.

    LockedError while another server is alive, NotFoundError if the metadata was lost or is elsewhere, UsageError for an older copy or
    another filesystem's database, IntegrityError for bad bytes. Needs a writer's key.
    """
    claim = Claim(filesystem, directory)
    claim._take()  # noqa: SLF001  # what has side effects is no constructor
    return claim


def require_database(filesystem: Filesystem, directory: Path) -> None:
    """Return if there is metadata in a directory; NotFoundError that says where it was, or that there never was any."""
    if exists(directory):
        return
    newest = MetadataRecords(filesystem).newest()
    if newest is None:
        raise NotFoundError(f"the filesystem {filesystem.info.name} was never served: it has no metadata yet")
    raise _lost(filesystem.info.name, directory, newest)


def make_directory(directory: Path) -> None:
    """Make a data directory that only its owner may look into."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WorldError(f"cannot make the data directory {directory}: {error.strerror}") from error


def _lost(name: str, directory: Path, newest: MetadataPlace) -> NotFoundError:
    return NotFoundError(
        f"the metadata of filesystem {name} is not in {directory}; it was in {newest.directory} on host {newest.host}. "
        "Serve it from there, or bring that directory here and name it with --data-dir; if it is lost, restore a dump with "
        "`blockyard fs load`"
    )


def _read_revision(directory: Path) -> int | None:
    try:
        return int((directory / _REVISION_NAME).read_text("ascii"))
    except (OSError, ValueError):
        return None


def _write_revision(directory: Path, revision: int) -> None:
    if _read_revision(directory) == revision:
        return
    aside = directory / f"{_REVISION_NAME}.new"
    try:
        with aside.open("w", encoding="ascii") as file:
            file.write(f"{revision}\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(directory / _REVISION_NAME)
    except OSError as error:
        raise WorldError(f"cannot write into the data directory {directory}: {error.strerror}") from error
