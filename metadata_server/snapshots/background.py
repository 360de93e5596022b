"""Snapshots as something that runs beside a server's loop (runtime.server, `background`)."""

import logging

import trio

from core.errors import BlockyardError
from metadata_server.claim import Claim
from metadata_server.protocol.requests import AskTask, BeginTask
from metadata_server.runtime.server import Background, Server
from metadata_server.snapshots.grafter import Grafter
from metadata_server.snapshots.maker import Maker
from metadata_server.snapshots.tasks import Facts, Task, Tasks
from metadata_server.space.guard import Guard

_LOG = logging.getLogger("blockyard.snapshots")
_RETRY_S = 30.0

CREATE = b"create-snapshot"
CLONE = b"clone"
RESTORE = b"restore"
ROLLBACK = b"rollback"


def snapshot_background(claim: Claim, guard: Guard) -> Background:
    """Give what to hand to `serve`: it works off the tasks of a filesystem until it is cancelled."""
    filesystem, directory = claim.filesystem, claim.directory

    async def keep_tasks(server: Server) -> None:
        maker = Maker(filesystem, directory, server, guard, claim.verify)

        async def create(task: Task) -> Facts:
            arguments = task.arguments
            made = await maker.make(str(arguments["name"]), task.progress, protect=bool(arguments["protect"]))
            return {"name": made.name}

        grafter = Grafter(filesystem, directory, server, guard)
        kinds = {CREATE: create, CLONE: grafter.clone, RESTORE: grafter.restore, ROLLBACK: grafter.rollback}
        tasks = Tasks(kinds, int.from_bytes(filesystem.world.random_bytes(7)))
        server.show(lambda: {"snapshots": guard.pinning, "tasks_total": tasks.done, "tasks_failed_total": tasks.failed})
        server.answer(BeginTask.opcode, tasks.begin)
        server.answer(AskTask.opcode, tasks.ask)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grafter.let_go)
            await _clear_up(maker)
            await tasks.run()

    return keep_tasks


async def _clear_up(maker: Maker) -> None:
    while True:
        try:
            await maker.clear_up()
            return
        except BlockyardError as error:
            _LOG.warning("what is left of unfinished snapshots could not be removed and is tried again: %s", error)
            await trio.sleep(_RETRY_S)
