"""One filesystem under scrub: its objects by themselves. Its maps live at its metadata server, which holds them against the segments.

Which files a bad frame touches is told from the segment's own records, by inode; whether a later segment has newer blocks of them is not
known here.
"""

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.scrub.objects import blocks_of_frames, prove_log_object, read_log_object
from core.scrub.report import DamagedRange
from core.scrub.run import Run
from core.units import BLOCK_BYTES
from core.volume.names import VolumeNames

_FAMILY = "file segment"


class FilesystemWalk:
    """The objects of one filesystem."""

    def __init__(self, run: Run, name: str, names: VolumeNames, keys: VolumeKeys) -> None:
        self._run = run
        self._name = name
        self._names = names
        self._keys = keys

    def objects(self) -> None:
        """Prove every object of the filesystem by itself."""
        run, names = self._run, self._names
        keys = (info.key for info in run.pool.store.list(names.log))
        for _ in run.each(keys, self._look_at_segment):
            pass
        apart = (names.log, f"{names.prefix}/filesystem")
        run.look_at_all(names.prefix + "/", self._keys, lambda key: key.startswith(apart))

    def _look_at_segment(self, key: str) -> None:
        try:
            sequence = self._names.sequence_of(key)
        except IntegrityError as error:
            self._run.report.stray(key, str(error))
            return

        def proves(data: bytes) -> None:
            prove_log_object(self._keys, key, sequence, data)

        try:
            data = self._run.read(key)
            if data is None:
                return
            facts, table = read_log_object(self._keys, key, sequence, data)
        except IntegrityError as error:
            self._run.mender.damaged(key, _FAMILY, str(error), proves)
            return
        if facts.problem and not self._run.mender.damaged(key, _FAMILY, facts.problem, proves):
            for piece in blocks_of_frames(table, facts.bad, key):
                where = f"{self._name}, inode {piece.inode}"
                span = DamagedRange(where, piece.block * BLOCK_BYTES, piece.length * BLOCK_BYTES, key)
                self._run.report.lose(span)
