"""Snapshots of filesystems for the command's own verbs (core.cli): the entry point `filesystem` of the group `blockyard.providers`.

`create` and `rollback` are done by the filesystem's server; everything else is a matter of records in the pool. Blocking.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from core.cli.output import Row
from core.cli.session import Session
from core.filesystem.filesystems import open_filesystem
from core.filesystem.snapshots import FilesystemSnapshot, FilesystemSnapshots
from core.pool.pool import Pool
from metadata_server.maintenance.inventory import Progress
from metadata_server.snapshots.asking import run_task, with_server
from metadata_server.snapshots.background import CREATE, ROLLBACK


class FilesystemProvider:
    """What can be done with snapshots of a filesystem `name` of an open pool."""

    def create_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, *, protect: bool = False) -> Row:
        """Make a snapshot, with everything that was fsynced before; durable on return."""
        filesystem = open_filesystem(pool, name)
        pool.keys.require_writer("making a snapshot")
        snapshots = FilesystemSnapshots(filesystem)
        snapshots.check_free(snapshot)
        arguments = {"name": snapshot, "protect": protect}
        with task_bar() as progress:
            with_server(filesystem, session.environment, lambda client: run_task(client, CREATE, arguments, progress))
        return _row(snapshots.get(snapshot))

    def list_snapshots(self, session: Session, pool: Pool, name: str) -> list[Row]:
        """Give the snapshots, oldest first."""
        del session
        return [_row(each) for each in FilesystemSnapshots(open_filesystem(pool, name)).everything()]

    def remove_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str) -> None:
        """Remove a snapshot; what it alone needed leaves the pool when the server collects next."""
        del session
        pool.keys.require_writer("removing a snapshot")
        FilesystemSnapshots(open_filesystem(pool, name)).remove(snapshot)

    def rename_snapshot(self, session: Session, pool: Pool, name: str, old: str, new: str) -> Row:
        """Rename a snapshot."""
        del session
        pool.keys.require_writer("renaming a snapshot")
        return _row(FilesystemSnapshots(open_filesystem(pool, name)).rename(old, new))

    def protect_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str, on: bool) -> Row:
        """Let a snapshot not be removed, or be removed again."""
        del session
        pool.keys.require_writer("protecting a snapshot")
        return _row(FilesystemSnapshots(open_filesystem(pool, name)).protect(snapshot, on=on))

    def rollback_snapshot(self, session: Session, pool: Pool, name: str, snapshot: str) -> Row:
        """Make the filesystem what it was at a snapshot, with nobody mounting it; what was written since stays in other snapshots alone."""
        filesystem = open_filesystem(pool, name)
        pool.keys.require_writer("rolling a filesystem back")
        found = FilesystemSnapshots(filesystem).get(snapshot)
        arguments = {"snapshot": snapshot}
        with task_bar() as progress:
            with_server(filesystem, session.environment, lambda client: run_task(client, ROLLBACK, arguments, progress))
        return _row(found)


PROVIDER: Final = FilesystemProvider()


def _row(snapshot: FilesystemSnapshot) -> Row:
    return {
        "name": snapshot.name,
        "created": snapshot.created,
        "size_bytes": snapshot.size_bytes,
        "inodes": snapshot.inodes,
        "protected": snapshot.protected,
    }


@contextmanager
def task_bar() -> Iterator[Progress]:
    """Show on standard error what a server does now; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
