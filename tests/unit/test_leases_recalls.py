"""Recalls, sessions and exactly-once as the service decides them, on a fake tree with a clock that the test turns."""

import errno

import pytest

from core.errors import OutOfSpaceError
from metadata_server.limits import EVICTIONS
from metadata_server.protocol.framing import MalformedError
from metadata_server.protocol.messages import (
    CLOSING,
    EXPIRED,
    GOODBYE_FRAME,
    HEARTBEAT,
    HELLO,
    RECALL,
    RELOCATED,
    REQUEST,
    RESUMED_FRAME,
    claim_frames,
    heartbeat_frame,
)
from metadata_server.protocol.model import Lease, Update
from metadata_server.protocol.requests import (
    Acquire,
    Commit,
    Lookup,
    Make,
    ReadMap,
    Release,
    Remove,
    SetAttributes,
    Space,
)
from metadata_server.runtime import service as service_module
from tests.unit.metadata_fakes import Clock, FakeTree, Peer, fake_service, peer

READ, WRITE, NONE = Lease.READ, Lease.WRITE, Lease.NONE
CHMOD = SetAttributes(5, 0o600, None, None, None, None)


def commit(inode: int, *, durable: bool = False) -> Commit:
    return Commit([Update(inode, None, 1, 2, 3, b"")], [], durable)


def test_an_operation_waits_for_its_recall_and_is_applied_once_it_is_answered() -> None:
    service = fake_service()
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, READ))
    assert other.answers() == []
    ((recall, inode, name, keep),) = one.recalls()
    assert (inode, name, keep) == (5, None, READ)
    one.give_back(recall, READ)
    assert other.answers() == [(1, 0)]
    one.give_back(recall, READ)  # twice is as once


def test_what_a_recalled_session_needs_is_served_while_others_wait() -> None:
    service = fake_service()
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    one.take()
    one.ask(commit(5), slot=60, number=1)
    one.ask(ReadMap(5, 0, 1), slot=61, number=1)
    one.ask(Space(), slot=62, number=1)
    assert one.answers() == [(1, 0)] * 3
    one.ask(Release([5]), slot=60, number=2)
    assert one.answers() == [(2, 0)]
    assert other.answers() == []  # a recall is answered by its acknowledgement alone


def test_leases_that_are_not_held_neither_write_nor_read_maps() -> None:
    service = fake_service()
    one = peer(service)
    one.ask(commit(5))
    one.ask(ReadMap(5, 0, 1))
    one.ask(Acquire(5, READ))
    one.ask(commit(5))
    assert one.answers() == [(1, errno.ESTALE), (2, errno.ESTALE), (3, 0), (4, errno.ESTALE)]


def test_grants_wait_behind_the_operation_that_recalls_and_come_in_order() -> None:
    service = fake_service()
    holder, writer, late = peer(service), peer(service), peer(service)
    holder.ask(Acquire(5, READ))
    late.ask(Acquire(5, READ))
    writer.ask(Acquire(5, WRITE))
    ((recall, *_),) = holder.recalls()
    ((late_recall, *_),) = late.recalls()
    late.take()
    late.ask(Acquire(5, READ), slot=1, number=1)
    holder.give_back(recall, NONE)
    assert writer.answers() == [] and late.answers() == []
    late.give_back(late_recall, NONE)
    assert [each[0] for each in writer.received] == [HELLO, REQUEST, RECALL][-len(writer.received) :]
    assert late.answers() == []
    ((again, inode, _, keep),) = writer.recalls()
    assert (inode, keep) == (5, READ)
    writer.give_back(again, READ)
    assert late.answers() == [(1, 0)]


def test_a_changed_attribute_leaves_leases_and_is_told_again_where_a_commit_came_between() -> None:
    service = fake_service()
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(CHMOD)
    ((recall, inode, name, keep),) = one.recalls()
    assert (inode, name, keep) == (5, None, WRITE)
    one.take()
    one.ask(commit(5))  # its answer says what the attributes were
    one.take()
    one.give_back(recall, WRITE)
    assert other.answers() == [(1, 0)]
    ((again, inode, name, keep),) = one.recalls()
    assert (inode, name, keep) == (5, None, WRITE)
    one.give_back(again, WRITE)
    one.ask(commit(5))
    assert one.answers()[-1] == (3, 0)


