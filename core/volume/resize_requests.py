"""Resizing an image that another process writes: a signed request record, which the live writer applies and answers.

`image/<volume>/resize` is advisory (docs/format.md, RESIZE): losing it loses a request and nothing else. One process
asks (`ask`, then `answer_to` until it is there), the live writer looks at each heartbeat (`pending`, then `answer`).
Holds one nonce, the last it answered; one thread at a time asks for what is pending.
"""

from dataclasses import dataclass
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.record import RecordFields, RecordKind, volume_record_keys
from core.pool.records import RecordStore
from core.store.contract import Store
from core.world import World

NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ResizeRequest:
    """A wish for another size."""

    nonce: bytes
    size_bytes: int
    allow_shrink: bool
    asked: int


class ResizeRequests:
    """The resize requests of one volume. `prefix` has no trailing slash."""

    def __init__(self, store: Store, prefix: str, keys: VolumeKeys, world: World) -> None:
        self._records = RecordStore(store, volume_record_keys(keys), world)
        self._key = f"{prefix}/resize"
        self._world = world
        self._answered: bytes | None = None

    def ask(self, size_bytes: int, *, allow_shrink: bool) -> ResizeRequest:
        """Leave a request for the live writer; an earlier one that waits is replaced. Needs a writer's key."""
        nonce = self._world.random_bytes(NONCE_BYTES)
        request = ResizeRequest(nonce, size_bytes, allow_shrink, int(self._world.now()))
        self._write(request, None)
        return request

    def pending(self) -> ResizeRequest | None:
        """Give the request that waits for an answer, None if there is none or it is older than a lock's lease.

        A record that no writer of the pool signed is no request: it must not stop a writer that is well.
        """
        try:
            fields = self._records.find(RecordKind.RESIZE, self._key)
            if fields is None or fields.has("answer"):
                return None
            request = _read(fields)
        except IntegrityError:
            return None
        fresh = abs(self._world.now() - request.asked) <= limits.LOCK_LEASE_S
        return request if fresh and request.nonce != self._answered else None

    def answer(self, request: ResizeRequest, refusal: str = "") -> None:
        """Say that the request was applied, or why not. Only the live writer calls this."""
        self._answered = request.nonce
        self._write(request, refusal)

    def answer_to(self, request: ResizeRequest) -> str | None:
        """Give the live writer's answer: None while there is none, empty when it applied the request, else its refusal."""
        fields = self._records.find(RecordKind.RESIZE, self._key)
        if fields is None or not fields.has("answer"):
            return None
        if _read(fields).nonce != request.nonce:
            return None
        return fields.text("answer")

    def withdraw(self, request: ResizeRequest) -> None:
        """Answer the request oneself, so that no writer applies it later."""
        self._write(request, "withdrawn")

    def _write(self, request: ResizeRequest, answer: str | None) -> None:
        self._records.overwrite(
            RecordKind.RESIZE,
            self._key,
            {
                "nonce": request.nonce,
                "size_bytes": request.size_bytes,
                "allow_shrink": request.allow_shrink,
                "asked": request.asked,
                "answer": answer,
            },
        )


def _read(fields: RecordFields) -> ResizeRequest:
    return ResizeRequest(
        fields.blob("nonce", NONCE_BYTES),
        fields.integer("size_bytes", 0, limits.IMAGE_BYTES),
        fields.flag("allow_shrink"),
        fields.integer("asked"),
    )
