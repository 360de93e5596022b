"""What the plugin's parameters mean and what is said of wrong ones."""

from pathlib import Path

import pytest

from core.errors import UsageError
from core.sockets import PageAddress
from gateway_nbd import parameters

HERE = Path("/somewhere")


def parse(**raw: str) -> parameters.Parameters:
    return parameters.parse({"pool": "backup"} | raw, HERE)


def test_a_pool_alone_serves_all_its_images_for_writing():
    parsed = parse()
    assert (parsed.pool, parsed.image, parsed.readonly, parsed.create, parsed.force) == (
        "backup",
        None,
        False,
        False,
        False,
    )


def test_sizes_paths_and_switches_get_their_types():
    parsed = parse(
        image="disk",
        size="10G",
        create="yes",
        cache_dir="cache",
        cache_size="5G",
        ram_cache="64M",
        key="/k",
        threads="2",
    )
    assert parsed.size_bytes == 10 << 30
    assert parsed.create
    assert parsed.threads == 2
    assert parsed.settings.cache_dir == HERE / "cache"
    assert parsed.settings.key_file == Path("/k")
    assert (parsed.settings.cache_bytes, parsed.settings.ram_cache_bytes) == (5 << 30, 64 << 20)


def test_a_snapshot_is_served_read_only_whatever_was_said():
    assert parse(image="disk@monday").readonly
    assert parse(image="disk@monday", readonly="false").readonly


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"pool": ""}, "pool= is missing"),
        ({"create": "true", "size": "1G"}, "create=true needs image="),
        ({"image": "a", "create": "true"}, "needs size="),
        ({"image": "a", "size": "1G"}, "blockyard image resize"),
        ({"image": "a", "create": "true", "size": "0"}, "at least one byte"),
        ({"image": "a", "create": "true", "size": "many"}, "is not a size"),
        ({"image": "a", "readonly": "true", "force": "true"}, "makes no sense"),
        ({"image": "a@s", "force": "true"}, "blockyard clone"),
        ({"image": "a@s", "create": "true", "size": "1G"}, "blockyard clone"),
        ({"image": "a@s", "unflushed": "/dev/shm/x"}, "blockyard clone"),
        ({"image": "a@"}, "name of a snapshot"),
        ({"image": "a@s@t"}, "name of a snapshot"),
        ({"image": "a", "readonly": "perhaps"}, "write true or false"),
        ({"key": "k", "passphrase_file": "p"}, "not both"),
        ({"durability": "none"}, "write pool or journal"),
        ({"compression": "gzip"}, "write zstd:1"),
        ({"threads": "0"}, "from 1 to 64"),
        ({"threads": "many"}, "from 1 to 64"),
        ({"unflushed": "/run/u"}, "is for one image"),
        ({"stats": "unix:"}, "needs a path"),
        ({"stats": "host:99999"}, "write unix:PATH or HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_write_instead(raw, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse(**raw)


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"did you mean durability=\?"):
        parameters.add({}, "durabilty", "pool")
    with pytest.raises(UsageError, match="known are pool="):
        parameters.add({}, "x", "y")


def test_a_key_given_twice_is_refused():
    raw: dict[str, str] = {}
    parameters.add(raw, "image", "a")
    with pytest.raises(UsageError, match="given twice"):
        parameters.add(raw, "image", "b")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:stats.sock", PageAddress(path=HERE / "stats.sock")),
        ("unix:/run/s", PageAddress(path=Path("/run/s"))),
        (":9100", PageAddress(host="127.0.0.1", port=9100)),
        ("[::1]:9100", PageAddress(host="::1", port=9100)),
        ("0.0.0.0:0", PageAddress(host="0.0.0.0", port=0)),
    ],
)
def test_metrics_are_served_where_the_address_says(text, address):
    assert PageAddress.parse(text, HERE) == address


def test_every_parameter_is_in_the_help():
    text = parameters.help_text()
    assert all(f"{key}=" in text for key in parameters.KEYS)