def test_a_lost_connection_takes_its_waiting_requests_along_and_a_recall_still_bars_the_inode() -> None:
    service = fake_service()
    one, other, third = peer(service), peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    service.disconnected(other)
    third.ask(Acquire(5, READ))
    assert third.answers() == []
    ((recall, *_),) = one.recalls()
    one.give_back(recall, NONE)
    assert third.answers() == [(1, 0)]


def test_a_session_is_expired_after_the_lease_time_without_a_word() -> None:
    clock, tree = Clock(), FakeTree()
    service = fake_service(tree, clock)
    ended: list[int] = []
    service.ended.append(ended.append)
    silent, lively = peer(service), peer(service)
    number = silent.session
    silent.ask(Acquire(5, WRITE))
    silent.ask(Remove(1, b"5", False, False))
    assert tree.nameless == {5}
    for _ in range(3):
        clock.now += 5.1
        service.begin(clock.now)
        lively.say(heartbeat_frame(1))
        service.tick(clock.now)
    assert ended == [number]
    assert tree.dropped == [5] and number not in tree.rows
    assert silent.take()[-1][0] == EXPIRED and not silent.is_open
    assert lively.take()[-1] == (HEARTBEAT, 1)


def test_a_session_that_beats_but_does_not_give_back_is_expired_too() -> None:
    clock = Clock()
    service = fake_service(None, clock)
    mute, other = peer(service), peer(service)
    mute.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    for _ in range(4):
        clock.now += 4
        service.begin(clock.now)
        for each in (mute, other):
            if each.is_open:
                each.say(heartbeat_frame(1))
        service.tick(clock.now)
    assert not mute.is_open and other.is_open
    assert (1, 0) in other.answers()


def test_time_in_which_the_server_did_not_run_is_nobodys_fault() -> None:
    clock = Clock()
    service = fake_service(None, clock)
    one = peer(service)
    clock.now += 60
    service.forgive(60)
    service.tick(clock.now)
    assert one.is_open


def test_a_goodbye_ends_a_session_at_once() -> None:
    tree = FakeTree()
    service = fake_service(tree)
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    one.say(GOODBYE_FRAME)
    assert other.answers() == [(1, 0)]
    assert list(tree.rows) == [other.session]


def test_a_repeated_change_is_answered_from_what_was_kept_and_not_made_again() -> None:
    tree = FakeTree()
    service = fake_service(tree)
    one = peer(service)
    one.ask(Make(1, b"7", 1, 0, 0, 0, None))
    one.ask(Make(1, b"7", 0, 0, 0, 0, None))
    first, second = one.take()[-2:]
    one.ask(Make(1, b"7", 0, 0, 0, 0, None), number=2)
    assert one.take() == [second]
    assert first[3] == 0 and second[3] == errno.EEXIST
    assert len(tree.committed + tree.applied) == 2


def test_a_restarted_server_answers_from_rows_and_grants_what_the_lost_answer_granted() -> None:
    tree = FakeTree()
    first = fake_service(tree)
    one, other = Peer(first), peer(first)
    welcome = one.greet()
    one.ask(Make(1, b"7", 1, 0, 0, 0, None))
    answer = one.take()[-1]
    other.say(GOODBYE_FRAME)
    second = fake_service(tree)
    again = Peer(second)
    assert again.greet(welcome.session, welcome.token).claims_wanted
    again.ask(Make(1, b"7", 1, 0, 0, 0, None), number=1)
    again.say(RESUMED_FRAME)
    assert again.take() == [answer]
    assert len(tree.committed) == 1
    assert second.operations.leases.held_by(welcome.session, 1) == READ


