"""Key files on disk and how a front door finds what opens a pool."""

import os
import stat
from pathlib import Path

import pytest
from pool_world import CHEAP, driven_world

from core.config import Config, PoolSettings, Settings, resolve_pool
from core.errors import AlreadyExistsError, KeyRefusedError, NotFoundError, UsageError
from core.pool.connect import connect_pool, find_opener, read_passphrase_file
from core.pool.key_files import KeyFile, default_key_path, load_key_file, save_key_file
from core.pool.keyring import add_slot
from core.pool.keys import Role
from core.pool.pool import create_pool, open_pool
from core.pool.slots import Passphrase
from core.store.factory import open_store
from tests.helpers import hooked

KEY = KeyFile(b"p" * 16, "0011223344556677", Role.WRITER, b"s" * 32)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def settings_of(tmp_path: Path, **given: object) -> PoolSettings:
    url = f"file://{tmp_path}/pool"
    return resolve_pool(url, Config(tmp_path / "none"), Settings(), Settings(**given))  # type: ignore[arg-type]


def make_pool(tmp_path: Path) -> KeyFile:
    saved: list[KeyFile] = []
    pool = create_pool(open_store(f"file://{tmp_path}/pool"), saved.append, driven_world())
    add_slot(pool, Passphrase(b"sesame", CHEAP), Role.READER)
    pool.close()
    return saved[0]


def test_a_key_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a.key"
    save_key_file(path, KEY)
    assert load_key_file(path) == KEY
    assert os.listdir(path.parent) == ["a.key"]


def test_a_key_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a.key"
    before = os.umask(0)
    try:
        save_key_file(path, KEY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_that_others_may_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    save_key_file(path, KEY)
    path.chmod(mode)
    with pytest.raises(KeyRefusedError, match="chmod 600"):
        load_key_file(path)


def test_a_key_file_is_never_replaced_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    save_key_file(path, KEY)
    with pytest.raises(AlreadyExistsError):
        save_key_file(path, KeyFile(b"q" * 16, KEY.slot_id, KEY.role, KEY.secret))
    assert load_key_file(path) == KEY
    assert os.listdir(tmp_path) == ["a.key"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 1",
        "not toml at all [",
        KEY.to_text().replace("version = 1", "version = 2"),
        KEY.to_text().replace("0011223344556677", "00112233"),
        KEY.to_text().replace("0011223344556677", "001122334455667z"),
        KEY.to_text().replace(b"p".hex() * 16, "70"),
        KEY.to_text().replace("writer", "emperor"),
        KEY.to_text().replace("c3Nz", "!!!!", 1),
    ],
)
def test_what_is_no_key_file_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyRefusedError, match="is not a Blockyard key file") as caught:
        load_key_file(path)
    assert "c3Nz" not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.key"):
        load_key_file(tmp_path / "none.key")


def test_the_keyring_directory_is_searched_by_the_pools_id(home: Path) -> None:
    key = make_pool(home)
    with pytest.raises(KeyRefusedError, match=str(default_key_path(key.pool_id).parent)):
        connect_pool(settings_of(home), driven_world())
    save_key_file(default_key_path(key.pool_id), key)
    assert connect_pool(settings_of(home), driven_world()).role is Role.OWNER


def slots_listed(home: Path) -> bool:
    """Open the pool by whatever is in the keyring; say whether its slots had to be listed for it."""
    listed: list[str] = []
    store = hooked(
        open_store(f"file://{home}/pool"), lambda when, method, key: listed.append(key) if method == "list" else None
    )
    opener = find_opener(store, settings_of(home), None)
    assert isinstance(opener, KeyFile)
    assert open_pool(store, opener, driven_world()).role is Role.OWNER
    return "slot/" in listed


def test_a_keyring_of_few_keys_opens_a_pool_without_a_list_of_its_slots_and_one_of_many_still_does(home: Path) -> None:
    mine = make_pool(home)
    save_key_file(default_key_path(mine.pool_id), mine)
    others = [KeyFile(bytes([number]) * 16, "0011223344556677", Role.WRITER, b"s" * 32) for number in range(4)]
    for other in others[:2]:
        save_key_file(default_key_path(other.pool_id), other)
    assert not slots_listed(home)
    for other in others[2:]:
        save_key_file(default_key_path(other.pool_id), other)
    assert slots_listed(home)


def test_a_damaged_key_of_another_pool_does_not_stand_in_the_way(home: Path) -> None:
    mine = make_pool(home)
    save_key_file(default_key_path(mine.pool_id), mine)
    other = default_key_path(b"\0" * 16)
    other.write_text("no key at all")
    other.chmod(0o600)
    assert connect_pool(settings_of(home), driven_world()).role is Role.OWNER


def test_a_passphrase_is_asked_for_only_where_no_key_is_found(home: Path) -> None:
    make_pool(home)
    asked = []

    def prompt(text: str) -> str:
        asked.append(text)
        return "sesame"

    assert connect_pool(settings_of(home), driven_world(), prompt).role is Role.READER
    assert len(asked) == 1
    assert "sesame" not in asked[0]


def test_a_passphrase_comes_from_a_file_or_a_descriptor_without_its_newline(home: Path) -> None:
    make_pool(home)
    path = home / "passphrase"
    path.write_text("sesame\n")
    path.chmod(0o600)
    assert connect_pool(settings_of(home, passphrase_file=path), driven_world()).role is Role.READER
    read, write = os.pipe()
    os.write(write, b"sesame\n")
    os.close(write)
    assert connect_pool(settings_of(home, passphrase_fd=read), driven_world()).role is Role.READER
    with pytest.raises(OSError):
        os.fstat(read)


def test_a_passphrase_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("sesame")
    path.chmod(0o644)
    with pytest.raises(KeyRefusedError, match="chmod 600"):
        read_passphrase_file(path)


def test_two_ways_to_unlock_at_once_are_refused(home: Path) -> None:
    make_pool(home)
    with pytest.raises(UsageError, match="not several"):
        connect_pool(settings_of(home, passphrase_fd=0, key_file=home / "k"), driven_world())


def test_a_descriptor_that_is_not_open_is_a_plain_error(home: Path) -> None:
    make_pool(home)
    with pytest.raises(UsageError, match="descriptor 987"):
        connect_pool(settings_of(home, passphrase_fd=987), driven_world())
