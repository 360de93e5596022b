"""The pure parts of scrub: what is missing from a log, told from what is there; which entries of a map lead nowhere."""

import numpy as np

from core.format.header import Kind
from core.scrub.chain import Break, Gap, lost_barriers, reaches_back, walk
from core.scrub.objects import LogFacts
from core.scrub.references import BadRun, bad_runs, segments_of
from core.volume.log.block_map import PAGE_ENTRIES, entry_of

WINDOW = 1024


def log(*sequences: int, epoch: int = 1, barriers: tuple[int, ...] = (1,)) -> dict[int, LogFacts]:
    """Make a log that follows itself: each object names the digest of the one before it in the list."""
    facts: dict[int, LogFacts] = {}
    previous = b"first"
    for sequence in sequences:
        is_barrier = sequence in barriers
        epoch += is_barrier and sequence != barriers[0]
        facts[sequence] = LogFacts(
            sequence=sequence,
            kind=Kind.BARRIER if is_barrier else Kind.SEGMENT,
            epoch=epoch,
            next=sequence + 1 + (WINDOW if is_barrier else 0),
            previous=previous,
            digest=b"digest %d" % sequence,
            size_bytes=100,
            blocks=b"\x08\x08\x03",
        )
        previous = facts[sequence].digest
    return facts


def troubles(facts: dict[int, LogFacts], start: int = 1, digest: bytes | None = b"first") -> list[Gap | Break]:
    return list(walk(facts, sorted(facts), start, digest))


def test_a_whole_log_ends_in_a_gap_with_nothing_behind_it() -> None:
    assert troubles(log(1, 1026, 1027)) == [Gap(1028, None)]
    assert troubles({}) == [Gap(1, None)]


def test_a_gap_is_told_with_what_comes_behind_it_and_the_walk_goes_on_there() -> None:
    facts = log(1, 1026, 1027, 1028, 1029)
    del facts[1027]
    assert troubles(facts) == [Gap(1027, 1028), Gap(1030, None)]


def test_an_object_of_another_history_breaks_the_chain_on_both_sides_that_are_there() -> None:
    facts = log(1, 1026, 1027, 1028)
    facts[1027] = log(1, 1026, 1027)[1027].sharing({})
    assert troubles(facts) == [Gap(1029, None)]
    other = log(1027)[1027]
    facts[1027] = LogFacts(1027, Kind.SEGMENT, 1, 1028, b"elsewhere", b"another", 100, other.blocks)
    assert troubles(facts) == [Break(1026, 1027), Break(1027, 1028), Gap(1029, None)]


def test_the_walk_may_begin_at_any_checkpoint_and_knows_its_digest() -> None:
    facts = log(1, 1026, 1027)
    assert troubles(facts, 1027, b"digest 1026") == [Gap(1028, None)]
    assert troubles(facts, 1027, b"digest of another log") == [Break(0, 1027), Gap(1028, None)]


def test_an_epoch_that_has_begun_without_its_barrier_is_told() -> None:
    facts = log(1, 1026, 1027, 2052, barriers=(1, 1027))
    assert lost_barriers(facts, 2) == []
    del facts[1027]
    assert lost_barriers(facts, 0) == [2]
    assert lost_barriers(facts, 3) == [2, 3], "a checkpoint tells of epochs, too"


def test_a_log_reaches_back_if_nothing_was_collected() -> None:
    facts = log(1, 1026, 1027, 1028)
    assert reaches_back(facts, 1, 1028)
    assert reaches_back({}, 1, 0)
    del facts[1026]
    assert not reaches_back(facts, 1, 1028)
    assert reaches_back(facts, 1027, 1028)


def page(*runs: tuple[int, int, int]) -> np.ndarray:
    """Make a page of (first block, entry, blocks)."""
    entries = np.zeros(PAGE_ENTRIES, np.uint64)
    for start, entry, count in runs:
        entries[start : start + count] = np.arange(entry, entry + count, dtype=np.uint64)
    return entries


def test_entries_in_frames_that_are_there_and_good_are_fine() -> None:
    facts = log(1, 1026)
    entries = page((0, entry_of(1026, 0, 0), 19), (100, entry_of(1026, 2, 2), 1))
    assert list(bad_runs(0, entries, facts.get)) == []
    assert segments_of(entries) == {1026}
    assert list(bad_runs(3, page(), facts.get)) == []


def test_entries_past_the_frames_or_past_a_frames_blocks_lead_nowhere() -> None:
    facts = log(1, 1026)
    entries = page((10, entry_of(1026, 2, 0), 8), (50, entry_of(1026, 3, 0), 2))
    assert list(bad_runs(2, entries, facts.get)) == [BadRun(2 * 1024 + 13, 5, 1026), BadRun(2 * 1024 + 50, 2, 1026)]


def test_entries_into_bad_frames_and_missing_segments_are_told_each_with_its_segment() -> None:
    whole = log(1, 1026)[1026]
    facts = {7: LogFacts(7, Kind.SEGMENT, 1, 8, b"", b"", 9, whole.blocks, frozenset({1}))}
    entries = page((0, entry_of(7, 0, 0), 16), (16, entry_of(8, 0, 0), 4))
    assert list(bad_runs(0, entries, facts.get)) == [BadRun(8, 8, 7), BadRun(16, 4, 8)]


def test_a_segment_without_blocks_holds_nothing_an_entry_may_point_at() -> None:
    barrier = LogFacts(5, Kind.BARRIER, 1, 6, b"", b"", 9, b"")
    assert list(bad_runs(0, page((1, entry_of(5, 0, 0), 1)), {5: barrier}.get)) == [BadRun(1, 1, 5)]
