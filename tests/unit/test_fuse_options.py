"""What -o may say, from people and from mount(8)."""

from pathlib import Path

import pytest

from core.errors import UsageError
from gateway_fuse.options import read_options
from gateway_fuse.order import given_options
from gateway_fuse.state import AtimePolicy


def given(*texts: str, **named):
    values = {"server": None, "tls": None, "cache_dir": None, "cache_size": None, "metrics": None, **named}
    return given_options(texts, **values)


def test_what_mount_adds_for_itself_is_passed_over():
    options = read_options(("rw,noauto,_netdev,nofail,x-systemd.automount,defaults,user,comment=mine",))
    assert options == read_options(())
    assert not options.readonly


def test_the_last_of_options_that_contradict_each_other_wins():
    assert read_options(("ro,rw",)).readonly is False
    assert read_options(("rw", "ro")).readonly is True
    assert read_options(("nosuid,suid",)).kernel == {"suid"}
    assert read_options(("suid,nosuid",)).kernel == {"nosuid"}
    assert read_options(("noatime,relatime",)).atime is AtimePolicy.RELATIME


def test_access_times_are_the_mounts_business_and_never_the_kernels():
    options = read_options(("strictatime",))
    assert options.atime is AtimePolicy.STRICTATIME
    assert "noatime" in options.for_fuse("pool/fs")


def test_permissions_are_always_checked_by_the_kernel():
    assert "default_permissions" in read_options(("allow_other",)).for_fuse("pool/fs")
    assert read_options(("default_permissions",)).kernel == frozenset()


def test_a_comma_in_the_name_of_a_pool_does_not_end_the_option():
    assert r"fsname=rados://pool\,1/fs" in read_options(()).for_fuse("rados://pool,1/fs")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("allow_othr", "allow_other"),
        ("writeback_cache", "two mounts"),
        ("allow_root", "allow_other"),
        ("serve=x", "server"),
    ],
)
def test_an_option_nobody_knows_is_refused_with_advice(text, words):
    with pytest.raises(UsageError, match=words):
        read_options((text,))


def test_fstab_can_say_with_o_what_the_command_line_has_options_for():
    options = given("server=tcp://h:1,tls=/t,key_file=/k,cache_dir=/c,cache_size=2G,config=/f")
    assert (options.server, options.tls_dir, options.config) == ("tcp://h:1", Path("/t"), Path("/f"))
    assert (options.settings.key_file, options.settings.cache_dir) == (Path("/k"), Path("/c"))
    assert options.settings.cache_bytes == 2 << 30


def test_the_command_line_wins_over_o():
    assert given("server=unix:/a", server="unix:/b").server == "unix:/b"
