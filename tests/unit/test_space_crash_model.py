"""The model of the crash tests finds what it is there to find: lost, torn and swapped blocks, lost names, lost sizes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))

from fs_model import BLOCK, Directory, rendered


def written(*, synced: bool) -> Directory:
    directory = Directory()
    directory.apply(["create", "f", 7])
    directory.apply(["write", "f", 0, 2, 100, 1, True])
    directory.apply(["write", "f", 0, 1, BLOCK, 2, synced])
    return directory


NEW = rendered(7, 0, (2, BLOCK)) + rendered(7, 1, (1, BLOCK))[:100]
OLD = rendered(7, 0, (1, BLOCK)) + NEW[BLOCK:]


def settle(directory: Directory, begun, **files: bytes) -> None:
    directory.settle(begun, files, files.__getitem__)


def test_what_was_synced_is_asked_for_as_it_was():
    settle(written(synced=True), None, f=NEW)
    for bad in (OLD, NEW[:-1], NEW[:BLOCK], NEW[:5000] + b"x", NEW[BLOCK:] + NEW[:BLOCK], b""):
        with pytest.raises(AssertionError):
            settle(written(synced=True), None, f=bad)


def test_what_was_not_synced_may_be_old_or_new_but_not_torn():
    for good in (OLD, NEW):
        directory = written(synced=False)
        settle(directory, None, f=good)
        assert directory.files["f"].content() == good
    with pytest.raises(AssertionError):
        settle(written(synced=False), None, f=OLD[:2048] + NEW[2048:])


def test_an_operation_on_its_way_may_have_happened():
    for begun, files in (
        (["rename", "f", "g"], ({"f": NEW}, {"g": NEW})),
        (["unlink", "f"], ({"f": NEW}, {})),
        (["create", "g", 8], ({"f": NEW}, {"f": NEW, "g": b""})),
        (["truncate", "f", 10, True], ({"f": NEW}, {"f": NEW[:10]})),
    ):
        for each in files:
            settle(written(synced=True), begun, **each)
        with pytest.raises(AssertionError):
            settle(written(synced=True), begun, f=NEW, h=NEW)


def test_names_that_returned_are_there():
    with pytest.raises(AssertionError, match="missing"):
        settle(written(synced=True), None)
    directory = written(synced=True)
    directory.apply(["unlink", "f"])
    with pytest.raises(AssertionError, match="too many"):
        settle(directory, None, f=NEW)


def test_a_cut_and_a_later_write_behind_it_leave_zeros_between():
    directory = written(synced=True)
    directory.apply(["truncate", "f", 50, True])
    directory.apply(["write", "f", 2, 1, BLOCK, 3, True])
    assert directory.files["f"].content()[:BLOCK] == NEW[:50].ljust(BLOCK, b"\0")
    assert directory.files["f"].content()[BLOCK : 2 * BLOCK] == bytes(BLOCK)
