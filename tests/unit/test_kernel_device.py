"""What is read out of /proc and /sys, and what is decided from it."""

from pathlib import Path

import pytest

from core.errors import WorldError
from gateway_nbd.kernel.device import Device, mount_points, sector_bytes, swap_areas, wait_for_idle

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 43:0 / /mnt/my\\040disk rw,relatime shared:2 - ext4 /dev/nbd0 rw
32 22 43:33 / /srv rw,relatime - xfs /dev/nbd1p1 rw
"""


def test_mount_points_are_found_by_device_number_and_read_with_their_spaces():
    assert mount_points(MOUNTINFO, {"43:0"}) == ["/mnt/my disk"]
    assert mount_points(MOUNTINFO, {"43:32", "43:33"}) == ["/srv"]
    assert mount_points(MOUNTINFO, {"43:64"}) == []


def test_swap_on_the_device_or_its_partitions_is_a_user():
    swaps = "Filename\tType\tSize\n/dev/nbd1p2 partition 1024 0 -2\n/dev/nbd11 partition 1024 0 -3\n"
    assert swap_areas(swaps, Path("/dev/nbd1")) == ["swap on /dev/nbd1p2"]


def test_the_block_size_is_the_largest_that_fits_image_wish_and_server():
    assert sector_bytes(1 << 30, 4096, 1) == 4096
    assert sector_bytes((1 << 30) + 512, 4096, 1) == 512
    assert sector_bytes(1 << 30, 512, 1) == 512


@pytest.mark.parametrize(("size_bytes", "wanted", "minimum"), [(1000, 4096, 1), (0, 4096, 1), (1 << 30, 512, 4096)])
def test_an_image_that_no_block_size_fits_is_refused_rather_than_cut(size_bytes, wanted, minimum):
    with pytest.raises(WorldError, match="resize it"):
        sector_bytes(size_bytes, wanted, minimum)


class BusyFor(Device):
    def __init__(self, looks: int) -> None:
        super().__init__(0)
        self.looks = looks

    def in_flight(self) -> int:
        self.looks -= 1
        return max(0, self.looks)


@pytest.mark.parametrize(("looks", "found"), [(3, True), (10_000, False)])
def test_waiting_for_an_idle_moment_is_bounded(looks, found):
    time = [0.0]

    def pause(seconds: float) -> None:
        time[0] += seconds

    assert wait_for_idle(BusyFor(looks), lambda: time[0], pause, 2.0) is found
    assert time[0] <= 2.01
