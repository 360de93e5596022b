"""What the benchmarks ask of fio and what they read from its answer."""

import json
from pathlib import Path

import pytest

from bench.cases import FILL, NBD_8, FileTarget, NbdTarget, choose, fio_command
from bench.fio import parse
from core.errors import UsageError, WorldError

CASES = {case.name: case for case in NBD_8}
NBD = NbdTarget(Path("/tmp/x.sock"))
FILE = FileTarget(Path("/mnt/file"))


def fio_answer(**job):
    return json.dumps({"fio version": "fio-3.33", "jobs": [{"error": 0, **job}]})


def side(*, bw_bytes=0, iops=0.0, p50=1000, p99=9000):
    return {"bw_bytes": bw_bytes, "iops": iops, "clat_ns": {"percentile": {"50.000000": p50, "99.000000": p99}}}


def test_large_requests_count_as_megabytes_of_a_million_bytes():
    measured = parse(fio_answer(write=side(bw_bytes=250_000_000, iops=238.4), read=side()), CASES["seq-write"])
    assert (measured.value, measured.p50_us, measured.p99_us) == (250.0, 1.0, 9.0)


def test_small_requests_count_as_requests_of_the_side_that_the_case_loads():
    answer = fio_answer(write=side(iops=111.0), read=side(iops=222.5))
    assert parse(answer, CASES["rand-read-16"]).value == 222.5
    assert parse(answer, CASES["rand-write-16"]).value == 111.0


def test_a_synced_write_takes_as_long_as_the_write_and_its_flush():
    sync = {"lat_ns": {"percentile": {"50.000000": 40_000, "99.000000": 500_000}}}
    measured = parse(fio_answer(write=side(iops=10.0), read=side(), sync=sync), CASES["sync-write-1"])
    assert (measured.p50_us, measured.p99_us) == (41.0, 509.0)


def test_what_fio_says_before_its_json_is_passed_over():
    assert parse("fio: a remark\n" + fio_answer(read=side(iops=5.0)), CASES["rand-read-1"]).value == 5.0


@pytest.mark.parametrize(
    "text",
    ["", "fio: failed", '{"jobs": []}', '{"jobs": [{"error": 5}]}', '{"jobs": [{"error": 0}]}', '{"jobs": [', "{}"],
)
def test_an_answer_without_figures_is_an_error_that_names_fio(text):
    with pytest.raises(WorldError, match="fio"):
        parse(text, CASES["seq-read"])


def test_over_nbd_one_job_keeps_the_requests_of_a_case_in_flight():
    command = fio_command(NBD, CASES["rand-write-16"], 4.0)
    assert "--ioengine=nbd" in command
    assert "--uri=nbd+unix:///?socket=/tmp/x.sock" in command
    assert {"--rw=randwrite", "--bs=4096", "--iodepth=16", "--size=536870912", "--runtime=4"} <= set(command)
    assert not any(word.startswith("--fsync") for word in command)


def test_a_file_has_a_thread_for_each_request_in_flight():
    command = fio_command(FILE, CASES["rand-read-16"], 4.0)
    assert {"--ioengine=psync", "--filename=/mnt/file", "--numjobs=16", "--thread", "--direct=1"} <= set(command)


def test_the_fill_writes_every_byte_once_whatever_the_target():
    assert "--numjobs=1" in fio_command(FILE, FILL, None)
    assert "--time_based" not in fio_command(NBD, FILL, None)


def test_synced_cases_flush_after_each_write():
    assert "--fsync=1" in fio_command(NBD, CASES["sync-write-16"], 4.0)


def test_there_are_eight_cases_and_they_are_chosen_by_name():
    assert len(choose(None)) == 8
    assert [case.name for case in choose("rand-read-1, seq-read")] == ["rand-read-1", "seq-read"]
    with pytest.raises(UsageError, match="sync-write-16"):
        choose("fast")
