"""How the benchmarks count: medians, ratios, and what a flush still owes."""

import json

import pytest

from bench.cases import NBD_8
from bench.rows import Measurement, Observation, compare, markdown, put_between, save, table, with_conditions
from bench.stores import parse_stores
from core.errors import UsageError

CASE = NBD_8[2]


def observed(value, *, settle_s=0.0, memory=100_000_000, stored=None):
    return Observation(4.0, Measurement(value, 10.0, 20.0), settle_s, memory, stored)


def test_the_ratio_is_that_of_the_medians_of_both_sides():
    row = compare(
        "file", CASE, [observed(10), observed(90), observed(30)], "peer", [observed(20), observed(15), observed(1)]
    )
    assert (row.ours, row.peer, row.ratio) == (30, 15, 2.0)
    assert row.ours_detail.runs == [10, 90, 30]


def test_without_a_peer_there_is_no_ratio():
    row = compare("s3", CASE, [observed(10)], "", [])
    assert (row.ours, row.peer, row.ratio, row.ratio_with_flush, row.peer_detail) == (10, None, None, None, None)


def test_a_peer_that_did_nothing_gives_no_ratio_instead_of_an_infinite_one():
    assert compare("s3", CASE, [observed(10)], "peer", [observed(0)]).ratio is None


def test_a_flush_after_the_case_counts_as_part_of_its_time():
    row = compare("s3", CASE, [observed(100)], "peer", [observed(400, settle_s=12.0)])
    assert row.ratio == 0.25
    assert row.ratio_with_flush == 1.0


def test_memory_is_the_most_of_all_runs():
    row = compare("file", CASE, [observed(1, memory=7_000_000), observed(1, memory=5_000_000)], "", [])
    assert row.ours_detail.memory_mb == 7.0


def test_rows_are_written_with_the_keys_that_others_read(tmp_path):
    path = tmp_path / "results" / "rows.json"
    save([compare("file", CASE, [observed(30, stored=2_000_000)], "peer", [observed(10)])], path)
    (row,) = json.loads(path.read_text())
    assert {key: row[key] for key in ("store", "case", "ours", "peer", "ratio", "unit")} == {
        "store": "file", "case": "rand-write-16", "ours": 30, "peer": 10, "ratio": 3.0, "unit": "IOPS",
    }  # fmt: skip
    assert row["ours_detail"]["stored_mb"] == 2.0
    assert [each.name for each in path.parent.iterdir()] == ["rows.json"]


def test_the_table_shows_a_dash_where_there_is_no_figure():
    text = table([compare("s3", CASE, [observed(12345)], "", [])])
    assert "12,345" in text
    assert "–" in text


def test_a_table_is_aligned():
    lines = markdown([("a", "b", "c"), ("xxx", "y", "1,000")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].endswith("1,000 |")


def test_an_unknown_store_is_refused_with_those_there_are():
    assert parse_stores("s3, file") == ("s3", "file")
    with pytest.raises(UsageError, match="rados"):
        parse_stores("gs")


def test_the_conditions_of_a_run_stand_once_below_its_table():
    rows = [compare("file", case, [observed(1)], "", [], "on a train") for case in NBD_8]
    assert with_conditions(rows).count("on a train") == 1


def test_a_document_keeps_everything_but_what_stands_between_the_marks():
    marks = ("<!-- the table of nbd-8 begins: python -m bench show -->", "<!-- the table ends -->")
    document = f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n"
    once = put_between(document, "new")
    assert once == f"before\n{marks[0]}\n\nnew\n\n{marks[1]}\nafter\n"
    assert put_between(once, "new") == once
    with pytest.raises(UsageError, match="the table ends"):
        put_between("no marks", "new")
