"""The lease table against the obvious one, and its invariants (leases.py) after every step."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from metadata_server.protocol.model import Lease
from metadata_server.runtime.leases import LeaseTable, Want
from metadata_server.tree.state import Access, Touch

SESSIONS = st.integers(1, 4)
INODES = st.integers(1, 5)
KEEP = {Access.READ: Lease.READ, Access.ATTRIBUTES: Lease.WRITE, Access.NAME: Lease.READ, Access.WRITE: Lease.NONE}


class Table(RuleBasedStateMachine):
    """Sessions take, lower and lose leases; what is in the way is given back first, as the server does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable()
        self.plain: dict[tuple[int, int], Lease] = {}

    @rule(session=SESSIONS, inode=INODES, lease=st.sampled_from([Lease.READ, Lease.WRITE]))
    def acquire(self, session: int, inode: int, lease: Lease) -> None:
        access = Access.WRITE if lease is Lease.WRITE else Access.READ
        for want in self.table.in_the_way(session, [Touch(inode, None, access)]):
            self.table.lower(want.session, want.inode, want.keep)
            self.lower_plainly(want.session, want.inode, want.keep)
        assert not self.table.in_the_way(session, [Touch(inode, None, access)])
        self.table.grant(session, inode, lease)
        self.plain[session, inode] = max(lease, self.plain.get((session, inode), Lease.NONE))

    @rule(session=SESSIONS, inode=INODES, keep=st.sampled_from(Lease))
    def lower(self, session: int, inode: int, keep: Lease) -> None:
        was_held = self.table.is_held(inode)
        assert self.table.lower(session, inode, keep) == (
            self.lower_plainly(session, inode, keep) and was_held and not self.table.is_held(inode)
        )

    def lower_plainly(self, session: int, inode: int, keep: Lease) -> bool:
        held = self.plain.get((session, inode), Lease.NONE)
        if keep >= held:
            return False
        self.plain[session, inode] = keep
        if not keep:
            del self.plain[session, inode]
        return True

    @rule(session=SESSIONS)
    def drop(self, session: int) -> None:
        alone = {i for s, i in self.plain if s == session} - {i for s, i in self.plain if s != session}
        assert set(self.table.drop_session(session)) == alone
        self.plain = {key: lease for key, lease in self.plain.items() if key[0] != session}

    @rule(session=SESSIONS, count=st.integers(1, 3))
    def rotate(self, session: int, count: int) -> None:
        assert set(self.table.oldest(session, count)) <= {i for s, i in self.plain if s == session}

    @rule(session=SESSIONS, inode=INODES, access=st.sampled_from(Access))
    def look(self, session: int, inode: int, access: Access) -> None:
        wants = self.table.in_the_way(session, [Touch(inode, b"n", access)])
        expected = {
            Want(s, i, b"n" if access is Access.NAME else None, KEEP[access])
            for (s, i), lease in self.plain.items()
            if i == inode and s != session and (access is not Access.READ or lease is Lease.WRITE)
        }
        assert set(wants) == expected and len(wants) == len(expected)

    @invariant()
    def a_writer_is_alone(self) -> None:
        for inode in range(1, 6):
            holders = self.table.holders(inode)
            leases = [self.table.held_by(session, inode) for session in holders]
            assert Lease.NONE not in leases
            assert len(leases) <= 1 or Lease.WRITE not in leases
            assert self.table.is_held(inode) == bool(holders)

    @invariant()
    def all_accounts_agree(self) -> None:
        for session in range(1, 5):
            held = {inode: lease for (s, inode), lease in self.plain.items() if s == session}
            assert dict(self.table.held(session)) == held
            assert self.table.count(session) == len(held)
            assert all(self.table.held_by(session, inode) is held.get(inode, Lease.NONE) for inode in range(1, 6))


Table.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_no_two_sessions_hold_an_inode_that_one_of_them_writes = Table.TestCase


def test_the_longest_held_leases_are_asked_for_first_and_then_last() -> None:
    table = LeaseTable()
    for inode in range(5):
        table.grant(1, inode, Lease.READ)
    assert table.oldest(1, 2) == [0, 1]
    assert table.oldest(1, 4) == [2, 3, 4, 0]
