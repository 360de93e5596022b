"""What a mount answers of attributes by itself, and what it tells the server (gateway_fuse/attributes.py)."""

from contextlib import nullcontext
from types import SimpleNamespace

import pyfuse3
import pytest
import trio

from gateway_fuse.attributes import AttributeHandlers
from gateway_fuse.file_data import FileData
from gateway_fuse.nodes import NodeCache
from metadata_server.protocol.model import Attributes, Lease, Node, NodeFlag
from metadata_server.protocol.requests import SetAttributes

READ, WRITE = int(Lease.READ), int(Lease.WRITE)
FILE, NOW_NS = 7, 9_000
MODE = 0o100644


class Keeper:
    """Attaches data as `Files` does."""

    def attach(self, attributes, inline, room):
        a = attributes
        return FileData(a.inode, a.size, a.mtime_ns, a.ctime_ns, room, a.blocks, inline)


class Server:
    """Notes what it is asked and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.valid = True

    def lease_valid(self):
        return self.valid

    async def call(self, request, install=None):
        self.asked.append(request)
        answer = attributes()
        return answer if install is None else install(answer)


class Leases:
    """Has nobody else to ask: what it fetches is what is known."""

    def asking(self, _node):
        return nullcontext()

    async def fetch(self, node):
        await trio.lowlevel.checkpoint()
        node.fresh = True


def attributes(*, mode=MODE, flags=0):
    return Attributes(FILE, mode, 1, 100, 200, 0, 0, 0, 1, 2, 3, flags)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def nodes():
    made = NodeCache(lambda: None)
    made.files = Keeper()
    return made


@pytest.fixture
def handlers(server, nodes):
    state = SimpleNamespace(
        nodes=nodes,
        leases=Leases(),
        files=SimpleNamespace(set_mtime=lambda data, mtime_ns: setattr(data, "mtime_ns", mtime_ns)),
        client=server,
        touched={},
        now_ns=lambda: NOW_NS,
    )
    return AttributeHandlers(state)


def written(nodes, *, lease=WRITE, mode=MODE, flags=0):
    """Give a file of which something waits for its commit."""
    node = nodes.install(Node(attributes(mode=mode, flags=flags), b"", None), lease)
    nodes.data_of(node).note_change(5, 0.0)
    return node


def change(handlers, **values):
    """Answer a SETATTR of these fields."""
    wanted = pyfuse3.EntryAttributes()
    for name, value in values.items():
        setattr(wanted, f"st_{name}", value)
    names = ("size", "mode", "uid", "gid", "atime", "mtime")
    fields = SimpleNamespace(**{f"update_{name}": name in values or f"{name}_ns" in values for name in names})
    return trio.run(handlers.setattr, FILE, wanted, fields, None, None)


@pytest.mark.parametrize("values", [{"uid": 100, "gid": 200}, {"mode": MODE}, {"gid": 200}])
def test_mode_and_owner_that_a_file_has_already_go_with_the_commit_of_its_data(handlers, server, nodes, values):
    node = written(nodes)
    entry = change(handlers, **values)
    assert server.asked == []
    assert entry.st_ctime_ns == NOW_NS
    assert (entry.st_mtime_ns, entry.st_mode) == (5, MODE)
    assert node.data.take().ctime_ns == NOW_NS


@pytest.mark.parametrize("values", [{"mtime_ns": 8}, {"mtime_ns": 8, "uid": 100, "mode": MODE}])
def test_an_mtime_that_is_set_on_a_file_just_written_goes_with_its_commit(handlers, server, nodes, values):
    node = written(nodes)
    entry = change(handlers, **values)
    assert server.asked == []
    assert entry.st_mtime_ns == 8
    assert node.data.take().mtime_ns == 8


@pytest.mark.parametrize(
    "values",
    [{"uid": 101, "gid": 200}, {"mode": 0o100600}, {"uid": 100, "atime_ns": 8}, {"atime_ns": 8}, {"mtime_ns": 1 << 62}],
)
def test_whatever_is_new_is_told_to_the_server(handlers, server, nodes, values):
    written(nodes)
    change(handlers, **values)
    assert [type(each) for each in server.asked] == [SetAttributes]


def test_a_file_that_has_nothing_to_commit_asks_the_server_for_its_ctime(handlers, server, nodes):
    nodes.install(Node(attributes(), b"", None), WRITE)
    change(handlers, mode=MODE)
    assert len(server.asked) == 1


@pytest.mark.parametrize("how", [{"mode": 0o104755}, {"mode": 0o102755}, {"flags": int(NodeFlag.XATTRS)}])
def test_what_a_chown_clears_and_what_an_acl_says_is_left_to_the_server(handlers, server, nodes, how):
    written(nodes, **how)
    change(handlers, uid=100)
    assert len(server.asked) == 1


def test_nothing_is_repeated_from_memory_without_a_lease_that_counts(handlers, server, nodes):
    written(nodes).stale()
    change(handlers, mode=MODE)
    written(nodes)
    server.valid = False
    change(handlers, mode=MODE)
    assert len(server.asked) == 2
