"""The picture of a comparison."""

from xml.etree import ElementTree as ET

from bench.cases import NBD_8, goal
from bench.picture import draw, position
from bench.rows import Measurement, Observation, compare, load, save

SVG = "{http://www.w3.org/2000/svg}"


def row(store, ours, peer, case=NBD_8[0]):
    def observed(value):
        return [Observation(4.0, Measurement(value, 1.0, 2.0), 0.0, 1, None)]

    return compare(store, case, observed(ours), "a <peer>", observed(peer) if peer else [], goal=goal(store, case))


def test_the_picture_is_a_document_with_a_bar_for_each_row_that_has_a_ratio():
    drawn = ET.fromstring(draw([row("file", 2.0, 1.0), row("file", 1.0, 2.0, NBD_8[1]), row("s3", 1.0, None)]))
    bars = [each for each in drawn.findall(f"{SVG}rect") if each.get("height") == "14"]
    assert len(bars) == 2
    assert bars[0].get("fill") != bars[1].get("fill")
    assert "file:// against a <peer>" in [each.text for each in drawn.iter(f"{SVG}text")]


def test_equal_factors_are_equal_lengths_and_the_scale_has_ends():
    assert abs((position(2) - position(1)) - (position(1) - position(0.5))) < 1e-9
    assert position(1000) == position(64)
    assert position(0.001) == position(0.25)


def test_rows_come_back_as_they_were_saved(tmp_path):
    rows = [row("file", 2.0, 1.0), row("s3", 1.0, None)]
    save(rows, tmp_path / "rows.json")
    assert load(tmp_path / "rows.json") == rows


def test_every_peer_has_its_own_goal_and_no_peer_means_no_goal():
    assert row("rados", 1.0, 1.0, NBD_8[2]).goal == 10.0
    assert row("file", 1.0, 1.0, NBD_8[2]).goal == 1.0
    assert row("s3", 1.0, None, NBD_8[6]).goal is None
