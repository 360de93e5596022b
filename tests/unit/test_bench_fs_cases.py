"""What fs-11 runs, in which order, and what it counts."""

import pytest

from bench.fs_cases import FS_11, ON_TREE, SYNCED, TWO_MOUNTS, choose, goal, with_needs
from bench.rows import Measurement, Observation, compare, load, put_between, save, table
from core.errors import UsageError

CASES = {case.name: case for case in (*FS_11, *ON_TREE, SYNCED, TWO_MOUNTS)}


def names(cases):
    return [case.name for case in cases]


def observed(value, **more):
    return [Observation(1.0, Measurement(value, 10.0, 20.0), 0.0, 50_000_000, None, **more)]


def test_there_are_eleven_cases_and_five_that_are_reported_beside_them():
    assert len(FS_11) == 11
    assert len(choose(None)) == 16


def test_cases_run_in_their_own_order_whatever_order_they_are_asked_for_in():
    assert names(choose("unlink, create")) == ["create", "unlink"]
    with pytest.raises(UsageError, match="rand-read"):
        choose("fast")


def test_what_a_case_works_on_is_made_first_and_only_that():
    assert names(with_needs(choose("unlink"), FS_11)) == ["create", "unlink"]
    assert names(with_needs(choose("fsync4k,rename"), FS_11)) == ["create", "rename", "seq-write", "fsync4k"]
    assert names(with_needs(choose("rm-r"), FS_11 + ON_TREE)) == ["untar", "rm-r"]
    assert names(with_needs([SYNCED], (*FS_11, SYNCED))) == ["seq-write", "fsync4k-durable"]


def test_a_case_is_ordered_with_its_arguments_and_its_round_where_places_are_random():
    assert CASES["create"].order(3) == {"phase": "create", "files": 2000}
    assert CASES["rand-read"].order(3) == {"phase": "rand-read", "reads": 2000, "number": 3}
    assert CASES["fsync4k-durable"].order(1) == {"phase": "fsync4k", "syncs": 200, "number": 1}


def test_large_pieces_count_as_megabytes_of_a_million_bytes_and_a_tree_by_its_files():
    assert CASES["seq-write"].value(seconds=2.0, count=512) == pytest.approx(268.435456)
    assert CASES["create"].value(seconds=0.5, count=2000) == 4000
    assert CASES["untar"].value(seconds=4.0, count=1) == 2500


def test_the_goals_are_those_of_the_issue_and_one_on_rados_where_nothing_is_said():
    assert [goal("file", case) for case in FS_11] == [0.65, 4, 4, 3, 0.9, 0.7, 0.6, 0.7, 0.5, 0.4, 0.25]
    assert [goal("rados", case) for case in FS_11] == [1.5, *[1.0] * 10]
    assert goal("file", TWO_MOUNTS) == 1.5
    assert goal("file", CASES["untar"]) is None
    assert goal("s3", CASES["create"]) is None


def test_a_metadata_server_s_memory_stands_beside_that_of_its_mount():
    ours = observed(2.0, metadata_memory_bytes=30_000_000)
    row = compare("file", CASES["create"], ours, "peer", observed(1.0), goal=0.65, benchmark="fs-11")
    assert row.ours_detail.metadata_memory_mb == 30.0
    assert "50 + 30 / 50" in table([row])
    assert "| 0.65 |" in table([row])


def test_rows_of_a_filesystem_come_back_as_they_were_saved(tmp_path):
    row = compare("file", CASES["create"], observed(2.0), "", [], benchmark="fs-11")
    save([row], tmp_path / "rows.json")
    assert load(tmp_path / "rows.json") == [row]


def test_each_benchmark_s_table_has_its_own_place_in_a_document():
    document = "".join(
        f"<!-- the table of {name} begins: python -m bench show -->\nold {name}\n<!-- the table ends -->\n"
        for name in ("nbd-8", "fs-11")
    )
    changed = put_between(document, "new", "fs-11")
    assert "old nbd-8" in changed
    assert "old fs-11" not in changed


def test_operations_of_a_command_are_not_timed_one_by_one():
    row = compare("file", CASES["untar"], [Observation(1.0, Measurement(5.0, None, None), 0.0, 1, None)], "", [])
    assert row.ours_detail.p50_us is None
