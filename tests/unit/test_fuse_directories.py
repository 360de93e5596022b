"""A directory's names as a mount knows them (gateway_fuse/directories.py; the numbers are its invariants)."""

from gateway_fuse import limits
from gateway_fuse.directories import ABSENT, Directory
from metadata_server.protocol.model import Attributes, Entry, Node


def entry(cookie: int, name: bytes, inode: int) -> Entry:
    return Entry(cookie, name, Node(Attributes(inode, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), b"", None))


def test_nothing_is_known_of_a_directory_at_first():
    assert Directory().find(b"a") is None


def test_a_directory_made_here_is_complete_from_birth():
    directory = Directory()
    directory.begin_empty()
    assert directory.find(b"a") == ABSENT
    directory.put(b"a", 7)
    assert directory.find(b"a") == 7
    assert directory.find(b"b") == ABSENT


def test_a_listing_makes_every_other_name_absent():  # 1
    directory = Directory()
    directory.install_listing([entry(3, b"a", 7)])
    assert directory.find(b"a") == 7
    assert directory.find(b"b") == ABSENT


def test_a_listing_keeps_in_mind_what_the_kernel_was_told_to_be_absent():
    directory = Directory()
    assert directory.note_absent(b"gone")
    directory.install_listing([entry(3, b"a", 7)])
    assert directory.names[b"gone"] == ABSENT


def test_making_a_name_ends_the_listing_and_removing_one_does_not():  # 2
    directory = Directory()
    directory.install_listing([entry(3, b"a", 7), entry(4, b"b", 8)])
    directory.note_absent(b"a")
    assert directory.listing == [(3, b"a", 7), (4, b"b", 8)]
    assert directory.find(b"a") == ABSENT
    directory.put(b"c", 9)
    assert directory.listing is None
    assert directory.find(b"d") == ABSENT, "it is complete all the same"


def test_a_recalled_name_is_not_known_any_more_and_neither_are_those_never_heard_of():
    directory = Directory()
    directory.install_listing([entry(3, b"a", 7), entry(4, b"b", 8)])
    version = directory.version
    directory.forget_name(b"a")
    assert directory.find(b"a") is None
    assert directory.find(b"new") is None
    assert directory.find(b"b") == 8
    assert directory.listing is None
    assert directory.version != version


def test_absent_names_have_a_bound_and_those_over_it_are_looked_up_again():
    directory = Directory()
    assert all(directory.note_absent(b"%d" % each) for each in range(limits.ABSENT_NAMES))
    assert not directory.note_absent(b"one more")
    assert directory.find(b"one more") is None
    directory.put(b"0", 5)
    assert directory.note_absent(b"one more")


def test_who_waits_for_the_kernel_hears_that_a_change_of_ours_holds_its_lock():  # 3
    class Told:
        told = False

        def set(self) -> None:
            self.told = True

    directory, first, second, third = Directory(), Told(), Told(), Told()
    directory.tell_when_changing(first)
    directory.tell_when_changing(second)
    directory.stop_telling(second)
    assert not first.told
    directory.begin_change()
    assert first.told
    assert not second.told
    directory.tell_when_changing(third)
    assert third.told, "a change is under way already"
    directory.end_change()
