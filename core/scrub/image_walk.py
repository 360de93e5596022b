"""One image under scrub: its checkpoints, its log, and the records below its prefix. Its block maps are walked after that (map_walk).

Owns the roots of the image's checkpoints. One thread drives it; objects are read by several. As in its log (log_walk), nothing is called
missing that may have gone for good reason meanwhile.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.format.checkpoint import PagePlace, Root
from core.scrub.families import family_of
from core.scrub.log_walk import LogWalk
from core.scrub.objects import prove_pack, prove_root
from core.scrub.run import Run
from core.volume.log.description import ImageInfo
from core.volume.log.names import VolumeNames
from core.volume.log.owner_lock import OwnerLock, is_alive, process_start

_T = TypeVar("_T")
_CHECKPOINT, _PAGES = "checkpoint", "map pages"


class ImageWalk:
    """The objects of one image. `objects` first; whoever walks its maps then asks `log`."""

    def __init__(self, run: Run, info: ImageInfo, keys: VolumeKeys) -> None:
        self.run = run
        self.info = info
        self.keys = keys
        self.names = VolumeNames(info.prefix)
        self.base = info.base.ancestors[-1][1] if info.base is not None else 0
        self.roots: dict[int, Root] = {}
        self._bad_roots: set[int] = set()
        self.log = LogWalk(run, self.names, keys, self.base, self.roots, self._is_written)

    def objects(self) -> None:
        """Prove every object of the image by itself, then the log as a chain."""
        names = self.names
        self._look_at_roots()
        self.log.objects()
        self.log.chain(all_roots_read=not self._bad_roots)
        self._look_at_packs()  # when it is known which roots are of this very log
        apart = (names.log, names.checkpoints, f"{names.prefix}/image")
        self.run.look_at_all(names.prefix + "/", self.keys, lambda key: key.startswith(apart))

    # Checkpoints.

    def _look_at_roots(self) -> None:
        listed = self._listed("root")
        for sequence in sorted(listed):
            self._look_at_root(sequence)
        for sequence in self._lost_roots(listed):
            key = self.names.root(sequence)
            if not self.run.mender.stands_in_mirror_alone(key):
                self._look_at_root(sequence)  # it came meanwhile, or went
                continue
            found = self._missing(key, _CHECKPOINT, f"{key} is missing, and the mirror has it", self._root_parser(key))
            if found is not None:
                self.roots[sequence] = found

    def _listed(self, part: str) -> set[int]:
        """Give the sequences of checkpoints that have a root, or pages."""
        keys = [info.key for info in self.run.pool.store.list(self.names.checkpoints)]
        form = re.compile(rf"[0-9a-f]{{16}}/{part}")
        found = {key for key in keys if form.fullmatch(key.removeprefix(self.names.checkpoints))}
        if part == "root":
            for key in keys:
                if family_of(self.run.families, key) is None:
                    self.run.report.stray(key, "no part of a checkpoint")
        return {self.names.sequence_of(key) for key in found}

    def _lost_roots(self, listed: set[int]) -> list[int]:
        """Name the roots that mirrors have and the store lost: two are kept always, so the two newest of all."""
        there: set[int] = set()
        for source in self.run.mender.sources:
            if source.mirror:
                keys = (info.key for info in source.store.list(self.names.checkpoints))
                there |= {self.names.sequence_of(key) for key in keys if key.endswith("/root")}
        return [each for each in sorted(there | listed)[-2:] if each not in listed]

    def _look_at_root(self, sequence: int) -> None:
        key = self.names.root(sequence)
        found = self._proved(key, _CHECKPOINT, self._root_parser(key))
        if found is not None:
            self.roots[sequence] = found
        elif self.run.pool.store.head(key) is not None:
            self._bad_roots.add(sequence)

    def _root_parser(self, key: str) -> Callable[[bytes], Root]:
        return lambda data: prove_root(self.keys, key, data)

    def _look_at_packs(self) -> None:
        listed = self._listed("pages")
        named = {int(pack) for root in self.roots.values() for pack in set(root.pages.packs.tolist())}
        for pack in sorted(each for each in named | listed if each > self.base):
            self._look_at_pack(pack, is_named=pack in named)

    def look_at_pack(self, pack: int) -> None:
        """Prove one pack by the roots that name its pages, without having looked at anything before."""
        self._look_at_roots()
        self._look_at_pack(pack, is_named=any(pack in root.pages.packs for root in self.roots.values()))

    def _look_at_pack(self, pack: int, *, is_named: bool) -> None:
        key = self.names.pages(pack)
        prove = self._pack_prover(pack, key)
        if self._proved(key, _PAGES, prove) is None and is_named and self.run.pool.store.head(key) is None:
            if any(pack in root.pages.packs for root in self._standing_roots()):
                self._missing(key, _PAGES, f"{key} is missing, and pages of the block map are in it", prove)
        elif not is_named:
            self._tell_of_idle_pack(pack, key)

    def _standing_roots(self) -> Iterator[Root]:
        """Give the roots that still stand: a collector may have removed one since it was read, and its packs with it."""
        for sequence, root in self.roots.items():
            if self.run.pool.store.head(self.names.root(sequence)) is not None:
                yield root

    def _pack_prover(self, pack: int, key: str) -> Callable[[bytes], bool]:
        places: dict[int, tuple[int, PagePlace]] = {}
        for root in self.roots.values():
            for page in root.pages.numbers[root.pages.packs == pack].tolist():
                place = root.pages.place(page)
                places[place.offset] = (page, place)
        ordered = [places[offset] for offset in sorted(places)]
        whole = pack in self.roots

        def proves(data: bytes) -> bool:
            prove_pack(self.keys, key, pack, data, ordered, whole=whole)
            return True

        return proves

    def _tell_of_idle_pack(self, pack: int, key: str) -> None:
        newest = max([*self.roots, *self._bad_roots], default=0)
        if pack > newest and not self._is_written() and self.run.pool.store.head(self.names.root(pack)) is None:
            text = (
                "pages of a checkpoint without a root: it was interrupted, or its root was lost; the log has the same"
            )
            self.run.report.stray(key, text)

    # Helpers.

    def _is_written(self) -> bool:
        """Say whether a living writer has the image: what looks unfinished is under way then."""
        try:
            pool = self.run.pool
            owner = OwnerLock(pool.store, self.names, self.keys, self.info.name, pool.world).read()
        except IntegrityError:
            return False
        return owner is not None and is_alive(owner, self.run.pool.world, process_start(owner.pid))

    def _proved(self, key: str, family: str, parse: Callable[[bytes], _T]) -> _T | None:
        """Read, prove and parse an object; a bad one is mended. None if it went, or is bad still."""
        found: list[_T] = []

        def proves(data: bytes) -> None:
            found.append(parse(data))

        try:
            data = self.run.read(key)
            if data is None:
                return None
            proves(data)
        except IntegrityError as error:
            if not self.run.mender.damaged(key, family, str(error), proves):
                return None
        return found[-1]

    def _missing(self, key: str, family: str, problem: str, parse: Callable[[bytes], _T]) -> _T | None:
        found: list[_T] = []

        def proves(data: bytes) -> None:
            found.append(parse(data))

        return found[-1] if self.run.mender.missing(key, family, problem, proves) else None
