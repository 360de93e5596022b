"""Who reads the kernel's requests (gateway_fuse/request_loop.py; the numbers are its invariants)."""

import os
from collections import deque

import trio
import trio.testing

from gateway_fuse.request_loop import RequestLoop, _is_first


class Kernel:
    """Requests that came, and a clock that stands still unless told otherwise."""

    def __init__(self) -> None:
        self.requests: deque[str] = deque()
        self.came = trio.Event()
        self.now = 0.0
        self.dozes: list[float] = []
        self.closed = False

    def ready(self, seconds: float) -> bool:
        self.dozes.append(seconds)
        return bool(self.requests)

    async def wait_readable(self, _descriptor: int) -> None:
        while not self.requests:
            self.came = trio.Event()
            await self.came.wait()
            if self.closed:
                raise trio.ClosedResourceError

    def ask(self, *requests: str) -> None:
        self.requests.extend(requests)
        self.came.set()

    def loop(self) -> RequestLoop:
        return RequestLoop(0, ready=self.ready, wait_readable=self.wait_readable, clock=lambda: self.now)


async def worker(name, loop, kernel, log, gates=None):
    while await loop.wait():
        request = kernel.requests.popleft()
        log.append((name, request))
        if gates and request in gates:
            await gates[request].wait()
            log.append((name, f"{request} done"))


def test_a_worker_that_did_not_have_to_wait_reads_on_by_itself():  # 2
    async def program():
        kernel, log = Kernel(), []
        loop = kernel.loop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker, "one", loop, kernel, log)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(worker, "two", loop, kernel, log)
            await trio.testing.wait_all_tasks_blocked()
            kernel.ask("a", "b", "c")
            await trio.testing.wait_all_tasks_blocked()
            assert [request for _, request in log] == ["a", "b", "c"]
            assert {name for name, _ in log} == {"one"}
            nursery.cancel_scope.cancel()

    trio.run(program)


def test_requests_are_read_while_a_handler_waits():  # 2
    async def program():
        kernel, log, gates = Kernel(), [], {"slow": trio.Event()}
        loop = kernel.loop()
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(worker, name, loop, kernel, log, gates)
                await trio.testing.wait_all_tasks_blocked()
            kernel.ask("slow")
            await trio.testing.wait_all_tasks_blocked()
            kernel.ask("quick")
            await trio.testing.wait_all_tasks_blocked()
            assert [request for _, request in log] == ["slow", "quick"]
            gates["slow"].set()
            await trio.testing.wait_all_tasks_blocked()
            assert log[-1][1] == "slow done"
            kernel.ask("after")
            await trio.testing.wait_all_tasks_blocked()
            assert log[-1][1] == "after"
            nursery.cancel_scope.cancel()

    trio.run(program)


def test_nobody_dozes_while_a_request_is_being_worked_on():  # 3
    async def program():
        kernel, log, gates = Kernel(), [], {"slow": trio.Event()}
        loop = kernel.loop()
        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(worker, name, loop, kernel, log, gates)
                await trio.testing.wait_all_tasks_blocked()
            kernel.ask("slow")
            kernel.dozes.clear()
            await trio.testing.wait_all_tasks_blocked()
            assert kernel.dozes
            assert not any(kernel.dozes)
            nursery.cancel_scope.cancel()

    trio.run(program)


def test_a_handler_dozes_only_while_its_request_is_the_only_one():  # 3
    async def program():
        kernel, log, gates = Kernel(), [], {"slow": trio.Event(), "slower": trio.Event()}
        loop = kernel.loop()
        loop._ready_before = lambda descriptor, seconds: (descriptor, seconds) == (7, 0.5)
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(worker, name, loop, kernel, log, gates)
                await trio.testing.wait_all_tasks_blocked()
            kernel.ask("slow")
            await trio.testing.wait_all_tasks_blocked()
            assert loop.doze(7, 0.5)
            kernel.ask("slower")
            await trio.testing.wait_all_tasks_blocked()
            assert not loop.doze(7, 0.5)
            nursery.cancel_scope.cancel()

    trio.run(program)


def test_a_doze_ends_when_the_kernel_has_a_request():  # 3
    awaited, kernel = os.eventfd(0), os.eventfd(0)
    try:
        assert not _is_first(awaited, (kernel,), 0.001)
        os.eventfd_write(kernel, 1)
        assert not _is_first(awaited, (kernel,), 600.0)
        os.eventfd_write(awaited, 1)
        assert _is_first(awaited, (kernel,), 600.0)
    finally:
        os.close(awaited)
        os.close(kernel)


def test_others_run_after_a_turn_even_if_requests_keep_coming():  # 3
    async def program():
        kernel, log = Kernel(), []
        loop = kernel.loop()

        def endless(seconds):
            kernel.now += 0.001
            kernel.requests.append("more")
            return True

        loop._ready = endless
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker, "one", loop, kernel, log)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            assert log
            nursery.cancel_scope.cancel()

    trio.run(program)


def test_every_worker_goes_home_when_the_descriptor_is_closed():
    async def program():
        kernel, log = Kernel(), []
        loop = kernel.loop()
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(worker, name, loop, kernel, log)
            await trio.testing.wait_all_tasks_blocked()
            kernel.closed = True
            kernel.came.set()

    trio.run(program)
