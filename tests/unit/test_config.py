"""Where settings come from, and how pools and images are named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import limits
from core.config import (
    Config,
    Settings,
    check_image_name,
    default_config_path,
    load_config,
    resolve_pool,
    settings_from_environment,
    split_image_reference,
)
from core.errors import NotFoundError, UsageError

NOTHING = Settings()


def config_of(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        config_of(tmp_path, text)
    assert str(tmp_path / "config.toml") in str(caught.value), "the error names the file"
    return str(caught.value)


def test_a_pool_of_the_file_has_every_setting_it_names(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [pools.backup]
        url = "s3://bucket/prefix"
        key_file = "/keys/backup.key"
        cache_dir = "/var/cache/blockyard"
        cache_size = "20G"
        durability = "journal"
        journal_dir = "/var/lib/blockyard"
        compression = "lz4"
        ram_cache = 1048576
        """,
    )
    found = resolve_pool("backup", config, NOTHING, NOTHING)
    assert (found.name, found.url) == ("backup", "s3://bucket/prefix")
    assert found.key_file == Path("/keys/backup.key")
    assert found.cache_dir == Path("/var/cache/blockyard")
    assert found.cache_bytes == 20 << 30
    assert (found.durability, found.journal_dir) == ("journal", Path("/var/lib/blockyard"))
    assert (found.compression, found.ram_cache_bytes) == ("lz4", 1 << 20)


def test_arguments_win_over_environment_over_file_over_its_defaults(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [defaults]
        compression = "lz4"
        ram_cache = "1M"
        cache_size = "1G"
        cache_dir = "/defaults"
        [pools.p]
        url = "file:///p"
        ram_cache = "2M"
        cache_size = "2G"
        cache_dir = "/file"
        """,
    )
    environment = settings_from_environment({"BLOCKYARD_CACHE_SIZE": "3G", "BLOCKYARD_CACHE_DIR": "/environment"})
    found = resolve_pool("p", config, environment, Settings(cache_dir=Path("/arguments")))
    assert found.compression == "lz4"
    assert found.ram_cache_bytes == 2 << 20
    assert found.cache_bytes == 3 << 30
    assert found.cache_dir == Path("/arguments")


def test_defaults_and_environment_count_for_a_url_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, '[defaults]\ncompression = "none"\n')
    found = resolve_pool("memory://x", config, settings_from_environment({"BLOCKYARD_RAM_CACHE": "7"}), NOTHING)
    assert (found.url, found.compression, found.ram_cache_bytes) == ("memory://x", "none", 7)


def test_a_pool_without_settings_gets_the_documented_ones(tmp_path: Path) -> None:
    found = resolve_pool("file:///p", Config(tmp_path / "none"), NOTHING, NOTHING)
    assert (found.durability, found.compression, found.cache_dir) == ("pool", "zstd:1", None)
    assert found.ram_cache_bytes == limits.RAM_CACHE_BYTES


def test_a_way_to_unlock_given_above_hides_the_other_ways_below(tmp_path: Path) -> None:
    config = config_of(tmp_path, '[pools.p]\nurl = "file:///p"\nkey_file = "/k"\n')
    found = resolve_pool("p", config, settings_from_environment({"BLOCKYARD_PASSPHRASE_FD": "5"}), NOTHING)
    assert (found.key_file, found.passphrase_fd) == (None, 5)


def test_an_empty_variable_counts_as_absent() -> None:
    assert settings_from_environment({"BLOCKYARD_KEY_FILE": "", "PATH": "/bin"}) == NOTHING


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(UsageError, match="BLOCKYARD_CACHE_SIZE"):
        settings_from_environment({"BLOCKYARD_CACHE_SIZE": "much"})


def test_a_file_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml").pools == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pool = 1", "'pool'"),
        ("[pools.p]\nurl = 'file:///p'\ncolour = 'red'", "pools.p.colour"),
        ("[pools.p]\nurl = 'file:///p'\npassphrase_fd = 3", "pools.p.passphrase_fd"),
        ("[pools.p]\nurl = 'file:///p'\nsecret = 'x'", "pools.p.secret"),
        ("[pools.p]\nurl = 5", "pools.p.url"),
        ("[pools.p]\nurl = '/p'", "pools.p.url"),
        ("[pools.p]\nurl = 'file:///p'\ncache_size = true", "pools.p.cache_size"),
        ("[pools.p]\nurl = 'file:///p'\ncache_size = -1", "pools.p.cache_size"),
        ("[pools.p]\nurl = 'file:///p'\ncache_size = 'big'", "pools.p.cache_size"),
        ("[pools.p]\nurl = 'file:///p'\ndurability = 'maybe'", "pools.p.durability"),
        ("[pools.p]\nurl = 'file:///p'\nkey_file = ''", "pools.p.key_file"),
        ("[pools.p]\ndurability = 'pool'", "pools.p has no url"),
        ("[pools.'a b']\nurl = 'file:///p'", "'a b'"),
        ("[defaults]\nurl = 'file:///p'", "defaults.url"),
        ("defaults = 3", "'defaults'"),
        ("pools = 3", "'pools'"),
        ("pools.p = 3", "'pools.p'"),
        ("[[[", "TOML"),
    ],
)
def test_what_the_file_gets_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    assert named in refusal(tmp_path, text)


def test_a_name_the_file_does_not_have_lists_those_it_has(tmp_path: Path) -> None:
    config = config_of(tmp_path, "[pools.one]\nurl = 'file:///1'\n[pools.two]\nurl = 'file:///2'\n")
    with pytest.raises(NotFoundError, match="one, two"):
        resolve_pool("three", config, NOTHING, NOTHING)


def test_the_environment_can_name_another_file() -> None:
    assert default_config_path({"BLOCKYARD_CONFIG": "/etc/blockyard.toml"}) == Path("/etc/blockyard.toml")
    assert default_config_path({}).name == "config.toml"


@pytest.mark.parametrize(
    ("reference", "pool", "image"),
    [
        ("backup/disk", "backup", "disk"),
        ("file:///srv/pool/disk", "file:///srv/pool", "disk"),
        ("file:///disk", "file:///", "disk"),
        ("s3://bucket/disk", "s3://bucket", "disk"),
        ("s3://bucket/a/b/disk?endpoint=http://h:1/x", "s3://bucket/a/b?endpoint=http://h:1/x", "disk"),
        ("rados://rbd/prefix/disk?conf=/etc/ceph/ceph.conf", "rados://rbd/prefix?conf=/etc/ceph/ceph.conf", "disk"),
        ("memory://name/disk one", "memory://name", "disk one"),
    ],
)
def test_an_image_reference_splits_at_the_last_slash_of_the_path(reference: str, pool: str, image: str) -> None:
    assert split_image_reference(reference) == (pool, image)


@pytest.mark.parametrize(
    "text", ["disk", "/disk", "pool/", "a/b/c", "file://", "s3://bucket", "file:///", "", "?", "/"]
)
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_image_reference(text)


@given(st.text(max_size=60))
def test_any_text_is_an_image_reference_or_a_usage_error(text: str) -> None:
    try:
        pool, image = split_image_reference(text)
    except UsageError:
        return
    check_image_name(image)
    assert pool


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", " x", "x ", "a/b", "a?b", "a#b", "a@b", "a\nb", "a\0b", "\ud800", "x" * 256]
)
def test_names_that_would_confuse_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_image_name(name)


@pytest.mark.parametrize("name", ["disk", "a.b", "a b", "a-b_c", "Größe", "x" * 255, "128"])
def test_ordinary_names_are_taken(name: str) -> None:
    check_image_name(name)
