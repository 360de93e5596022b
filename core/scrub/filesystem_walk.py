"""One filesystem under scrub: its objects by themselves, and what its snapshots need. Its maps live at its metadata server, which holds
them against the segments.

Which files a bad frame touches is told from the segment's own records, by inode; whether a later segment has newer blocks of them is not
known here.
"""

from contextlib import suppress

from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.filesystem.description import FilesystemInfo
from core.filesystem.filesystems import Filesystem
from core.filesystem.sealed import Part, piece_key
from core.filesystem.snapshots import FilesystemSnapshots
from core.scrub.families import family_of
from core.scrub.objects import blocks_of_frames, prove_log_object, read_log_object
from core.scrub.report import DamagedRange
from core.scrub.run import Run
from core.units import BLOCK_BYTES
from core.volume.log.names import VolumeNames

_FAMILY = "file segment"


class FilesystemWalk:
    """The objects of one filesystem."""

    def __init__(self, run: Run, info: FilesystemInfo, keys: VolumeKeys) -> None:
        self._run = run
        self._name = info.name
        self._names = VolumeNames(info.prefix)
        self._keys = keys
        self._filesystem = Filesystem(info, keys, self._names, run.pool.store, run.pool.world)

    def objects(self) -> None:
        """Prove every object of the filesystem by itself."""
        run, names = self._run, self._names
        keys = (info.key for info in run.pool.store.list(names.log))
        for _ in run.each(keys, self._look_at_segment):
            pass
        apart = (names.log, f"{names.prefix}/filesystem")
        run.look_at_all(names.prefix + "/", self._keys, lambda key: key.startswith(apart))
        self._look_at_snapshots()

    def _look_at_snapshots(self) -> None:
        """See that what snapshots need is there: the pieces of their metadata, and the segments that they pin."""
        snapshots = FilesystemSnapshots(self._filesystem)
        with suppress(IntegrityError):  # a record that is bad was reported
            for each in snapshots.everything():
                for part, pieces in ((Part.PINS, each.pins.pieces), (Part.DATABASE, each.database.pieces)):
                    for number in range(pieces):
                        self._require(piece_key(self._names, part, each.id, number), each.name, snapshots)
                with suppress(IntegrityError):  # a piece that is bad was reported, too
                    for sequence in snapshots.load_pins(each.id).tolist():
                        self._require(self._names.segment(sequence), each.name, snapshots)

    def _require(self, key: str, name: str, snapshots: FilesystemSnapshots) -> None:
        store = self._run.pool.store
        if store.head(key) is None and snapshots.find(name) is not None:
            family = family_of(self._run.families, key)
            assert family is not None, "pieces and segments are in the table"
            problem = f"{key} is missing, and the snapshot {self._name}@{name} needs it"
            proves = self._run.prover(family, key, self._keys)
            self._run.mender.missing(key, family.name, problem, proves)

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
