"""POSIX access control lists as values (IEEE 1003.1e draft 17, acl(5)): what they allow, and how modes and new files follow them.

An ACL is a tuple of (tag, permission bits, id), in the order of the attribute `system.posix_acl_access` that carries it.
"""

import struct

Acl = tuple[tuple[int, int, int], ...]
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF
ATTRIBUTES = {"access": b"system.posix_acl_access", "default": b"system.posix_acl_default"}


def encoded(acl: Acl) -> bytes:
    """Give the attribute's value."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in acl)


def decoded(value: bytes) -> Acl:
    """Read the attribute's value."""
    return tuple(struct.iter_unpack("<HHI", value[4:]))  # type: ignore[arg-type]


def is_valid(acl: Acl) -> bool:
    """Tell whether it has each entry it must have."""
    tags = [tag for tag, _, _ in acl]
    has_named = USER in tags or GROUP in tags
    return all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) and tags.count(MASK) == (
        1 if has_named else min(tags.count(MASK), 1)
    )


def is_minimal(acl: Acl) -> bool:
    """Tell whether a mode says the same."""
    return len(acl) == 3


def bits(acl: Acl, tag: int) -> int | None:
    """Give the permission of the only entry with a tag."""
    return next((perm for entry, perm, _ in acl if entry == tag), None)


def group_class(acl: Acl) -> int:
    """Give the tag of the entry that the mode's group bits show."""
    return GROUP_OBJ if bits(acl, MASK) is None else MASK


def mode_of(acl: Acl) -> int:
    """Give the nine bits of a mode that an ACL shows."""
    user, group, other = (bits(acl, tag) or 0 for tag in (USER_OBJ, group_class(acl), OTHER))
    return user << 6 | group << 3 | other


def with_mode(acl: Acl, mode: int) -> Acl:
    """Change an ACL as chmod does."""
    new = {USER_OBJ: mode >> 6 & 7, group_class(acl): mode >> 3 & 7, OTHER: mode & 7}
    return tuple((tag, new.get(tag, perm), name) for tag, perm, name in acl)


def allows(acl: Acl, uid: int, gids: tuple[int, ...], owner_group: int, want: int) -> bool:
    """Decide on access for who is not the owner."""
    mask = 7 if bits(acl, MASK) is None else bits(acl, MASK) or 0
    for tag, perm, name in acl:
        if tag == USER and name == uid:
            return perm & mask & want == want
    of_groups = [
        perm for tag, perm, name in acl if (tag == GROUP and name in gids) or (tag == GROUP_OBJ and owner_group in gids)
    ]
    if of_groups:
        return any(perm & want == want for perm in of_groups) and mask & want == want
    return (bits(acl, OTHER) or 0) & want == want
