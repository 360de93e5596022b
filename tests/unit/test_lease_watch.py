"""Whom the collector takes for alive: by what it has watched, since no clock of another machine can be relied on (invariant 5)."""

import dataclasses

import pytest

from core import limits
from core.volume.images import create_image, image_keys
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import LeaseWatch, ReaderLease, living_leases
from core.volume.log.pins import EVERYTHING, Pin
from tests.unit.pool_world import Clock, driven_world, make_pool


class Machines:
    """A reader whose clock is off, and a collector that watches its lease."""

    def __init__(self, off_s: float) -> None:
        self.clock = Clock()
        made = make_pool(driven_world(self.clock))
        create_image(made.pool, "disk", 1 << 20)
        info, keys = image_keys(made.pool, "disk")
        self._where = made.store, VolumeNames(info.prefix), keys
        self._world = made.world
        world = dataclasses.replace(made.world, now=lambda: made.world.now() + off_s)
        self.lease = ReaderLease(*self._where, world)
        self.watch = LeaseWatch(made.world)

    def living(self, watch: LeaseWatch | None = None) -> list[Pin]:
        return living_leases(*self._where, self._world, watch or self.watch)


@pytest.mark.parametrize("off_s", [-3600, 0, 3600])
def test_a_lease_lives_until_it_was_seen_unchanged_for_its_length(off_s):
    machines = Machines(off_s)
    machines.lease.beat(EVERYTHING)
    assert machines.living() == [EVERYTHING]
    machines.clock.sleep(limits.LOCK_LEASE_S - 1)
    machines.lease.beat(Pin(3, 4))
    machines.clock.sleep(limits.LOCK_LEASE_S - 1)
    assert machines.living() == [Pin(3, 4)]
    assert machines.lease.held()
    machines.clock.sleep(2)
    assert not machines.lease.held(), "its holder gives it up first"
    machines.clock.sleep(limits.LOCK_LEASE_S - 3)
    assert machines.living() == [Pin(3, 4)]
    machines.clock.sleep(2)
    assert machines.living() == []


def test_who_sees_a_lease_for_the_first_time_holds_it_for_alive_unless_no_clock_explains_its_age():
    machines = Machines(-3600)
    machines.lease.beat(EVERYTHING)
    machines.clock.sleep(limits.LOCK_LEASE_S + limits.CLOCKS_APART_S - 3601)
    assert machines.living(LeaseWatch(machines._world)) == [EVERYTHING]
    machines.clock.sleep(2)
    assert machines.living(LeaseWatch(machines._world)) == []


def test_a_lease_whose_holders_clock_was_set_back_is_not_held_for_longer():
    machines = Machines(0)
    lease = machines.lease
    lease.beat(EVERYTHING)
    lease._world = dataclasses.replace(lease._world, now=lambda: 0.0)
    machines.clock.sleep(limits.LOCK_LEASE_S + 1)
    assert not lease.held()
