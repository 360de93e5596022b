"""Golden bytes of "Streams" in docs/format.md, and bad values that are refused before anything comes of them."""

import io

import numpy as np
import pytest

from core.crypto.aead import Algorithm
from core.crypto.signature import Signer, Verifiers, writer_id_of
from core.crypto.volume import VolumeKeys
from core.errors import IntegrityError
from core.stream.format import (
    ChunkKind,
    End,
    Head,
    Part,
    SnapshotName,
    pack_data,
    pack_end,
    pack_head,
    pack_holes,
    unpack_chunk_header,
    unpack_data,
    unpack_end,
    unpack_holes,
    unpack_preamble,
)
from core.stream.reader import StreamReader
from core.stream.sealing import Leg, Sealing, new_stream, open_stream
from core.stream.writer import StreamWriter, seal_chunk
from tests.helpers import real_world

SIGNER = Signer(bytes(range(32)))
KEYS = VolumeKeys(
    bytes([1]) * 16, bytes([2]) * 16, 3, bytes([4]) * 32, Algorithm.AES_256_GCM, SIGNER, Verifiers([SIGNER.public_key])
)
BLOCK = 4096
HEAD = Head(
    "disk", SnapshotName("a", bytes([5]) * 16, 7), SnapshotName("b", bytes([6]) * 16, 9), 10 * BLOCK, 1000, 2000, 1
)
GOLDEN = """
424c4b59444946460100010103000000010101010101010101010101010101010202020202020202020202020202020203a107bff3ce10be1d70
dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8080808080808080808080808080808080808080808080808080808080808080800000000
0000000000000000000000006df162c54e7689219c66b5f78db9d915ca74abde85b4f6df11623f3e21d050b301000000a7000000000000000000
0000c0a9240ea464498c9557a82219e7c93d61bbab217e2ee4cc847dc2dcb63cc4ba9694a5358ab8898018b770133be2c961581652b784bd9037
4adc3cb0c7292c0f6b2f7e74b0119e33257d173ed021ccba469aedc8768b779a18a5040acd07516465cba88ab599ae8aeb9d129f54775bffa346
3d71715d2f16e3f3a91120f2d710412db9c35882c1c8fc45cf58b1717ba0fd8e4cb52c249e26bea8425cedcd6a241771b34e0c74bb54b04d3e62
9e97bfd988feba2f406df4030000002000000001000000000000009873807bc81e32c3d434d14b24214060467027df18cfd3e90420ce16d8d01e
0263c572f0a59f5e13b820c021e24e0b2b0400000020000000020000000000000009090909090909090909090909090909090909090909090909
09090909090909cfede02a4c8a1adc88d7847787d932a9030000002000000003000000000000007583e62bbb65025b31215bb5e510ee73e122f7
72029d146447bda7f0caac2a8c496924ef6bf39b810f6896098fd8e31705000000330000000400000000000000b92b137fd9dcc54be1507055ca
1a916501839613face7d81a8e0db4c76298ac02d9373bca5a7f4a5a3da34e38faefcd9c388ae8eca0fd2be3a37e43b2d607ba965cc5e3aa8930a
65f4d291940d6bad3d54d379def3a8431baac234665e78fb2abcd9cc3871ae71cd7c8ca87aef40afbc109305f5ae2042a93f90b28c6771802458
9906
"""


def numbers(*values):
    return np.array(values, np.uint64)


def written():
    """Make a stream of every kind of chunk, sealed under the volume's key, in two legs."""
    world = real_world(random_bytes=lambda length: bytes([8]) * length)
    target = io.BytesIO()
    keys = new_stream(Sealing(), KEYS, SIGNER.public_key, world)
    writer, leg = StreamWriter(target, keys), keys.leg(keys.preamble.salt)
    holes = pack_holes(numbers(5 * BLOCK), numbers(2 * BLOCK))
    writer.put(seal_chunk(leg, ChunkKind.HEAD, 0, pack_head(HEAD)))
    writer.put(seal_chunk(leg, ChunkKind.HOLES, 1, holes))
    writer.put(seal_chunk(Leg(None, b""), ChunkKind.LEG, 2, bytes([9]) * 32))
    leg = keys.leg(bytes([9]) * 32)
    writer.put(seal_chunk(leg, ChunkKind.HOLES, 3, holes))
    writer.put(seal_chunk(leg, ChunkKind.END, 4, pack_end(End(4, 0, 4 * BLOCK))))
    writer.sign(SIGNER)
    return target.getvalue()


