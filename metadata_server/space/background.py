"""Giving space back as something that runs beside a server's loop (runtime.server, `background`)."""

from core.filesystem.filesystems import Filesystem
from metadata_server.runtime.server import Background, Server
from metadata_server.space.guard import Guard
from metadata_server.space.keeper import SpaceKeeper, SpaceOptions
from metadata_server.space.pool import SegmentPool
from metadata_server.space.tree_ledger import TreeLedger


def space_background(filesystem: Filesystem, options: SpaceOptions, guard: Guard | None = None) -> Background:
    """Give what to hand to `serve`: it keeps the space of a filesystem until it is cancelled."""

    async def keep_space(server: Server) -> None:
        ledger = TreeLedger(server.tree, server, lambda: server.transactions, guard)
        pool = SegmentPool(filesystem.store, filesystem.names, filesystem.keys, filesystem.world)
        keeper = SpaceKeeper(ledger, pool, options, guard)
        server.on_session_ended(lambda _session: keeper.session_ended())
        collector, repacker = keeper.collector, keeper.repacker
        server.show(
            lambda: {
                "space_waiting_segments": collector.waiting,
                "space_deleted_segments_total": collector.deleted,
                "space_repacked_segments_total": repacker.repacked,
                "space_bad_segments": len(repacker.bad),
            }
        )
        await keeper.run()

    return keep_space
