"""Two gateways of one image, as processes: the second is refused, takes over by force, and the first acknowledges nothing more (2)."""

import errno
import signal
import threading

import nbd
import pytest
from nbd_server import DirectoryPool, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

SIZE = 16 << 20
BLOCK = 4096


@pytest.fixture(params=["directory", "s3", "rados"])
def pool(request) -> DirectoryPool:
    """A pool on each kind of store: growing files, puts over HTTP, exclusive creates in Ceph."""
    return request.getfixturevalue("directory_pool" if request.param == "directory" else f"pool_on_{request.param}")


def refusal(call, *arguments) -> nbd.Error:
    with pytest.raises(nbd.Error) as refused:
        call(*arguments)
    return refused.value


def test_a_stopped_owner_that_wakes_up_after_a_takeover_acknowledges_nothing_and_says_why(pool):
    pool.make_image("disk", SIZE)
    owner = pool.start("disk")
    first = owner.client()
    first.pwrite(b"a" * BLOCK, 0)
    first.flush()
    first.pwrite(b"lost" * 1024, BLOCK)

    second = pool.start("disk")
    refusal(second.client)
    wait_until(lambda: f"process {owner.process.pid}" in second.said(), "the second gateway names the owner")
    second.kill()

    owner.process.send_signal(signal.SIGSTOP)
    try:
        heir = pool.start("disk", "force=true")
        newer = heir.client()
        assert newer.pread(BLOCK, 0) == b"a" * BLOCK, "what was flushed is there"
        newer.pwrite(b"b" * BLOCK, 0)
        newer.flush()
    finally:
        owner.process.send_signal(signal.SIGCONT)

    answers: list[nbd.Error] = []
    clients = [owner.client() for _ in range(2)]
    threads = [threading.Thread(target=lambda each=each: answers.append(refusal(each.flush))) for each in clients]
    for thread in threads:
        thread.start()
    answers.append(refusal(first.flush))
    for thread in threads:
        thread.join()
    assert {answer.errnum for answer in answers} == {errno.ESHUTDOWN}
    assert refusal(first.pwrite, b"c" * BLOCK, 0).errnum == errno.ESHUTDOWN
    assert "another writer has taken this image over" in owner.said()

    newer.pwrite(b"d" * BLOCK, 2 * BLOCK)
    newer.flush()
    heir.kill()
    with pool.serving("disk") as again:
        client = again.client()
        assert client.pread(BLOCK, 0) == b"b" * BLOCK
        assert client.pread(BLOCK, 2 * BLOCK) == b"d" * BLOCK
        client.shutdown()