def test_until_all_have_claimed_nothing_is_granted_and_then_claims_are_recalled_like_leases() -> None:
    tree, clock = FakeTree(), Clock()
    first = fake_service(tree, clock)
    one, other = Peer(first), Peer(first)
    welcomes = one.greet(), other.greet()
    second = fake_service(tree, clock)
    one, other = Peer(second), Peer(second)
    other.greet(welcomes[1].session, welcomes[1].token)
    other.say(RESUMED_FRAME)
    other.ask(Acquire(5, READ))
    assert other.answers() == []
    one.greet(welcomes[0].session, welcomes[0].token)
    one.say(*claim_frames([(5, WRITE), (6, READ)]))
    one.ask(commit(5))
    assert one.answers() == [(1, 0)]
    one.say(RESUMED_FRAME)
    ((recall, inode, _, keep),) = one.recalls()
    assert (inode, keep) == (5, READ)
    one.give_back(recall, READ)
    assert other.answers() == [(1, 0)]


def test_grace_ends_with_the_lease_time_of_who_does_not_come_back_and_orphans_go_only_then() -> None:
    tree, clock = FakeTree(), Clock()
    first = fake_service(tree, clock)
    gone, stays = Peer(first), Peer(first)
    gone.greet()
    welcome = stays.greet()
    tree.nameless.add(9)
    second = fake_service(tree, clock)
    back = Peer(second)
    back.greet(welcome.session, welcome.token)
    back.say(RESUMED_FRAME)
    back.ask(Acquire(5, READ))
    back.ask(Release([9]), slot=60, number=2)
    assert back.answers() == [(2, 0)] and tree.nameless == {9}
    clock.now += 14
    second.begin(clock.now)
    back.say(heartbeat_frame(1))
    clock.now += 2
    second.tick(clock.now)
    assert back.answers() == [(1, 0)]
    assert tree.dropped == [9]


def test_a_claim_that_another_has_is_taken_back() -> None:
    tree = FakeTree()
    first = fake_service(tree)
    one, other = Peer(first), Peer(first)
    welcomes = one.greet(), other.greet()
    second = fake_service(tree)
    one, other = Peer(second), Peer(second)
    for each, welcome in zip((one, other), welcomes, strict=True):
        each.greet(welcome.session, welcome.token)
        each.say(*claim_frames([(5, WRITE)]), RESUMED_FRAME)
    assert not one.recalls()
    ((_, inode, _, keep),) = other.recalls()
    assert (inode, keep) == (5, NONE)


def test_recalls_are_repeated_on_a_new_connection_after_its_requests() -> None:
    service = fake_service()
    one, other = Peer(service), peer(service)
    welcome = one.greet()
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    (recall,) = one.recalls()
    service.disconnected(one)
    again = Peer(service)
    assert not again.greet(welcome.session, welcome.token).claims_wanted
    assert again.recalls() == []
    again.ask(Acquire(6, READ), slot=2, number=1)
    again.say(RESUMED_FRAME)
    assert [each[0] for each in again.received] == [REQUEST, RECALL]
    assert again.recalls() == [recall]


def test_a_newer_connection_takes_the_place_of_the_older() -> None:
    service = fake_service()
    one = Peer(service)
    welcome = one.greet()
    again = Peer(service)
    again.greet(welcome.session, welcome.token)
    assert one.take()[-1][0] == CLOSING and not one.is_open
    again.say(RESUMED_FRAME)
    again.ask(Space())
    assert again.answers() == [(1, 0)]


def test_an_operation_that_fails_unforeseen_takes_none_of_its_transaction_along() -> None:
    tree = FakeTree()
    service = fake_service(tree)
    one, other = peer(service), peer(service)
    one.ask(Make(1, b"7", 1, 0, 0, 0, None))
    tree.commit_failures = [OutOfSpaceError("full"), OutOfSpaceError("full")]
    one.ask(Make(1, b"8", 1, 0, 0, 0, None))
    assert one.answers() == [(1, 0), (2, errno.ENOSPC)]
    tree.failures = [RuntimeError("a bug")]
    other.ask(Space())
    assert other.answers()[-1] == (1, errno.EIO)
    one.ask(Make(1, b"8", 1, 0, 0, 0, None))
    assert one.answers()[-1] == (3, 0)
    assert len(tree.committed) == 2


