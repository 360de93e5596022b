"""What backup-9 runs, what it counts, and what changes between two backups."""

from itertools import pairwise

import pytest

from bench.backup_cases import BACKUPS, RUN_BYTES, STREAMS, changed_places, choose
from bench.backup_sides import data_of, inside, piece
from core.errors import UsageError
from core.units import GIB, MIB

CASES = {case.name: case for case in (*STREAMS, *BACKUPS)}


def test_there_are_nine_cases_and_a_name_there_is_not_is_told():
    assert len(CASES) == 9
    assert choose(None) == frozenset(CASES)
    assert choose("snapshot, export-diff") == {"snapshot", "export-diff"}
    with pytest.raises(UsageError, match="import-full"):
        choose("fast")


def test_figures_are_larger_where_a_run_was_quicker():
    assert CASES["snapshot"].value(2.0, GIB, 0) == 30
    assert CASES["export-full"].value(4.0, 4_000_000, 0) == 1
    assert CASES["export-diff"].value(0.5, GIB, 10_000) == 20
    assert CASES["backup-next"].unit == "kB/s"


def test_one_percent_changes_at_places_of_its_own_in_every_round_and_the_same_in_every_run():
    places = changed_places(GIB, 1)
    assert len(places) * RUN_BYTES == pytest.approx(GIB / 100, rel=0.01)
    assert all(after - before >= RUN_BYTES for before, after in pairwise(places))
    assert places[-1] + RUN_BYTES <= GIB
    assert places == changed_places(GIB, 1) != changed_places(GIB, 2)
    with pytest.raises(UsageError, match="too small"):
        changed_places(RUN_BYTES, 1)


def test_half_of_the_data_compresses_away_and_no_two_pieces_are_alike():
    data = data_of(7, MIB)
    assert len(data) == MIB
    assert data == data_of(7, MIB) != data_of(8, MIB)
    assert data[2048:4096] == bytes(2048)
    assert piece(1, 0) != piece(2, 0) != piece(1, 4096)


def test_an_image_is_named_before_the_query_of_its_pool():
    assert inside("rados://p/x?conf=/c", "disk@a") == "rados://p/x/disk@a?conf=/c"
    assert inside("file:///p", "disk") == "file:///p/disk"
