"""The keys of one pool in memory, and the payload a slot wraps them in. Nothing here has a text form.

A pool whose key was rotated has several: the newest of a slot's payload is `pool_key`, and `older` are those before it. Which of them
seals is for the pool's description to say; all of them open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgpack
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from core import limits
from core.crypto.aead import Algorithm
from core.crypto.derive import derive_key, keyed_digest
from core.crypto.rings import Secrets
from core.crypto.signature import Signer, Verifiers
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, ReadOnlyError, UsageError
from core.format.record import RecordFields, RecordKeys

POOL_ID_BYTES: Final = 16
SEED_BYTES: Final = 32
KEY_BYTES: Final = 32
WRAPPED_KEY_BYTES: Final = 40
_POOL_ID_CONTEXT: Final = "blockyard 2026 pool id v1"
_NAMES_CONTEXT: Final = "blockyard 2026 names v1"
_WRAP_CONTEXT: Final = "blockyard 2026 volume key wrap v1"


class Role(StrEnum):
    """What the holder of a slot may do: manage keys and write, write, or read."""

    OWNER = "owner"
    WRITER = "writer"
    READER = "reader"

    @classmethod
    def parse(cls, text: str) -> "Role":
        """Read `owner`, `writer` or `reader`."""
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"role {text!r} is not known; write owner, writer or reader") from None


def pool_id_of(admin_public: bytes) -> bytes:
    """Give the id of the pool that the holder of this Ed25519 key administers: the id certifies the key."""
    return derive_key(admin_public, _POOL_ID_CONTEXT)[:POOL_ID_BYTES]


@dataclass(frozen=True, repr=False, slots=True)
class PoolKeys:
    """What one slot gives its holder. The seeds are None for roles that must not have them."""

    role: Role
    admin_public: bytes
    key_id: int
    pool_key: bytes
    admin_seed: bytes | None = None
    writer_seed: bytes | None = None
    older: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def generations(self) -> dict[int, bytes]:
        """Every key of the pool that the slot gave, by its id."""
        return {**self.older, self.key_id: self.pool_key}

    @property
    def pool_id(self) -> bytes:
        """The id of the pool these keys belong to."""
        return pool_id_of(self.admin_public)

    @property
    def writer(self) -> Signer | None:
        """The key that signs what this holder writes; None for a reader."""
        return Signer(self.writer_seed) if self.writer_seed else None

    def admin(self) -> Signer:
        """Give the key that signs the pool's description; UsageError for anybody but an owner."""
        if self.admin_seed is None:
            raise UsageError(f"this needs an owner's key; the one that opened the pool is a {self.role}'s")
        return Signer(self.admin_seed)

    def description_keys(self, algorithm: Algorithm, secrets: Secrets | None = None) -> RecordKeys:
        """Give what the pool's description is sealed and signed with: the admin's signature alone counts."""
        signer = Signer(self.admin_seed) if self.admin_seed else None
        verifiers = Verifiers((self.admin_public,))
        return RecordKeys(self.pool_id, self.key_id, self.pool_key, algorithm, signer, verifiers, secrets or self)

    def record_keys(self, algorithm: Algorithm, verifiers: Verifiers, secrets: Secrets | None = None) -> RecordKeys:
        """Give what the pool's other records are sealed and signed with."""
        return RecordKeys(self.pool_id, self.key_id, self.pool_key, algorithm, self.writer, verifiers, secrets or self)

    def newest(self) -> tuple[int, bytes]:
        """Give the newest pool key of this slot: what seals where no description says otherwise."""
        return self.key_id, self.pool_key

    def find(self, key_id: int) -> bytes | None:
        """Give a pool key of this slot by its id; None if it is not among them."""
        return self.generations.get(key_id)

    def name_hash(self, name: str, pool_key: bytes | None = None) -> str:
        """Give the hex digits a name is stored under; they tell nothing to whoever has no pool key."""
        return keyed_digest(derive_key(pool_key or self.pool_key, _NAMES_CONTEXT), name.encode()).hex()

    def wrap_volume_key(self, volume_id: bytes, key_id: int, key: bytes, pool_key: bytes | None = None) -> bytes:
        """Wrap a volume key for its description (RFC 3394); bound to the volume and the key's id."""
        return aes_key_wrap(_wrapping_key(pool_key or self.pool_key, volume_id, key_id), key)

    def unwrap_volume_key(
        self, volume_id: bytes, key_id: int, wrapped: bytes, what: str, pool_keys: Mapping[int, bytes] | None = None
    ) -> bytes:
        """Unwrap a volume's key, under whichever key of the pool it is. IntegrityError naming `what` if it is not this volume's."""
        for _, pool_key in sorted((pool_keys or self.generations).items(), reverse=True):
            try:
                return aes_key_unwrap(_wrapping_key(pool_key, volume_id, key_id), wrapped)
            except (InvalidUnwrap, ValueError):
                continue
        raise IntegrityError(f"the volume key in {what} does not unwrap: it was altered or swapped")

    def volume_keys(
        self, volume_id: bytes, key_id: int, algorithm: Algorithm, wrapped: bytes, verifiers: Verifiers, what: str
    ) -> VolumeKeys:
        """Unwrap a volume's key. IntegrityError naming `what` if it is not this volume's or was altered."""
        key = self.unwrap_volume_key(volume_id, key_id, wrapped, what)
        return VolumeKeys(self.pool_id, volume_id, key_id, key, algorithm, self.writer, verifiers)

    def for_role(self, role: Role, writer_seed: bytes | None) -> "PoolKeys":
        """Give the keys to hand to somebody in `role`, with a writer seed of their own."""
        return replace(
            self,
            role=role,
            admin_seed=self.admin_seed if role is Role.OWNER else None,
            writer_seed=None if role is Role.READER else writer_seed,
        )

    def with_generations(self, keys: Mapping[int, bytes]) -> "PoolKeys":
        """Give the same holder's keys with these keys of the pool, the highest of them as the newest."""
        newest = max(keys)
        older = {key_id: key for key_id, key in keys.items() if key_id != newest}
        return replace(self, key_id=newest, pool_key=keys[newest], older=older)

    def to_payload(self) -> bytes:
        """Give the bytes for a slot to wrap."""
        values: dict[str, object] = {
            "admin": self.admin_public,
            "key_id": self.key_id,
            "pool_key": self.pool_key,
            "role": self.role.value,
        }
        if self.admin_seed:
            values["admin_seed"] = self.admin_seed
        if self.writer_seed:
            values["writer_seed"] = self.writer_seed
        if self.older:
            values["older"] = [{"key_id": key_id, "pool_key": self.older[key_id]} for key_id in sorted(self.older)]
        payload: bytes = msgpack.packb(values)
        return payload

    @classmethod
    def from_payload(cls, payload: bytes, what: str) -> "PoolKeys":
        """Read what a slot wrapped. IntegrityError naming `what` if it is not what `to_payload` makes."""
        try:
            values = msgpack.unpackb(payload)
        except (ValueError, msgpack.UnpackException) as error:
            raise IntegrityError(f"{what} wraps something unreadable: it was made by another program") from error
        fields = RecordFields(values if isinstance(values, dict) else {}, what)
        try:
            role = Role(fields.text("role"))
        except ValueError:
            raise IntegrityError(f"{what} names a role that is not known: it was made by another program") from None
        return cls(
            role=role,
            admin_public=fields.blob("admin", 32),
            key_id=fields.integer("key_id", 0, (1 << 32) - 1),
            pool_key=fields.blob("pool_key", KEY_BYTES),
            admin_seed=fields.blob("admin_seed", SEED_BYTES) if role is Role.OWNER else None,
            writer_seed=None if role is Role.READER else fields.blob("writer_seed", SEED_BYTES),
            older={
                each.integer("key_id", 0, (1 << 32) - 1): each.blob("pool_key", KEY_BYTES)
                for each in (fields.children("older", limits.POOL_KEYS) if fields.has("older") else [])
            },
        )

    def require_writer(self, doing: str) -> None:
        """Return if the holder may write; otherwise raise ReadOnlyError saying that `doing` needs it."""
        if self.writer_seed is None:
            raise ReadOnlyError(f"{doing} needs a writer's key; the one that opened the pool only reads")


def _wrapping_key(pool_key: bytes, volume_id: bytes, key_id: int) -> bytes:
    return derive_key(pool_key, _WRAP_CONTEXT, volume_id + key_id.to_bytes(4, "little"))
