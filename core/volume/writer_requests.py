"""Asking the living writer of an image for something, across processes and machines: a signed record that it looks for and answers.

`<prefix>/request` is advisory (docs/format.md, REQUEST): losing it loses a request and nothing else. One asks at a time and waits for
its turn; where two begin at once the later request takes the place of the other, whose asker sees that and begins again. A writer on
a directory looks ten times a second, another one at each heartbeat. Holds the last nonce it answered; one thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core import limits
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, LockedError, StoreError
from core.format.record import RecordFields, RecordKind, volume_record_keys
from core.pool.records import RecordStore
from core.store.contract import Store
from core.world import World

NONCE_BYTES: Final = 16
_POLL_S: Final = 0.01
_UNANSWERED_S: Final = 2 * limits.LOCK_HEARTBEAT_S
_UNREAD_S: Final = 0.2


class Wish(StrEnum):
    """What a writer can be asked for."""

    PUBLISH = "publish"
    """Make everything accepted an object of the log."""
    FREEZE = "freeze"
    """The same, and take no write until the request is withdrawn, or `limits.FREEZE_S` are over."""
    FLATTEN = "flatten"
    """Copy what the image still has in common with its ancestors."""


@dataclass(frozen=True, slots=True)
class Request:
    """One wish."""

    wish: Wish
    nonce: bytes
    asked: int


class WriterRequests:
    """The requests to the writer of one volume. `prefix` has no trailing slash."""

    def __init__(self, store: Store, prefix: str, keys: VolumeKeys, world: World) -> None:
        self._store = store
        self._records = RecordStore(store, volume_record_keys(keys), world)
        self._key = f"{prefix}/request"
        self._world = world
        self._answered: bytes | None = None

    # The asker.

    def ask(self, wish: Wish) -> Request:
        """Leave a request; needs a writer's key."""
        request = Request(wish, self._world.random_bytes(NONCE_BYTES), int(self._world.now()))
        self._write(request, None)
        return request

    def answer_to(self, request: Request) -> int | None:
        """Give the generation that the writer answered with, None while there is no answer."""
        fields = self._records.find(RecordKind.REQUEST, self._key)
        if fields is None or not fields.has("generation") or _read(fields) != request:
            return None
        return fields.integer("generation")

    def withdraw(self) -> None:
        """Take the request away, answered or not."""
        self._store.delete(self._key)

    def wait_for_turn(self, sleep: Callable[[float], None]) -> None:
        """Wait while somebody else's request stands, but not for one that its asker must have forgotten."""
        seen, since = None, 0.0
        until = self._world.monotonic() + limits.REQUEST_WAIT_S
        while (standing := self._standing()) is not None and (now := self._world.monotonic()) < until:
            if standing != seen:
                seen, since = standing, now
            request, answered = standing
            if now - since >= _patience(request.wish, answered=answered):
                return
            sleep(_POLL_S)

    def ask_and_wait(self, wish: Wish, sleep: Callable[[float], None], is_there: Callable[[], bool]) -> int | None:
        """Ask when nobody else does, and give the generation of the answer; LockedError if there is none in time.

        None if the writer left (`is_there` tells), or was asked for something else meanwhile: look at it and ask it again.
        """
        self.wait_for_turn(sleep)
        until = self._world.monotonic() + limits.REQUEST_WAIT_S
        request = self.ask(wish)
        try:
            while (generation := self.answer_to(request)) is None:
                if not self.stands(request) or not is_there():
                    return None
                if self._world.monotonic() >= until:
                    raise unanswered("the image", limits.REQUEST_WAIT_S)
                sleep(_POLL_S)
            return generation
        finally:
            if self.stands(request):
                self.withdraw()

    def _standing(self) -> tuple[Request, bool] | None:
        """Give the request on record, and whether it was answered."""
        try:
            fields = self._records.find(RecordKind.REQUEST, self._key)
            return None if fields is None else (_read(fields), fields.has("generation"))
        except IntegrityError:
            return None

    # The writer.

    def pending(self) -> Request | None:
        """Give the request that waits for an answer, None if there is none or it is too old.

        A record that no writer of the pool signed is no request: it must not stop a writer that is well.
        """
        try:
            fields = self._records.find(RecordKind.REQUEST, self._key)
            if fields is None or fields.has("generation"):
                return None
            request = _read(fields)
        except IntegrityError:
            return None
        fresh = abs(self._world.now() - request.asked) <= limits.LOCK_LEASE_S
        return request if fresh and request.nonce != self._answered else None

    def stands(self, request: Request) -> bool:
        """Say whether a request was not withdrawn or replaced. While the store does not tell, it stands."""
        try:
            fields = self._records.find(RecordKind.REQUEST, self._key)
            return fields is not None and _read(fields) == request
        except IntegrityError:
            return False
        except StoreError:
            return True

    def answer(self, request: Request, generation: int) -> None:
        """Say that the wish is fulfilled as of `generation`."""
        self._answered = request.nonce
        self._write(request, generation)

    def _write(self, request: Request, generation: int | None) -> None:
        values = {"wish": request.wish.value, "nonce": request.nonce, "asked": request.asked, "generation": generation}
        self._records.overwrite(RecordKind.REQUEST, self._key, values)


def _patience(wish: Wish, *, answered: bool) -> float:
    """Say for how long a request may stand as it is without its asker having died, or given it up when another took its place."""
    if not answered:
        return _UNANSWERED_S
    return limits.FREEZE_S if wish is Wish.FREEZE else _UNREAD_S


def unanswered(whose: str, wait_s: float) -> LockedError:
    """Make the error of a writer that does not answer."""
    return LockedError(
        f"the writer of {whose} did not answer within {wait_s:.0f} s. If its process hangs, end it and try again; "
        "what it acknowledged is kept"
    )


def _read(fields: RecordFields) -> Request:
    try:
        wish = Wish(fields.text("wish"))
    except ValueError:
        raise IntegrityError(f"{fields.what} asks for something this program does not know: use a newer one") from None
    return Request(wish, fields.blob("nonce", NONCE_BYTES), fields.integer("asked"))