def test_a_transaction_that_cannot_be_committed_is_applied_one_by_one() -> None:
    tree = FakeTree()
    service = fake_service(tree)
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, READ))
    tree.nameless = {5}
    tree.commit()
    one.take()
    tree.commit_failures = [OutOfSpaceError("full")]
    one.ask(Release([5]))
    assert one.answers() == [(2, 0)]
    assert tree.dropped[-1] == 5 and not tree.nameless
    assert not service.operations.leases.is_held(5)
    assert other.is_open


def test_a_durable_answer_waits_for_a_sync_and_no_other_does() -> None:
    service = fake_service()
    one = peer(service)
    one.ask(Acquire(5, WRITE))
    one.ask(commit(5, durable=True))
    one.ask(Space())
    assert one.answers() == [(1, 0), (3, 0)]
    ((outlet, data),) = service.take_durable()
    outlet.send(service.not_durable(data))
    assert one.answers() == [(2, errno.EIO)]
    one.ask(commit(5, durable=True), number=4)
    ((_, data),) = service.take_durable()
    one.ask(commit(5, durable=True), number=4)
    assert [again for _, again in service.take_durable()] == [data]  # a repetition waits for a sync of its own
    assert one.answers() == []


def test_a_session_with_too_many_leases_is_asked_for_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "LEASES_PER_SESSION", 10)
    monkeypatch.setattr("metadata_server.runtime.operations.LEASES_PER_SESSION", 10)
    monkeypatch.setattr("metadata_server.runtime.operations.LEASES_PER_SESSION_HARD", 12)
    clock = Clock()
    service = fake_service(None, clock)
    one = peer(service)
    for inode in range(2, 16):
        one.ask(Acquire(inode, READ))
    assert one.answers()[-1] == (14, errno.ENFILE)
    service.tick(clock.now)
    asked = one.recalls()
    assert 0 < len(asked) <= EVICTIONS
    assert {keep for *_, keep in asked} == {READ}
    one.ask(Acquire(2, READ), slot=1, number=1)
    for recall, inode, *_ in asked:
        one.give_back(recall, READ if inode < 5 else NONE)
    assert service.operations.leases.count(one.session) <= 10


def test_a_message_out_of_turn_is_malformed_and_changes_nothing() -> None:
    tree = FakeTree()
    service = fake_service(tree)
    one = peer(service)
    with pytest.raises(MalformedError):
        one.ask(Make(1, b"7", 1, 0, 0, 0, None), number=2)
    with pytest.raises(MalformedError):
        Peer(service).ask(Lookup(1, b"7"))
    assert tree.committed == [] and tree.applied == []


def test_everybody_is_told_of_relocated_segments() -> None:
    service = fake_service()
    peers = [peer(service) for _ in range(3)]
    service.relocated([4, 5])
    service.finish()
    for each in peers:
        assert each.take()[-1] == (RELOCATED, (4, 5))


def test_who_had_no_connection_is_told_of_relocated_segments_when_it_comes_back() -> None:
    service = fake_service()
    one = Peer(service)
    welcome = one.greet()
    service.disconnected(one)
    service.relocated([4, 5])
    again = Peer(service)
    again.greet(welcome.session, welcome.token)
    service.relocated([6])
    again.say(RESUMED_FRAME)
    assert again.take() == [(RELOCATED, (4, 5, 6))]


def test_a_session_that_is_being_recalled_is_granted_nothing_on_the_inode_until_it_has_answered() -> None:
    service = fake_service()
    one, other = peer(service), peer(service)
    one.ask(Acquire(5, WRITE))
    other.ask(Acquire(5, WRITE))
    ((recall, *_),) = one.recalls()
    one.take()
    one.ask(Acquire(5, READ), slot=1, number=1)
    assert one.answers() == []
    one.give_back(recall, NONE)
    assert one.answers() == []  # the other one's turn came first, and is recalled in its turn
    assert service.operations.leases.held_by(other.session, 5) is WRITE
    ((recall, *_),) = other.recalls()
    other.give_back(recall, READ)
    assert one.answers() == [(1, 0)]
