"""The runtime directory: who lives, who is stale, what is written down."""

import os
import stat

import pytest

from core.errors import AlreadyExistsError, NotFoundError, UsageError
from gateway_nbd.kernel.runtime import MappingFolder, MappingState, find_mapping, mappings, runtime_directory


def state(index: int | None = 4, image: str = "pool/disk") -> MappingState:
    return MappingState(
        image=image,
        index=index,
        serving=True,
        supervisor_pid=1,
        gateway_pid=2,
        started="2026-01-01T00:00:00+00:00",
        readonly=False,
        connections=4,
        size_bytes=1 << 20,
    )


def test_a_mapping_is_found_by_device_by_short_name_and_by_image(tmp_path):
    folder = MappingFolder(tmp_path, "pool/disk").acquire()
    folder.write(state())
    for name in ("/dev/nbd4", "nbd4", "pool/disk"):
        found, facts, alive = find_mapping(tmp_path, name)
        assert (found.path, facts, alive) == (folder.path, state(), True)
    folder.remove()


def test_what_is_not_mapped_is_told_so(tmp_path):
    with pytest.raises(NotFoundError, match="blockyard mapped"):
        find_mapping(tmp_path, "/dev/nbd0")


def test_a_mapping_whose_supervisor_is_gone_is_stale_and_can_be_taken(tmp_path):
    folder = MappingFolder(tmp_path, "pool/disk").acquire()
    folder.write(state())
    folder.release()
    ((_, _, alive),) = mappings(tmp_path)
    assert not alive
    MappingFolder(tmp_path, "pool/disk").acquire().remove()
    assert list(mappings(tmp_path)) == []


def test_an_image_is_mapped_once_and_the_refusal_names_the_device(tmp_path):
    folder = MappingFolder(tmp_path, "pool/disk").acquire()
    folder.write(state())
    with pytest.raises(AlreadyExistsError, match="/dev/nbd4"):
        MappingFolder(tmp_path, "pool/disk").acquire()
    folder.remove()


def test_looking_whether_a_supervisor_lives_never_takes_its_lock(tmp_path):
    looker = MappingFolder(tmp_path, "pool/disk")
    holder = MappingFolder(tmp_path, "pool/disk").acquire()
    holder.release()
    assert not looker.is_alive()
    holder.acquire()
    assert looker.is_alive()
    holder.remove()


def test_a_half_written_state_is_no_mapping(tmp_path):
    folder = MappingFolder(tmp_path, "pool/disk").acquire()
    (folder.path / "state.json").write_text('{"image": ')
    assert folder.state() is None
    assert list(mappings(tmp_path)) == []
    folder.remove()


def test_the_runtime_directory_is_private_and_below_the_users_own(tmp_path):
    path = runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}, user_id=os.getuid() or 1) if os.getuid() else None
    path = path or runtime_directory({"BLOCKYARD_RUNTIME_DIR": str(tmp_path / "run")}, user_id=0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_runtime_directory_that_others_can_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="0700"):
        runtime_directory({"BLOCKYARD_RUNTIME_DIR": str(tmp_path)}, user_id=os.getuid())


def test_without_any_place_for_it_the_user_is_told_what_to_set():
    with pytest.raises(UsageError, match="XDG_RUNTIME_DIR"):
        runtime_directory({}, user_id=1000)
