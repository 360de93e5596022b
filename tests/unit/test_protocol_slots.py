"""Exactly once: what a request in a slot is, at the server and at the client; and until when leases are good."""

import pytest

from metadata_server.client.slots import ClientSlots
from metadata_server.client.validity import Validity
from metadata_server.limits import SLOTS, SLOTS_NEVER_WAITING
from metadata_server.protocol.framing import MalformedError
from metadata_server.runtime.slots import Arrival, Kept, Slots


def test_a_slot_takes_the_next_number_and_answers_the_last_again_from_what_is_kept() -> None:
    slots = Slots(exact=True)
    arrival, slot = slots.arrive(3, 1)
    assert arrival is Arrival.NEW
    slot.kept, slot.is_running = Kept(b"answer", ()), False
    assert slots.arrive(3, 1) == (Arrival.REPEATED, slot)
    assert slots.arrive(3, 2)[0] is Arrival.NEW
    for number in (1, 2, 3, 4):
        with pytest.raises(MalformedError):
            slots.arrive(3, number)


def test_what_has_no_answer_to_keep_runs_again_when_it_is_sent_again() -> None:
    slots = Slots(exact=True)
    slots.arrive(0, 1)
    slots.interrupt()
    assert slots.arrive(0, 1)[0] is Arrival.NEW


def test_after_a_restart_the_first_number_of_a_slot_may_be_any_that_is_not_lower() -> None:
    slots = Slots(exact=False)
    slots.restore(0, 7, Kept(b"answer", ((1, 2),)))
    assert slots.arrive(0, 7)[0] is Arrival.REPEATED
    with pytest.raises(MalformedError):
        slots.arrive(0, 6)
    assert slots.arrive(0, 9)[0] is Arrival.NEW
    slots.interrupt()
    with pytest.raises(MalformedError):
        slots.arrive(0, 11)
    assert slots.arrive(1, 500)[0] is Arrival.NEW


def test_what_gives_leases_back_has_slots_of_its_own() -> None:
    slots = ClientSlots()

    def take(*, never_waits: bool) -> int | None:
        pending = slots.take(never_waits=never_waits, decode=bool, install=None, sent=0.0)
        return None if pending is None else pending.slot

    ordinary = {take(never_waits=False) for _ in range(SLOTS - SLOTS_NEVER_WAITING)}
    assert take(never_waits=False) is None
    own = {take(never_waits=True) for _ in range(SLOTS_NEVER_WAITING)}
    assert take(never_waits=True) is None
    assert ordinary | own == set(range(SLOTS))
    assert slots.answered(5, 2) is None
    assert slots.answered(5, 1) is not None
    assert take(never_waits=False) == 5


def test_leases_are_trusted_for_four_fifths_of_the_lease_time_from_the_sending_of_what_was_answered() -> None:
    validity = Validity(12.5, 100.0)  # trusted for 10 s
    assert validity.valid_until() == 110
    validity.answered(104.0)
    validity.answered(102.0)
    assert validity.valid_until() == 114


def test_an_open_recall_bounds_leases_until_something_sent_after_its_answer_is_answered() -> None:
    validity = Validity(12.5, 100.0)  # trusted for 10 s
    validity.recalled(1)
    validity.answered(105.0)
    validity.recalled(2)
    assert validity.valid_until() == 110
    validity.acknowledged(1, 106.0)
    validity.answered(105.5)
    assert validity.valid_until() == 110
    validity.answered(106.0)
    assert validity.valid_until() == 115
    validity.acknowledged(2, 107.0)
    validity.answered(108.0)
    assert validity.valid_until() == 118


def test_an_acknowledgement_that_was_lost_with_its_connection_counts_for_nothing() -> None:
    validity = Validity(12.5, 100.0)  # trusted for 10 s
    validity.recalled(1)
    validity.recalled(2)
    validity.acknowledged(1, 101.0)
    validity.acknowledged(2, 101.0)
    validity.reconnected(105.0)
    validity.recalled(1)  # repeated: the server had not seen it
    validity.answered(106.0)
    assert validity.valid_until() == 110
    validity.acknowledged(1, 107.0)
    validity.answered(108.0)
    assert validity.valid_until() == 118
