"""What a stream holds, opened and checked chunk by chunk, and where it comes from. One caller."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from core.crypto.signature import Verifiers, writer_id_of
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError, KeyRefusedError, NotFoundError, UsageError
from core.pool.pool import Pool
from core.pool.slots import Passphrase
from core.stream.format import ChunkKind, End, Head, Preamble, Seal, unpack_data, unpack_end, unpack_holes
from core.stream.in_order import in_order
from core.stream.placing import Plain, place
from core.stream.reader import Chunk, StreamReader
from core.stream.sealing import open_stream
from core.volume.log.description import load_description
from core.volume.log.frame_writes import PlacedFrame
from core.volume.transfer import Readable


@dataclass(frozen=True, repr=False, slots=True)
class Trust:
    """What a stream is opened with, and whose signature counts.

    `writer` is a public key. Without it the writers of the pool count for its own streams, and whoever knew the passphrase for one that
    is sealed under it.
    """

    writer: bytes | None = None
    passphrase: Passphrase | None = None


BY_THE_POOL: Final = Trust()


@dataclass(frozen=True, slots=True)
class Blocks:
    """`length` bytes of blocks, as pieces that go into an image in this order."""

    length: int
    pieces: list[Plain | PlacedFrame]


@dataclass(frozen=True, slots=True)
class Holes:
    """Ranges that became holes: (offset, length), whole blocks."""

    ranges: list[tuple[int, int]]


class Stream:
    """A stream whose head was read. `contents` gives the rest; only when that has ended is the stream known to be whole and signed."""

    def __init__(self, pool: Pool, source: Readable, trust: Trust, what: str) -> None:
        self._pool = pool
        self._trust = trust
        self.reader = StreamReader(source, what)
        self._check_origin(self.reader.preamble, what)
        keys = open_stream(self.reader.preamble, self._source_keys(self.reader.preamble), trust.passphrase, what)
        self.head: Head = self.reader.unlock(keys)
        self.end: End | None = None

    def _source_keys(self, preamble: Preamble) -> VolumeKeys | None:
        if preamble.seal is not Seal.VOLUME or preamble.pool_id != self._pool.id:
            return None
        try:
            return load_description(self._pool, "", preamble.volume_id)[1]
        except (NotFoundError, IntegrityError):
            raise KeyRefusedError(
                f"{self.reader.what} is sealed under the key of image {preamble.volume_id.hex()}, which was removed from this pool"
            ) from None

    def contents(self, *, look_only: bool = False) -> Generator[Blocks | Holes, None, None]:
        """Yield what the stream holds in its order. At its end everything was checked: digests, structure, signature.

        Data is unpacked, and checked thereby, but not with `look_only`: it comes without pieces then.
        """
        what, size_bytes = self.reader.what, self.head.size_bytes
        data = holes = 0

        def opened(chunk: Chunk) -> Blocks | Holes | End | None:
            kind = chunk.header.kind
            if kind is ChunkKind.LEG:
                return None
            payload = chunk.payload(what)
            if kind is ChunkKind.DATA:
                found = unpack_data(payload, size_bytes, what)
                return Blocks(found.length, [] if look_only else place(found, size_bytes, what))
            if kind is ChunkKind.HOLES:
                return Holes(unpack_holes(payload, size_bytes, what))
            return unpack_end(payload, what)

        with closing(in_order(opened, self.reader.chunks())) as items:
            for item in items:
                if isinstance(item, Blocks):
                    data += item.length
                    yield item
                elif isinstance(item, Holes):
                    holes += sum(length for _, length in item.ranges)
                    yield item
                elif item is not None:
                    self.end = item
        if self.end != End(self.reader.position.sequence - 1, data, holes):
            raise IntegrityError(f"{what} does not hold what its end tells of: it was made by another program")
        self._check_signature()

    def check(self, report: Callable[[int], None]) -> bytes:
        """Read all of the stream and keep nothing; gives its digest. `report` is told the bytes passed."""
        for _ in self.contents(look_only=True):
            report(self.reader.position.bytes)
        return self.reader.position.digest

    def _check_origin(self, preamble: Preamble, what: str) -> None:
        """Refuse early what the signature could not vouch for anyway."""
        trusted = self._trust.writer
        if trusted is not None:
            if preamble.writer != trusted:
                raise KeyRefusedError(
                    f"{what} is signed by {preamble.writer.hex()}, not by the writer to be trusted, {trusted.hex()}"
                )
            return
        if preamble.pool_id != self._pool.id and preamble.seal is not Seal.PASSPHRASE:
            raise UsageError(
                f"{what} comes from another pool ({preamble.pool_id.hex()}); if its writer {preamble.writer.hex()} is whom you "
                f"expect it from, say so: --trust {preamble.writer.hex()}"
            )

    def _check_signature(self) -> None:
        reader, preamble = self.reader, self.reader.preamble
        writer_id = writer_id_of(preamble.writer)
        own = preamble.pool_id == self._pool.id and self._trust.writer is None
        verifiers = self._pool.verifiers if own else Verifiers([preamble.writer])
        verifiers.verify(writer_id, reader.signature, reader.signed, reader.what)
        if own and self._pool.verifiers.is_retired(writer_id):
            raise KeyRefusedError(
                f"{reader.what} is signed by a writer of this pool that was retired; if you believe it nevertheless: "
                f"--trust {preamble.writer.hex()}"
            )
