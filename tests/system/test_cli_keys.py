"""`blockyard pool` and `blockyard key` as their users run them: real processes on a directory."""

import os
import stat
from pathlib import Path

import pytest
from command import Command

pytestmark = pytest.mark.system


@pytest.fixture
def blockyard(tmp_path: Path) -> Command:
    command = Command(tmp_path)
    command.run("pool", "create", command.pool)
    return command


def key_files(command: Command) -> list[Path]:
    return sorted((command.home / ".config/blockyard/keys").iterdir())


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_new_pool_keeps_its_key_in_the_users_keyring_and_opens_with_it(blockyard: Command) -> None:
    (key,) = key_files(blockyard)
    facts = blockyard.json("pool", "info", blockyard.pool)
    assert key.name == f"{facts['id']}.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert (facts["role"], facts["slots"], facts["images"], facts["writers"]) == ("owner", 1, 0, 1)
    assert "aes-256-gcm" in blockyard.run("pool", "info", blockyard.pool)


def test_a_pool_is_not_made_twice_and_its_key_survives_the_attempt(blockyard: Command) -> None:
    assert "already" in blockyard.run("pool", "create", blockyard.pool, status=4)
    assert len(key_files(blockyard)) == 1
    blockyard.run("pool", "info", blockyard.pool)


def test_a_pool_that_cannot_be_made_leaves_no_key(tmp_path: Path) -> None:
    command = Command(tmp_path)
    (tmp_path / "pool").write_text("a file where a directory should be")
    assert command.run_raw("pool", "create", command.pool).returncode != 0
    keys = tmp_path / ".config/blockyard/keys"
    assert not keys.exists() or not list(keys.iterdir())


def test_without_a_key_the_pool_says_in_one_sentence_what_is_missing(blockyard: Command) -> None:
    (key,) = key_files(blockyard)
    key.unlink()
    text = blockyard.run("pool", "info", blockyard.pool, status=5)
    assert text.startswith("blockyard: no key for the pool at file://")
    assert text.count("\n") == 1


def test_a_key_that_others_can_read_is_refused_with_the_remedy(blockyard: Command) -> None:
    (key,) = key_files(blockyard)
    key.chmod(0o644)
    assert f"chmod 600 {key}" in blockyard.run("pool", "info", blockyard.pool, status=5)


def test_a_wrong_key_is_refused_at_open(blockyard: Command, tmp_path: Path) -> None:
    other = Command(tmp_path / "other")
    other.home.mkdir()
    other.run("pool", "create", other.pool)
    assert "another pool" in blockyard.run("pool", "info", blockyard.pool, "--key-file", key_files(other)[0], status=5)
    wrong = secret_file(tmp_path / "wrong", "no such phrase")
    blockyard.run("key", "add", blockyard.pool, "--new-passphrase-file", secret_file(tmp_path / "right", "sesame\n"))
    text = blockyard.run("pool", "info", blockyard.pool, "--passphrase-file", wrong, status=5)
    assert "no such phrase" not in text


def test_a_passphrase_slot_opens_the_pool_from_file_descriptor_and_environment(
    blockyard: Command, tmp_path: Path
) -> None:
    phrase = secret_file(tmp_path / "phrase", "sesame\n")
    blockyard.run(
        "key", "add", blockyard.pool, "--new-passphrase-file", phrase, "--role", "writer", "--label", "laptop"
    )
    key_files(blockyard)[0].unlink()
    assert blockyard.json("pool", "info", blockyard.pool, "--passphrase-file", phrase)["role"] == "writer"
    read, write = os.pipe()
    os.write(write, b"sesame")
    os.close(write)
    facts = blockyard.json("pool", "info", blockyard.pool, "--passphrase-fd", str(read), pass_fds=(read,))
    os.close(read)
    assert facts["role"] == "writer"
    blockyard.variables["BLOCKYARD_PASSPHRASE_FILE"] = str(phrase)
    rows = blockyard.json("key", "ls", blockyard.pool)
    assert {(row["kind"], row["role"], row["label"], row["open"]) for row in rows} == {
        ("key file", "owner", "", False),
        ("passphrase", "writer", "laptop", True),
    }


def test_a_pool_made_with_a_passphrase_needs_no_key_file(tmp_path: Path) -> None:
    command = Command(tmp_path)
    phrase = secret_file(tmp_path / "phrase", "sesame")
    command.run("pool", "create", command.pool, "--new-passphrase-file", phrase, "--algorithm", "chacha20-poly1305")
    assert not (tmp_path / ".config/blockyard/keys").exists()
    facts = command.json("pool", "info", command.pool, "--passphrase-file", phrase)
    assert (facts["role"], facts["algorithm"]) == ("owner", "chacha20-poly1305")


