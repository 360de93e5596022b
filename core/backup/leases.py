"""Leases of a vault: who is at work in it, and which condemnations he knows of (docs/durability.md, "The vault").

A run puts its lease before it loads the index, and once it has loaded the condemnations says which ones it knows. `Lease` owns the record
`reader/<run>` and a thread that renews it; `held` may be asked from any thread.

1. Whoever does not know of a condemnation may rely on a pack that it names: while his lease lives, that pack stays.
2. A lease that ran out once is not held any more, whatever was renewed since.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from core import limits
from core.backup.limits import DESERTED_KEPT_S
from core.backup.vault import Vault
from core.errors import BlockyardError, IntegrityError, StoreError
from core.format.record import RecordKind, RecordValue
from core.volume.log.owner_lock import Owner, is_alive, process_start
from core.world import World

ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease as somebody else reads it."""

    nonce: bytes
    owner: Owner
    knows: frozenset[bytes]
    ended: bool = False
    """Whether the run failed and said so: its packs wait for the next one."""

    def lives(self, world: World) -> bool:
        """Say whether its holder may rely on it still, whatever his clock says. That a process is gone does not count here: another
        container may see other processes."""
        return not self.ended and self._age_s(world) < limits.LOCK_LEASE_S + limits.CLOCKS_APART_S

    def forgotten(self, world: World) -> bool:
        """Say whether it ended so long ago that nobody will go on from what it left."""
        return self._age_s(world) > DESERTED_KEPT_S

    def deserted(self, world: World) -> bool:
        """Say whether nobody seems to work under it any more, so that its packs can be taken over."""
        beats = not self.ended and self._age_s(world) < limits.LOCK_LEASE_S
        return not (beats and is_alive(self.owner, world, process_start(self.owner.pid)))

    def _age_s(self, world: World) -> float:
        return world.now() - self.owner.heartbeat_s


class Lease:
    """This process's lease; a context manager that renews it meanwhile. `required`: a store that takes none is an error.

    `also` is called with every renewal.
    """

    def __init__(self, vault: Vault, *, required: bool, also: Callable[[], object] = bool) -> None:
        self.nonce = vault.world.random_bytes(ID_BYTES)
        self._vault = vault
        self._required = required
        self._also = also
        self._key = vault.names.leases + self.nonce.hex()
        self._knows: tuple[bytes, ...] = ()
        self._beating = threading.Lock()
        self._beaten_s = 0.0
        self._lapsed = False
        self._refused = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="blockyard lease", daemon=True)

    def __enter__(self) -> Self:
        self._beaten_s = self._vault.world.monotonic()
        try:
            self._beat()
        except StoreError:
            if self._required:
                raise
            self._refused = True  # a store that lets us only read; what is deleted beneath us is an error that names it
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._refused:
            return
        self._thread.join()
        if error is None or not self._required:
            self._vault.store.delete(self._key)
        else:
            # The record stays, run out: it leads the next run to the packs of this one.
            with contextlib.suppress(BlockyardError):
                self._put(ended=True)

    def learn(self, condemnations: tuple[bytes, ...]) -> None:
        """Say that these condemnations are known and respected; durable on return."""
        self._knows = condemnations
        if not self._refused:
            self._beat()

    def held(self) -> bool:
        """Say whether everybody had to respect this lease, at every moment since it was put."""
        return not self._lapsed and self._vault.world.monotonic() - self._beaten_s < limits.LOCK_LEASE_S

    def _beat(self) -> None:
        with self._beating:
            begun_s = self._vault.world.monotonic()
            self._put(ended=False)
            if begun_s - self._beaten_s >= limits.LOCK_LEASE_S:
                self._lapsed = True
            self._beaten_s = begun_s

    def _put(self, *, ended: bool) -> None:
        world = self._vault.world
        values: dict[str, RecordValue] = {
            "host": world.hostname,
            "boot": world.boot_id,
            "pid": world.pid,
            "started": process_start(world.pid),
            "heartbeat_ms": int(world.now() * 1000),
            "knows": b"".join(self._knows),
            "ended": ended,
        }
        self._vault.records.overwrite(RecordKind.LEASE, self._key, values)

    def _renew(self) -> None:
        while not self._end.wait(limits.LOCK_HEARTBEAT_S):
            try:
                self._beat()
                self._also()
            except BlockyardError:
                continue  # `held` tells when it was too long


def leases(vault: Vault) -> list[LeaseRecord]:
    """Give every lease on record, dead ones too. One that nobody can read counts as alive and knowing nothing."""
    found = []
    for info in list(vault.store.list(vault.names.leases)):
        try:
            fields = vault.records.find(RecordKind.LEASE, info.key)
            if fields is None:
                continue
            nonce = bytes.fromhex(info.key.removeprefix(vault.names.leases))
            known = fields.blob("knows")
            knows = frozenset(known[at : at + ID_BYTES] for at in range(0, len(known), ID_BYTES))
            owner = Owner(
                fields.text("host"),
                fields.text("boot"),
                fields.integer("pid"),
                fields.text("started"),
                nonce,
                fields.integer("heartbeat_ms") / 1000,
            )
            found.append(LeaseRecord(nonce, owner, knows, fields.flag("ended")))
        except (IntegrityError, ValueError):
            unknown = Owner("", "", 0, "", b"", vault.world.now())
            found.append(LeaseRecord(b"", unknown, frozenset()))
    return found


def drop_lease(vault: Vault, nonce: bytes) -> None:
    """Remove the lease of a run that is dead."""
    vault.store.delete(vault.names.leases + nonce.hex())
