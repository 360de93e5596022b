"""What an open image does that nobody called for: heartbeats, answers to other processes, idle sealing, checkpoints, repacking.

One thread for each image; it uses the image as any caller does. Troubles of the store wait for the next round; what is worse ends the
writer, which tells it to whoever flushes.
"""

import threading
from typing import TYPE_CHECKING, Final

from core import limits
from core.errors import BlockyardError, StoreError, UsageError
from core.volume.log.owner_lock import OwnerLock, ReaderLease
from core.volume.resize_requests import ResizeRequests
from core.volume.writer_requests import Request, Wish, WriterRequests
from core.world import World

if TYPE_CHECKING:
    from core.volume.image import Image

_TICK_S: Final = 0.1
_FAR_TICK_S: Final = 0.5
_HELD_POLL_S: Final = 0.01


class Housekeeper:
    """The housekeeping of one image until `closing`. `near`: looking for a request costs no request over a network."""

    def __init__(
        self,
        image: "Image",
        claim: OwnerLock | ReaderLease,
        resize_requests: ResizeRequests,
        requests: WriterRequests,
        *,
        closing: threading.Event,
        near: bool,
        world: World,
    ) -> None:
        self._image = image
        self._claim = claim
        self._resize_requests = resize_requests
        self._requests = requests
        self._closing = closing
        self._near = near
        self._world = world
        self._attentive_until = 0.0
        self.thread = threading.Thread(target=self._run, name=f"blockyard {image.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the round that is under way when `closing` is set."""
        self.thread.join(timeout_s)

    def _run(self) -> None:
        beat_at = self._world.monotonic() + limits.LOCK_HEARTBEAT_S
        while not self._closing.wait(_TICK_S if self._near or self.is_attentive() else _FAR_TICK_S):
            writer = self._image.writer
            try:
                if self._near or self.is_attentive():
                    self.answer_request()
                if self._world.monotonic() >= beat_at:
                    beat_at = self._world.monotonic() + limits.LOCK_HEARTBEAT_S
                    self.beat()
                if writer is not None and writer.failure is None:
                    self._tidy()
            except StoreError:
                continue  # the writer keeps the trouble and tells it to whoever flushes
            except BlockyardError as error:
                if writer is not None and not self._closing.is_set():  # else it is only that the image is closed by now
                    writer.abort(error)

    def beat(self) -> None:
        """Renew lock or lease, and look for what others ask."""
        if isinstance(self._claim, ReaderLease):
            self._claim.beat(self._image.pin)
        elif not self._image.fenced:
            if not self._claim.renew() and self._image.checkpointer is not None:
                self._image.checkpointer.check_reign()  # somebody else's lock: learn now, not at the next flush, if we were cut off
            self._answer_resize_request()
            self.answer_request()

    def _tidy(self) -> None:
        image = self._image
        image.tidy()
        if image.checkpointer is not None:
            if image.checkpointer.due(limits.CHECKPOINT_SEGMENTS, limits.CHECKPOINT_DIRTY_PAGES):
                image.checkpointer.run()
            image.checkpointer.collect_again()
        if image.repacker is not None:
            image.repacker.step()

    # Answers.

    def is_attentive(self) -> bool:
        """Say whether somebody asked for something a moment ago, and may ask again."""
        return self._world.monotonic() < self._attentive_until

    def answer_request(self) -> None:
        """Do what another process asks this writer for."""
        image = self._image
        request = self._requests.pending() if image.writer is not None and not image.fenced else None
        if request is None:
            return
        self._attentive_until = self._world.monotonic() + limits.ATTENTION_S
        if request.wish is Wish.FREEZE:
            self.freeze(request)
        elif request.wish is Wish.FLATTEN and image.repacker is not None:
            image.repacker.ask_to_flatten()
            self._requests.answer(request, image.generation)
        else:
            self._requests.answer(request, image.publish())

    def freeze(self, request: Request) -> None:
        """Have the image take no write from the answer until the request is withdrawn or the time is over."""

        def until_released() -> None:
            until = self._world.monotonic() + limits.FREEZE_S
            while self._requests.stands(request) and self._world.monotonic() < until:
                if self._closing.wait(_HELD_POLL_S):
                    self._requests.withdraw()  # before anything is written: who asked must not rely on us any more
                    break

        self._image.hold_still(lambda generation: self._requests.answer(request, generation), until_released)

    def _answer_resize_request(self) -> None:
        request = self._resize_requests.pending()
        if request is None:
            return
        refusal = ""
        try:
            self._image.resize(request.size_bytes, allow_shrink=request.allow_shrink)
        except UsageError as error:
            refusal = str(error)
        self._resize_requests.answer(request, refusal)
