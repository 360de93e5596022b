"""Scrubbing and healing beside other work: what gateways and servers run in a thread of their own.

`BackgroundScrub` owns one thread, the time of its last run (in a file of this machine, so that a gateway that is restarted every day still
scrubs every week), and the figures; `_lock` guards the figures and the queue of suspects. `start` and `stop` belong to one thread.

1. Nothing that goes wrong here stops whoever it runs beside: it is told, and tried again.
2. `stop` returns soon: every wait ends by it, and the thread does not keep the process.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from blake3 import blake3

from core import limits
from core.config import ScrubSettings, user_state_directory
from core.errors import BlockyardError
from core.pool.pool import Pool
from core.scrub.healing import heal
from core.scrub.report import Report
from core.scrub.scrubber import Options, scrub
from core.store.mirror import MirrorStore

_TOLD: Final = 20
"""Findings of one scrub that are told one by one."""
_AGAIN_S: Final = 600.0
"""A scrub that failed is tried again after this time, or its interval if that is shorter."""


class _StoppedError(BlockyardError):
    """The process ends, and the scrub with it."""


class BackgroundScrub:
    """Scrubs some volumes of a pool, or all of it, now and then; and mends what readers find bad, if the pool has a mirror.

    `volumes` gives the names to scrub, none for the whole pool; `tell` takes a sentence for the log.
    """

    def __init__(
        self,
        pool: Pool,
        settings: ScrubSettings,
        volumes: Collection[str],
        tell: Callable[[str], None],
        state_directory: Path | None = None,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._volumes = volumes
        self._tell = tell
        which = blake3("\0".join(sorted(volumes)).encode()).hexdigest(length=8) if volumes else "pool"
        self._last_run_file = (state_directory or user_state_directory() / "scrub") / f"{pool.id.hex()}-{which}"
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._suspects: deque[str] = deque(maxlen=limits.MIRROR_SUSPECTS)
        self._objects = self._bad = self._repaired = self._runs = self._failures = 0
        self._last_bad_share = 0.0
        self._last_unrepaired = 0
        self._last_run_s = self._read_last_run()
        self._thread: threading.Thread | None = None

    @property
    def is_needed(self) -> bool:
        """Say whether there is anything to do: an interval, or a mirror to mend from."""
        return self._settings.interval_s > 0 or isinstance(self._pool.store, MirrorStore)

    def start(self) -> None:
        """Begin, if there is anything to do."""
        if not self.is_needed:
            return
        store = self._pool.store
        if isinstance(store, MirrorStore):
            store.on_suspect = self._note_suspect
            for key in store.suspects():
                self._note_suspect(key)
        self._thread = threading.Thread(target=self._run, name="blockyard scrub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End soon; a call of the store that hangs is left behind."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def __enter__(self) -> Self:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End soon."""
        self.stop()

    def figures(self) -> Mapping[str, float]:
        """Give what a metrics page shows; names that end in `_total` only grow."""
        with self._lock:
            found: dict[str, float] = {
                "scrub_objects_total": self._objects,
                "scrub_bad_total": self._bad,
                "scrub_repaired_total": self._repaired,
                "scrub_runs_total": self._runs,
                "scrub_failures_total": self._failures,
                "scrub_unrepaired": self._last_unrepaired,
                "scrub_bad_share": self._last_bad_share,
                "scrub_alert": self._last_bad_share > self._settings.alert,
                "scrub_last_run_seconds": self._last_run_s or 0,
            }
        store = self._pool.store
        if isinstance(store, MirrorStore):
            found |= {
                "mirror_missed_total": store.counters.missed,
                "mirror_fallbacks_total": store.counters.fallbacks,
                "mirror_mended_total": store.counters.mended,
                "mirror_suspects": len(store.suspects()),
            }
        return found

    # The thread.

    def _run(self) -> None:
        retry_at_s = 0.0
        while not self._stopping.is_set():
            self._heal_suspects()
            now_s = self._pool.world.now()
            wait_s = max(self._due_s() - now_s, retry_at_s - now_s)
            if wait_s <= 0 and not self._scrub():
                retry_at_s = self._pool.world.now() + min(_AGAIN_S, self._settings.interval_s)
                continue
            self._wake.wait(min(max(wait_s, 0.0), threading.TIMEOUT_MAX))
            self._wake.clear()

    def _due_s(self) -> float:
        if self._settings.interval_s <= 0:
            return float("inf")
        last_s = self._last_run_s
        return self._pool.world.now() if last_s is None else last_s + self._settings.interval_s

    def _scrub(self) -> bool:
        """Scrub once; say whether it came to its end."""
        options = Options(only=self._volumes, rate=self._settings.rate, threads=self._settings.concurrency)
        try:
            report = scrub(self._pool, options, self._pause)
        except _StoppedError:
            return True
        except BlockyardError as error:
            with self._lock:
                self._failures += 1
            self._tell(f"scrub failed and is tried again: {error}")
            return False
        self._note_run(report.ended)
        self._count(report)
        with self._lock:
            self._runs += 1
            self._last_bad_share, self._last_unrepaired = report.bad_share, report.bad - report.repaired
        if report.bad:
            self._tell_of(report)
        return True

    def _pause(self, seconds: float) -> None:
        self._heal_suspects()
        if self._stopping.wait(seconds):
            raise _StoppedError("the scrub ends with its process")

    def _count(self, report: Report) -> None:
        with self._lock:
            self._objects += report.objects
            self._bad += report.bad
            self._repaired += report.repaired

    def _tell_of(self, report: Report) -> None:
        for each in report.findings[:_TOLD]:
            outcome = "repaired" if each.repaired else f"not repaired: {each.remedy}"
            self._tell(f"scrub: {each.problem}; {outcome}")
        for lost in report.ranges[:_TOLD]:
            self._tell(f"scrub: {lost.where}: bytes {lost.offset} to {lost.offset + lost.length} cannot be read")
        if report.bad_share > self._settings.alert:
            share = f"{report.bad} of {report.objects} objects were bad, {report.repaired} of them are repaired"
            self._tell(f"scrub ALERT: {share}: look at the disks of {report.pool}")

    def _note_suspect(self, key: str) -> None:
        with self._lock:
            self._suspects.append(key)
        self._wake.set()

    def _heal_suspects(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                key = self._suspects.popleft() if self._suspects else None
            if key is None:
                return
            try:
                report = heal(self._pool, key)
            except BlockyardError as error:
                self._tell(f"{key} could not be mended, and is read from the mirror: {error}")
                continue
            self._count(report)
            for each in report.findings:
                self._tell(f"{each.problem}; {'repaired from the mirror' if each.repaired else each.remedy}")

    def _read_last_run(self) -> float | None:
        try:
            return float(self._last_run_file.read_text())
        except (OSError, ValueError):
            return None

    def _note_run(self, ended: int) -> None:
        self._last_run_s = ended
        with suppress(OSError):
            self._last_run_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self._last_run_file.with_suffix(".new")
            aside.write_text(str(ended))
            aside.replace(self._last_run_file)
