"""What the real servers do when they are full, stopped, strange to us, or used after a fork."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import pytest

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError
from core.limits import STORE_ATTEMPT_S
from core.store.contract import AccessRefusedError, ObjectMissingError
from core.store.factory import open_store
from core.store.probe import probe_put_if_absent
from core.store.retrying import RetryPolicy

pytestmark = pytest.mark.system
ONE_ATTEMPT = RetryPolicy(attempts=1)


@pytest.fixture(params=["rados", "s3", "azure"])
def remote(request):
    """Give a function that opens a client of one fresh place on each real server."""
    prefix = uuid.uuid4().hex
    if request.param == "azure":
        azurite = request.getfixturevalue("azurite")
        return lambda: open_store(azurite.url(prefix), environment=azurite.environment)
    ceph = request.getfixturevalue("ceph")
    url = ceph.rados_url(prefix) if request.param == "rados" else ceph.s3_url(prefix)
    return lambda: open_store(url, environment=ceph.s3_environment)


def test_the_probe_finds_every_real_server_honest(remote):
    store = remote()
    probe_put_if_absent(store, os.urandom)
    assert list(store.list("")) == []
    store.close()


FORK = """
import os, sys
from core.store.factory import open_store
store = open_store(sys.argv[1])  # opened, not used: this is what a gateway that daemonizes does
child = os.fork()
if child == 0:
    store.put("a", b"from the child")
    os._exit(0 if store.get("a") == b"from the child" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.get("a") == b"from the child"
store.close()
"""


@pytest.mark.parametrize("kind", ["rados", "s3"])
def test_a_store_opened_before_a_fork_works_after_it(ceph, kind):
    url = (ceph.rados_url if kind == "rados" else ceph.s3_url)(uuid.uuid4().hex)
    environment = {**os.environ, **ceph.s3_environment}
    subprocess.run([sys.executable, "-c", FORK, url], env=environment, timeout=30, check=True)


@pytest.mark.parametrize("kind", ["rados", "s3"])
def test_a_frozen_server_is_a_timeout_and_no_call_hangs(ceph, kind):
    prefix = uuid.uuid4().hex
    url = ceph.rados_url(prefix) if kind == "rados" else ceph.s3_url(prefix)
    store = open_store(url, environment=ceph.s3_environment, policy=ONE_ATTEMPT)
    store.put("a", b"before")
    frozen = ["rgw"] if kind == "s3" else ["osd.0", "osd.1", "osd.2"]
    pids = [ceph.daemon_pid(name) for name in frozen]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError, match="put of 'b'"):
            store.put("b", b"during")
        assert time.monotonic() - began < STORE_ATTEMPT_S + 3
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    patient = open_store(url, environment=ceph.s3_environment)
    patient.put("b", b"during")  # whether the frozen one took effect or not, these are our bytes
    assert patient.get("a") == b"before"
    assert patient.get("b") == b"during"
    patient.close()
    store.close()


def put_until_refused(store):
    """Put objects for up to 90 s: the monitors notice a full pool a few seconds late."""
    deadline = time.monotonic() + 90
    number = 0
    while time.monotonic() < deadline:
        store.put(f"image/00/log/{number:04}", b"x")
        number += 1
        time.sleep(0.05)


def test_a_ceph_pool_over_its_quota_is_out_of_space_and_goes_on_when_there_is_room(ceph):
    pool = f"quota-{uuid.uuid4().hex[:8]}"

    def admin(*words):
        subprocess.run(["ceph", "-c", ceph.configuration, *words], check=True, timeout=60, capture_output=True)

    admin("osd", "pool", "create", pool, "4")
    admin("osd", "pool", "application", "enable", pool, "rbd")
    admin("osd", "pool", "set-quota", pool, "max_objects", "5")
    store = open_store(f"rados://{pool}/p?conf={ceph.configuration}", environment={})
    try:
        with pytest.raises(OutOfSpaceError, match="full or over its quota"):
            put_until_refused(store)
        assert store.get("image/00/log/0000") == b"x"
        store.delete("image/00/log/0001")
        admin("osd", "pool", "set-quota", pool, "max_objects", "0")
        deadline = time.monotonic() + 60
        while True:
            try:
                store.put("image/00/log/later", b"y")
                break
            except OutOfSpaceError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert store.get("image/00/log/later") == b"y"
    finally:
        store.close()
        admin("osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it")


def test_a_bucket_or_pool_that_does_not_exist_is_no_missing_object(ceph, azurite):
    for url, environment in [
        ("s3://no-such-bucket/p", ceph.s3_environment),
        (f"rados://no-such-pool/p?conf={ceph.configuration}", {}),
        (azurite.url("p").replace("az://pool/", "az://absent/"), azurite.environment),
    ]:
        store = open_store(url, environment=environment)
        for call in (lambda s=store: s.get("a"), lambda s=store: s.put("a", b"x"), lambda s=store: s.head("a")):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, ObjectMissingError), url
        store.close()


def test_wrong_credentials_are_refused_at_once_and_do_not_show(ceph):
    wrong = {**ceph.s3_environment, "AWS_SECRET_ACCESS_KEY": "wrong-and-hidden"}
    store = open_store(ceph.s3_url("p"), environment=wrong)
    began = time.monotonic()
    with pytest.raises(AccessRefusedError, match="credentials") as caught:
        store.put("a", b"x")
    assert time.monotonic() - began < 3
    assert "wrong-and-hidden" not in str(caught.value)
    assert ceph.s3_environment["AWS_ACCESS_KEY_ID"] not in str(caught.value)
    store.close()


def test_a_server_that_is_not_there_is_an_error_within_the_deadline():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "HOME": "/nonexistent"}
    policy = RetryPolicy(deadline_s=6.0)
    store = open_store(f"s3://bucket/p?endpoint=http://127.0.0.1:{port}", environment=environment, policy=policy)
    began = time.monotonic()
    with pytest.raises(StoreError, match="get of 'a'"):
        store.get("a")
    assert time.monotonic() - began < 7
    store.close()
