"""The thread that makes a mount's log durable (gateway_fuse/durable_thread.py; the numbers are its invariants)."""

import threading

import pytest
import trio
import trio.testing

from core.errors import StoreError, WorldError
from gateway_fuse.durable_thread import DurableThread, no_doze
from gateway_fuse.request_loop import _is_first


@pytest.fixture
def thread():
    made = DurableThread()
    yield made
    made.close()


@pytest.mark.parametrize("doze", [no_doze, lambda descriptor, seconds: _is_first(descriptor, (), seconds)])
def test_a_caller_goes_on_when_its_job_has_ended_and_hears_how(thread, doze):  # 2
    done = []

    def fail():
        raise StoreError("the disk is gone")

    async def program():
        for number in range(50):
            await thread.run(lambda number=number: done.append(number), doze)
            assert done[-1] == number
            with pytest.raises(StoreError, match="the disk is gone"):
                await thread.run(fail, doze)

    trio.run(program)


def test_a_cancelled_caller_stays_until_its_job_has_ended(thread):  # 1
    may_end, ended = threading.Event(), []

    def job():
        may_end.wait()
        ended.append(True)

    async def ask(scope):
        with scope:
            await thread.run(job, no_doze)
            assert ended

    async def program():
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, scope)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not ended
            may_end.set()

    trio.run(program)


def test_a_job_that_was_taken_is_run_though_the_thread_is_being_closed_and_none_is_taken_later():  # 3
    thread, may_end, ended = DurableThread(), threading.Event(), []

    def job():
        may_end.wait()
        ended.append(True)

    async def program():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, job, no_doze)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(trio.to_thread.run_sync, thread.close)
            await trio.testing.wait_all_tasks_blocked()
            may_end.set()
        assert ended
        with pytest.raises(WorldError, match="the mount is ending"):
            await thread.run(job, no_doze)

    trio.run(program)
