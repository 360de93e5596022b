"""Condemnations: lists of packs that a prune is going to delete, durable before it asks who is at work. Stateless."""

from collections.abc import Iterable
from dataclasses import dataclass

from core.backup import limits
from core.backup.chunk_index import PackName
from core.backup.vault import Vault
from core.errors import IntegrityError
from core.format.record import RecordKind, RecordValue

ID_BYTES = 16
_NAME_BYTES = 20


@dataclass(frozen=True, slots=True)
class Condemnation:
    """One list of packs."""

    id: bytes
    packs: frozenset[PackName]


def put_condemnation(vault: Vault, packs: list[PackName]) -> Condemnation:
    """Condemn packs, at most `limits.CONDEMNED_PACKS`; durable on return."""
    assert len(packs) <= limits.CONDEMNED_PACKS, "the caller cuts longer lists"
    made = Condemnation(vault.world.random_bytes(ID_BYTES), frozenset(packs))
    names = b"".join(nonce + number.to_bytes(4, "little") for nonce, number in packs)
    values: dict[str, RecordValue] = {"packs": names, "since": int(vault.world.now())}
    vault.records.put(RecordKind.CONDEMNED, vault.names.condemned + made.id.hex(), values)
    return made


def withdraw(vault: Vault, condemnation: Condemnation) -> None:
    """Remove a condemnation: its packs are gone, or they stay."""
    vault.store.delete(vault.names.condemned + condemnation.id.hex())


def condemnations(vault: Vault) -> list[Condemnation]:
    """Give all of them."""
    found = []
    for info in list(vault.store.list(vault.names.condemned)):
        fields = vault.records.find(RecordKind.CONDEMNED, info.key)
        if fields is None:
            continue
        names = fields.blob("packs")
        if len(names) % _NAME_BYTES:
            raise IntegrityError(f"{info.key} holds no list of packs: it was made by another program")
        parts = (names[at : at + _NAME_BYTES] for at in range(0, len(names), _NAME_BYTES))
        packs = frozenset((part[:16], int.from_bytes(part[16:], "little")) for part in parts)
        found.append(Condemnation(bytes.fromhex(info.key.removeprefix(vault.names.condemned)), packs))
    return found


def packs_of(condemned: Iterable[Condemnation]) -> frozenset[PackName]:
    """Give all the packs they name."""
    return frozenset(name for each in condemned for name in each.packs)
