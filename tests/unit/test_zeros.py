"""Finding blocks of zeros (core/volume/log/zeros.py) is looking at every byte of each."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from core.units import BLOCK_BYTES
from core.volume.log.zeros import nonzero_runs


def block(at: int | None) -> bytes:
    """Give a block that is zero but for one byte."""
    made = bytearray(BLOCK_BYTES)
    if at is not None:
        made[at] = 1
    return bytes(made)


places = st.none() | st.sampled_from([0, 7, 8, 37 * 8, 37 * 8 + 9, BLOCK_BYTES - 1]) | st.integers(0, BLOCK_BYTES - 1)


@given(st.lists(places, min_size=1, max_size=30))
def test_a_block_is_a_hole_only_if_each_of_its_bytes_is_zero_and_runs_are_as_long_as_they_can_be(drawn):
    found = list(nonzero_runs(memoryview(b"".join(map(block, drawn)))))
    told = [is_hole for _, count, is_hole in found for _ in range(count)]
    assert told == [at is None for at in drawn]
    assert [first for first, _, _ in found] == [sum(count for _, count, _ in found[:at]) for at in range(len(found))]
    assert all(one[2] != other[2] for one, other in itertools.pairwise(found))