def test_a_passphrase_is_not_asked_for_where_nobody_sits(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.run("pool", "create", command.pool, "--new-passphrase-file", secret_file(tmp_path / "phrase", "sesame"))
    assert "passphrase file" in command.run("pool", "info", command.pool, status=5)


def test_a_rotated_key_file_takes_the_place_of_the_old_one(blockyard: Command, tmp_path: Path) -> None:
    (key,) = key_files(blockyard)
    old = tmp_path / "old.key"
    old.write_bytes(key.read_bytes())
    old.chmod(0o600)
    blockyard.run("image", "create", blockyard.image("disk"), "1M")
    blockyard.run("pool", "key", "rotate", blockyard.pool)
    assert key_files(blockyard) == [key]
    assert key.read_bytes() != old.read_bytes()
    assert "removed" in blockyard.run("pool", "info", blockyard.pool, "--key-file", old, status=5)
    assert [row["name"] for row in blockyard.json("image", "ls", blockyard.pool)] == ["disk"]
    blockyard.run("image", "create", blockyard.image("another"), "1M")


def test_a_passphrase_is_changed_without_touching_the_key_file(blockyard: Command, tmp_path: Path) -> None:
    first, second = (secret_file(tmp_path / name, name) for name in ("first", "second"))
    blockyard.run("key", "add", blockyard.pool, "--new-passphrase-file", first)
    blockyard.run("key", "rotate", blockyard.pool, "--passphrase-file", first, "--new-passphrase-file", second)
    blockyard.run("pool", "info", blockyard.pool, "--passphrase-file", first, status=5)
    blockyard.run("pool", "info", blockyard.pool, "--passphrase-file", second)
    blockyard.run("pool", "info", blockyard.pool)


def test_a_removed_slot_opens_no_more_and_the_last_one_stays(blockyard: Command, tmp_path: Path) -> None:
    only = blockyard.json("key", "ls", blockyard.pool)[0]["slot"]
    assert "last key slot" in blockyard.run("key", "rm", blockyard.pool, only, status=2)
    extra = tmp_path / "extra.key"
    slot = blockyard.json("key", "add", blockyard.pool, "--new-key-file", extra)["slot"]
    blockyard.run("pool", "info", blockyard.pool, "--key-file", extra)
    blockyard.run("key", "rm", blockyard.pool, slot)
    blockyard.run("pool", "info", blockyard.pool, "--key-file", extra, status=5)
    assert "no key slot" in blockyard.run("key", "rm", blockyard.pool, slot, status=3)


def test_an_exported_readers_key_reads_and_can_neither_write_nor_manage(blockyard: Command, tmp_path: Path) -> None:
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=b"x" * 10_000)
    reader = tmp_path / "reader.key"
    blockyard.run("key", "export", blockyard.pool, reader, "--reader", "--label", "for bob")
    assert stat.S_IMODE(reader.stat().st_mode) == 0o600
    (key,) = key_files(blockyard)
    key.unlink()
    blockyard.variables["BLOCKYARD_KEY_FILE"] = str(reader)
    assert blockyard.json("pool", "info", blockyard.pool)["role"] == "reader"
    assert blockyard.run_raw("image", "export", blockyard.image("disk"), "-").stdout == b"x" * 10_000
    for refused in (
        ("image", "create", blockyard.image("more"), "1M"),
        ("image", "rm", blockyard.image("disk")),
        ("image", "mv", blockyard.image("disk"), "other"),
        ("image", "resize", blockyard.image("disk"), "1G"),
        ("key", "export", blockyard.pool, str(tmp_path / "more.key"), "--reader"),
        ("key", "rm", blockyard.pool, "0" * 16),
    ):
        assert "key" in blockyard.run(*refused, status=2)
    assert not (tmp_path / "more.key").exists()


def test_configured_pools_are_known_by_name_and_bad_files_are_named(blockyard: Command) -> None:
    config = blockyard.home / ".config/blockyard/config.toml"
    config.write_text(f'[pools.mine]\nurl = "{blockyard.pool}"\n')
    blockyard.run("image", "create", "mine/disk", "1M")
    assert [row["name"] for row in blockyard.json("image", "ls", "mine")] == ["disk"]
    assert "mine" in blockyard.run("pool", "info", "yours", status=3)
    config.write_text('[pools.mine]\nurl = "x://y"\ncolour = "red"\n')
    text = blockyard.run("pool", "info", "mine", status=2)
    assert str(config) in text
    assert "pools.mine.colour" in text
    other = blockyard.home / "other.toml"
    other.write_text(f'[pools.mine]\nurl = "{blockyard.pool}"\n')
    blockyard.run("--config", other, "pool", "info", "mine")


def test_df_counts_what_is_stored_and_tells_the_room_there_is(blockyard: Command) -> None:
    before = blockyard.json("pool", "df", blockyard.pool)
    blockyard.run("image", "import", "-", blockyard.image("disk"), stdin=os.urandom(1 << 20))
    after = blockyard.json("pool", "df", blockyard.pool)
    assert after["stored_bytes"] - before["stored_bytes"] >= 1 << 20
    assert after["objects"] > before["objects"]
    assert after["total_bytes"] >= after["free_bytes"] > 0
    assert "stored" in blockyard.run("pool", "df", blockyard.pool)


def test_neither_output_nor_arguments_nor_store_show_a_secret(blockyard: Command, tmp_path: Path) -> None:
    (key,) = key_files(blockyard)
    secret = key.read_text().partition('secret = "')[2].partition('"')[0]
    blockyard.run("image", "create", blockyard.image("payroll"), "1M")
    shown = blockyard.run("pool", "info", blockyard.pool) + blockyard.run("key", "ls", blockyard.pool)
    shown += blockyard.run("image", "info", blockyard.image("payroll"))
    assert secret not in shown
    for path in (tmp_path / "pool").rglob("*"):
        assert "payroll" not in str(path)
        if path.is_file():
            assert b"payroll" not in path.read_bytes()
            assert secret.encode() not in path.read_bytes()
