"""Putting a proved copy in the place of an object that is bad or missing. Stateless but for what it was given; any thread.

1. *Proved first.* Bytes are written only after they were proved whole, with our keys, as the object of this very key.
2. *Never a better one.* An object that proves well when it is looked at again is left alone.
3. *Never a hole.* A bad object is replaced in one step (`overwrite`, which is atomic): its place in a log is never free for a moment, so
   nobody can win it by put-if-absent, and a crash leaves the bad one or the good one. A missing one is put if absent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from core.errors import BlockyardError, StoreError
from core.pool.volumes import FILESYSTEMS, IMAGES, VAULTS
from core.scrub.report import NO_SOURCE, Finding, Report, Trouble
from core.store.contract import ObjectExistsError, ObjectMissingError, Store, forget_in
from core.store.mirror import MirrorStore

Prove = Callable[[bytes], object]
"""Raises IntegrityError unless the bytes are the object."""


_DESCRIPTIONS: Final = {each.directory: each.kind.value for each in (IMAGES, FILESYSTEMS, VAULTS)}


@dataclass(frozen=True)
class Source:
    """A store that has the same objects under the same keys. `mirror`: it is kept so by whoever writes, so what it alone has was lost."""

    store: Store
    mirror: bool = False


class Mender:
    """Mends objects of `store` from `sources`, in their order. `mirror` is told what needs it no more."""

    def __init__(self, store: Store, sources: Sequence[Source], report: Report, mirror: MirrorStore | None) -> None:
        self._store = store
        self.sources = tuple(sources)
        self._report = report
        self._mirror = mirror

    def damaged(self, key: str, family: str, problem: str, prove: Prove) -> bool:
        """Report an object whose bytes are bad, repaired or not; say whether it was repaired."""
        return self._found(Finding(key, family, Trouble.DAMAGED, problem), prove)

    def missing(self, key: str, family: str, problem: str, prove: Prove) -> bool:
        """Report an object that must be there and is not, repaired or not; say whether it was repaired."""
        if self.is_leaving(key):
            return False
        return self._found(Finding(key, family, Trouble.MISSING, problem), prove)

    def is_leaving(self, key: str) -> bool:
        """Say whether the volume of an object is being removed, or is gone: then nothing of it is missing.

        A removal is noted before the first object goes, and the description goes last: so who asks after he missed something knows.
        """
        directory, _, rest = key.partition("/")
        description = _DESCRIPTIONS.get(directory)
        volume = rest.partition("/")[0]
        if description is None:
            return False
        described = f"{directory}/{volume}/{description}"
        return self._store.head(f"removed/{volume}") is not None or (
            key != described and self._store.head(described) is None
        )

    def _found(self, finding: Finding, prove: Prove) -> bool:
        remedy = self._mend(finding.key, prove)
        self._report.find(Finding(finding.key, finding.family, finding.trouble, finding.problem, remedy == "", remedy))
        return remedy == ""

    def differs(self, key: str, family: str, copy: bytes) -> bool:
        """Report a record that proves well and is another version than the mirror's; the mirror has every version that was written.

        A slot is left as it is: an older grant would lock its holder out.
        """
        problem = f"{key} is not the version that the mirror has: it was rolled back, or the mirror missed the last one"
        mended = self._may_roll_forward(key)
        if mended:
            self._store.overwrite(key, copy)
        remedy = (
            "" if mended else "which of the two is newer cannot be told here; `blockyard mirror sync` takes this one"
        )
        self._report.find(Finding(key, family, Trouble.DAMAGED, problem, mended, remedy))
        return mended

    def _may_roll_forward(self, key: str) -> bool:
        return not key.startswith("slot/") and self.mirror_has_all

    @property
    def mirror_has_all(self) -> bool:
        """Say whether the mirror has the newest version of everything, and nothing that was deleted."""
        return self._mirror is not None and not self._mirror.missed_something()

    def deleted_here(self) -> frozenset[str]:
        """Name what was deleted by this machine while the mirror was away."""
        return self._mirror.backlog.missed().deleted if self._mirror is not None else frozenset()

    def stands_in_mirror_alone(self, key: str) -> bool:
        """Say whether a mirror has an object that the store lost. A delete goes to the mirror first, so the store is asked first."""
        if self._store.head(key) is not None or key in self.deleted_here():
            return False
        return any(source.mirror and source.store.head(key) is not None for source in self.sources)

    def copies(self, key: str, prove: Prove, *, mirrors: bool = False) -> Iterator[bytes]:
        """Give the proved copies that sources have of an object; of `mirrors` alone if that is asked for."""
        for source in self.sources:
            if source.mirror or not mirrors:
                copy = _proved(source.store, key, prove)
                if isinstance(copy, bytes):
                    yield copy

    def _mend(self, key: str, prove: Prove) -> str:
        """Mend one object; give an empty text, or why it could not be done."""
        reasons = []
        for source in self.sources:
            copy = _proved(source.store, key, prove)
            if isinstance(copy, str):
                reasons.append(f"{source.store.url}: {copy}")
                continue
            try:
                self._put(key, copy, prove)
            except StoreError as error:
                return f"the copy at {source.store.url} could not be put in its place: {error}"
            return ""
        return "; ".join(reasons) or NO_SOURCE

    def _put(self, key: str, copy: bytes, prove: Prove) -> None:
        forget_in(self._store, key)
        if self._store.head(key) is None:
            try:
                self._store.put(key, copy)
            except ObjectExistsError:  # it came meanwhile, from whoever's it is
                self._put(key, copy, prove)
        elif not isinstance(_proved(self._store, key, prove), bytes):
            self._store.overwrite(key, copy)
        if self._mirror is not None:
            self._mirror.mended(key)


def _proved(store: Store, key: str, prove: Prove) -> bytes | str:
    """Read an object and prove it; its bytes, or what is wrong with it."""
    try:
        data = store.get(key)
    except ObjectMissingError:
        return "it is not there either"
    except StoreError as error:
        return str(error)
    try:
        prove(data)
    except BlockyardError as error:
        return f"the copy there is bad, too: {error}"
    return data
