"""Sparse copying in and out of images, without processes."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_world import Made, make_pool

from core.errors import AlreadyExistsError, OutOfSpaceError, UsageError, WorldError
from core.units import BLOCK_BYTES, MIB
from core.volume.images import create_image, image_names, open_image
from core.volume.options import ImageOptions
from core.volume.reading import reading
from core.volume.transfer import (
    CHUNK_BYTES,
    data_ranges,
    data_runs,
    export_file,
    export_stream,
    import_file,
    import_stream,
    written_aside,
)

OPTIONS = ImageOptions()


def no_progress(_done: int, _total: int | None) -> None:
    pass


@pytest.fixture
def made() -> Made:
    return make_pool()


def exported(made: Made, name: str) -> bytes:
    out = io.BytesIO()
    with reading(made.pool, name) as image:
        export_stream(image, out, no_progress)
    return out.getvalue()


@given(
    st.lists(st.sampled_from([b"\0" * BLOCK_BYTES, b"x" * BLOCK_BYTES, b"\0" * 100 + b"y" + b"\0" * 3995])),
    st.binary(max_size=9),
)
def test_data_runs_leave_out_zero_blocks_and_nothing_else(blocks: list[bytes], tail: bytes) -> None:
    data = b"".join(blocks) + tail
    rebuilt = bytearray(len(data))
    covered = 0
    for start, end in data_runs(data):
        assert start < end
        rebuilt[start:end] = data[start:end]
        covered += end - start
    assert rebuilt == data
    assert covered == sum(len(block) for block in [*blocks, tail] if any(block))


def test_holes_of_a_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(10 * MIB)
        file.write(b"x" * 4096)
    with path.open("rb") as file:
        ranges = list(data_ranges(file.fileno(), 64 * MIB))
    assert sum(length for _, length in ranges) < MIB
    assert ranges[0][0] <= 10 * MIB < sum(ranges[0])


def test_data_ranges_cover_all_data_of_a_dense_file_and_none_of_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as file:
        assert list(data_ranges(file.fileno(), 10_000)) == [(0, 10_000)]
    with path.open("wb") as file:
        file.truncate(5 * MIB)
    with path.open("rb") as file:
        assert list(data_ranges(file.fileno(), 5 * MIB)) == []


def test_a_stream_whose_ranges_nobody_knows_is_all_data() -> None:
    read, write = os.pipe()
    try:
        assert list(data_ranges(read, 5)) == [(0, 5)]
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("size", [1, 4095, 4096, 100_000, CHUNK_BYTES, 3 * CHUNK_BYTES + 513])
def test_a_file_of_any_size_comes_back_byte_for_byte(made: Made, tmp_path: Path, size: int) -> None:
    data = bytearray(os.urandom(size))
    data[size // 3 : size // 2] = bytes(size // 2 - size // 3)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    assert import_file(made.pool, "disk", source, OPTIONS, no_progress) == size
    with reading(made.pool, "disk") as image:
        export_file(image, target, no_progress)
    assert target.read_bytes() == data
    assert exported(made, "disk") == data


def test_zeros_and_holes_are_not_stored_and_come_back_as_holes(made: Made, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    with source.open("wb") as file:
        file.write(bytes(2 * MIB) + b"x" * MIB)
        file.truncate(64 * MIB)
    import_file(made.pool, "disk", source, OPTIONS, no_progress)
    with reading(made.pool, "disk") as image:
        assert image.usage().mapped_bytes == MIB
        export_file(image, target, no_progress)
    assert target.stat().st_size == 64 * MIB
    assert target.stat().st_blocks * 512 == MIB


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step, self.at = data, step, 0

    def read(self, size: int = -1) -> bytes:
        part = self.data[self.at : self.at + min(size, self.step)]
        self.at += len(part)
        return part


@pytest.mark.parametrize("size", [1, 5000, 2 * CHUNK_BYTES + 7])
def test_a_stream_of_unknown_length_becomes_an_image_of_its_length(made: Made, size: int) -> None:
    data = os.urandom(size)
    assert import_stream(made.pool, "disk", Trickle(data, 70_000), OPTIONS, no_progress) == size
    assert exported(made, "disk") == data


def test_a_stream_longer_than_the_first_guess_grows_its_image(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.volume.transfer.GIB", MIB)
    data = os.urandom(3 * CHUNK_BYTES + 5)
    import_stream(made.pool, "disk", io.BytesIO(data), OPTIONS, no_progress)
    assert exported(made, "disk") == data


def test_an_empty_source_makes_no_image(made: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty"):
        import_file(made.pool, "disk", tmp_path / "empty", OPTIONS, no_progress)
    with pytest.raises(UsageError, match="empty"):
        import_stream(made.pool, "disk", io.BytesIO(), OPTIONS, no_progress)
    assert [info.key for info in made.store.list("")] == [
        info.key for info in made.store.list("") if info.key.startswith(("pool/", "slot/"))
    ]


def test_an_import_that_fails_leaves_neither_name_nor_bytes(made: Made) -> None:
    before = [info.key for info in made.store.list("")]

    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            if image_names(made.pool) == ["disk"]:
                pytest.fail("half an image stood under its name")
            raise WorldError("the source went away")

    with pytest.raises(WorldError, match="went away"):
        import_stream(made.pool, "disk", Broken(), OPTIONS, no_progress)
    assert [info.key for info in made.store.list("")] == before


def test_an_import_does_not_touch_an_image_of_that_name(made: Made, tmp_path: Path) -> None:
    create_image(made.pool, "disk", MIB)
    (tmp_path / "in").write_bytes(b"x")
    with pytest.raises(AlreadyExistsError):
        import_file(made.pool, "disk", tmp_path / "in", OPTIONS, no_progress)
    assert image_names(made.pool) == ["disk"]


def test_a_directory_or_a_missing_file_is_not_imported(made: Made, tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError):
            import_file(made.pool, "disk", source, OPTIONS, no_progress)
    assert image_names(made.pool) == []


def test_progress_ends_at_the_size(made: Made, tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(5 * MIB)
    seen: list[tuple[int, int | None]] = []
    import_file(made.pool, "disk", tmp_path / "in", OPTIONS, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5 * MIB, 5 * MIB)
    seen.clear()
    with reading(made.pool, "disk") as image:
        export_file(image, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5 * MIB, 5 * MIB)
    assert seen == sorted(seen)


def test_an_export_is_of_what_was_durable_at_its_start(made: Made, tmp_path: Path) -> None:
    create_image(made.pool, "disk", MIB)
    writer = open_image(made.pool, "disk", writable=True, options=OPTIONS)
    writer.write(0, b"a" * MIB, fua=True)
    with reading(made.pool, "disk") as image:
        writer.write(0, b"b" * MIB, fua=True)
        export_file(image, tmp_path / "out", no_progress)
    writer.close()
    assert (tmp_path / "out").read_bytes() == b"a" * MIB


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(AlreadyExistsError), written_aside(target, overwrite=False):
        pytest.fail("nothing is begun")
    with written_aside(target, overwrite=True) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), RuntimeError()])
def test_an_export_that_ends_badly_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), written_aside(tmp_path / "out", overwrite=False):
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpaceError, match="No space"), written_aside(tmp_path / "out", overwrite=False):
        raise OSError(28, "No space left on device")


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no regular file"), written_aside(tmp_path, overwrite=True):
        pytest.fail("nothing is begun")