def test_a_stream_is_written_as_it_was_when_the_format_was_made():
    assert written() == bytes.fromhex(GOLDEN)


def test_a_stream_that_was_written_then_is_read():
    reader = StreamReader(io.BytesIO(bytes.fromhex(GOLDEN)), "golden")
    assert reader.unlock(open_stream(reader.preamble, KEYS, None, "golden")) == HEAD
    chunks = list(reader.chunks())
    assert [each.header.kind for each in chunks] == [ChunkKind.HOLES, ChunkKind.LEG, ChunkKind.HOLES, ChunkKind.END]
    assert unpack_holes(chunks[2].payload("golden"), HEAD.size_bytes, "golden") == [(5 * BLOCK, 2 * BLOCK)]
    assert unpack_end(chunks[3].payload("golden"), "golden") == End(4, 0, 4 * BLOCK)
    KEYS.verifiers.verify(writer_id_of(SIGNER.public_key), reader.signature, reader.signed, "golden")


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ((1,), (BLOCK,)),
        ((0,), (BLOCK - 1,)),
        ((0,), (0,)),
        ((10 * BLOCK,), (BLOCK,)),
        ((9 * BLOCK,), (2 * BLOCK,)),
        (((1 << 64) - BLOCK,), (2 * BLOCK,)),
        ((0,), ((1 << 64) - BLOCK,)),
    ],
)
def test_ranges_that_are_not_blocks_of_the_image_are_refused(offsets, lengths):
    with pytest.raises(IntegrityError, match="not blocks of its image"):
        unpack_holes(pack_holes(numbers(*offsets), numbers(*lengths)), 10 * BLOCK - 1, "s")
    if lengths[0] < 1 << 32:
        with pytest.raises(IntegrityError, match="not blocks of its image"):
            unpack_data(pack_data(numbers(*offsets), numbers(*lengths), [Part(0, BLOCK, b"")]), 10 * BLOCK - 1, "s")


def test_data_of_another_length_than_its_extents_is_refused():
    places = numbers(0, 5 * BLOCK), numbers(BLOCK, 2 * BLOCK)
    parts = [Part(0, 2 * BLOCK, b"x" * 2 * BLOCK), Part(0, BLOCK, b"y" * BLOCK)]
    good = pack_data(*places, parts)
    found = unpack_data(good, 10 * BLOCK, "s")
    assert found.extents == ((0, BLOCK), (5 * BLOCK, 2 * BLOCK))
    assert found.unpack("s") == b"x" * 2 * BLOCK + b"y" * BLOCK
    for bad in (good[:-1], good + b"\0", good[:10], b"", b"\0" * 8, b"\xff" * 40):
        with pytest.raises(IntegrityError):
            unpack_data(bad, 10 * BLOCK, "s")
    with pytest.raises(IntegrityError, match="does not fit together"):
        unpack_data(pack_data(*places, parts[:1]), 10 * BLOCK, "s")
    with pytest.raises(IntegrityError, match="does not fit together"):
        unpack_data(pack_data(numbers(0), numbers(1 << 30), [Part(0, 1 << 30, b"")]), 1 << 31, "s")
    with pytest.raises(IntegrityError, match="codec 9"):
        unpack_data(pack_data(*places, [Part(9, 3 * BLOCK, b"")]), 10 * BLOCK, "s").unpack("s")
    with pytest.raises(IntegrityError, match="holds 1 bytes"):
        unpack_data(pack_data(*places, [Part(0, 3 * BLOCK, b"z")]), 10 * BLOCK, "s").unpack("s")


def test_lengths_out_of_bounds_are_refused_before_anything_is_read_for_them():
    header = seal_chunk(Leg(None, b""), ChunkKind.DATA, 3, b"").header
    assert unpack_chunk_header(header, 3, "s").kind is ChunkKind.DATA
    for bad in (header[:4] + b"\xff\xff\xff\xff" + header[8:], b"\x09" + header[1:], header[:2] + b"\1\0" + header[4:]):
        with pytest.raises(IntegrityError):
            unpack_chunk_header(bad, 3, "s")
    with pytest.raises(IntegrityError):
        unpack_chunk_header(header, 4, "s")
    preamble = bytearray(written()[:160])
    preamble[112:116] = b"\xff\xff\xff\xff"
    with pytest.raises(IntegrityError, match="key derivation"):
        unpack_preamble(bytes(preamble), "s")
