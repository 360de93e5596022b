"""The figures and the trace of a mount."""

import json
import re

import pytest
import trio
import trio.testing

from gateway_fuse import limits
from gateway_fuse.control import Trace, install_control
from gateway_fuse.metrics import Meter, prometheus_text
from gateway_fuse.naming import CONTROL_INODE
from gateway_fuse.nodes import NodeCache
from metadata_server.protocol.errors import OperationError


def meter() -> Meter:
    made = Meter({"filesystem": "p/fs"}, lambda: {"reads_total": 3.0, "inodes": 2.0})
    made.counters("create").count(100_000)
    made.counters("create").totals[1] += 1
    made.counters("unlink")
    return made


def test_statistics_name_every_kind_of_request_that_was_made_and_no_other():
    stats = json.loads(meter().stats_json())
    assert list(stats["operations"]) == ["create"]
    assert stats["operations"]["create"]["count"] == 1
    assert stats["operations"]["create"]["errors"] == 1
    assert stats["operations"]["create"]["p99_us"] == 128
    assert stats["figures"]["inodes"] == 2


def test_the_metrics_page_is_prometheus_text():
    page = prometheus_text(meter()).decode()
    assert 'blockyard_fuse_request_seconds_count{operation="create"} 1.0' in page
    assert "blockyard_fuse_reads_total 3.0" in page
    assert "blockyard_fuse_inodes 2.0" in page
    assert "unlink" not in page


def test_a_trace_tells_what_ended_while_it_is_read():
    async def program():
        trace = Trace()
        reader = trace.begin()
        trace.add("lookup", (1, b"name"), 1500, 0)
        trace.add("unlink", (1, b"name"), 2500, 2)
        text = (await reader.read(4096)).decode()
        trace.add("read", (9, 0, 4096), 1, 0)  # that very read, which ends now
        assert re.search(r"1\.5 µs ok +lookup 1 'name'\n", text)
        assert re.search(r"2\.5 µs ENOENT +unlink 1 'name'\n", text)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_for_news, reader)
            await trio.testing.wait_all_tasks_blocked()
            trace.add("mkdir", (), 1, 0)

    async def waits_for_news(reader):
        told = await reader.read(4096)
        assert b"mkdir" in told and b"read" not in told, "who reads the trace would never come to its end"

    trio.run(program)


def test_a_slow_reader_of_the_trace_misses_the_oldest():
    trace = Trace()
    trace.begin()
    for each in range(limits.TRACE_OPERATIONS + 10):
        trace.add("read", (each,), 0, 0)
    lines, seen = trace.since(0)
    assert len(lines) == limits.TRACE_OPERATIONS
    assert lines[0].endswith("read 10\n")
    assert trace.since(seen) == ([], seen)


def test_readers_of_the_trace_have_a_bound():
    trace = Trace()
    readers = [trace.begin() for _ in range(limits.TRACE_READERS)]
    with pytest.raises(OperationError):
        trace.begin()
    readers[0].close()
    trace.begin()


def test_the_control_directory_holds_its_files_and_nothing_else():
    cache = NodeCache(lambda: None)
    install_control(cache, {b"stats": lambda: b"{}"}, 1)
    folder = cache.known(CONTROL_INODE)
    assert folder.directory.find(b"stats") == CONTROL_INODE + 1
    assert folder.directory.find(b"other") == 0
    assert cache.known(CONTROL_INODE + 1).virtual() == b"{}"
    assert cache.claims() == []
