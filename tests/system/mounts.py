"""Real shared filesystems for tests: a pool, its metadata server and any number of mounts, each a process that can be stopped or killed.

Whatever a test does, `SharedFilesystem.end` leaves no process, mount or socket behind. Its processes have a home, cache and runtime
directory of their own. A test that waits for a mount that never answers cannot be interrupted, so a watchdog kills the mounts then.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from mount_worker import Worker
from nbd_server import wait_until

ROOT = Path(__file__).resolve().parents[2]
FORWARDER = Path(__file__).with_name("forwarder.py")
START_S = 30.0
STOP_S = 30.0
LOG_SHOWN = 4000
"""So much of each process's output is shown with a test that fails."""
WATCHDOG_S = 200.0
"""When a filesystem's mounts are killed under a test that seems stuck; below the test's own time limit."""


@dataclass
class Process:
    """A process of the filesystem, its output in a file."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Give what it wrote so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Let it stand still, as a machine that swaps or a hypervisor that pauses."""
        self.process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash does it."""
        if self.alive:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self, timeout_s: float = STOP_S) -> int:
        """As an administrator does it; gives the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@dataclass
class Mounted(Process):
    """A mount in the foreground."""

    path: Path
    filesystem: "SharedFilesystem"

    def __truediv__(self, name: str | bytes | Path) -> Path:
        return self.path / (os.fsdecode(name) if isinstance(name, bytes) else name)

    def unmount(self, timeout_s: float = STOP_S) -> None:
        """As an administrator does it, which must succeed: all data is in the pool afterwards."""
        self.filesystem.run("umount", self.path, timeout_s=timeout_s)
        assert self.process.wait(timeout_s) == 0, self.said()
        assert not is_mounted(self.path)

    def kill(self) -> None:
        """As a crash does it, and take the dead mount out of the tree."""
        super().kill()
        detach(self.path)


@dataclass
class SharedFilesystem:
    """A filesystem in a pool. `pool_url` and `key` are those of an existing pool; everything else lives below `root`."""

    root: Path
    pool_url: str
    key: Path
    name: str = "fs"
    variables: dict[str, str] = field(default_factory=dict)
    """More environment for its processes, such as credentials of a store."""
    watchdog_s: float = WATCHDOG_S
    server: Process | None = None
    mounts: list[Mounted] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    others: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A unix socket's path has 107 bytes, which a test's own directory may well use up; and other users do not get into that.
        self.short = Path(tempfile.mkdtemp(prefix="by-"))
        self.short.chmod(0o711)
        self.runtime = self.short / "run"
        self.runtime.mkdir(mode=0o700)
        (self.short / "mnt").mkdir()
        for name in ("home", "tmp", "config", "cache", "data", "state"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._count = 0
        self._watchdog: threading.Timer | None = None
        self.rearm()

    @property
    def reference(self) -> str:
        """Give POOL/FS as the command line takes it."""
        return self.reference_to(self.name)

    def reference_to(self, name: str) -> str:
        """Give POOL/NAME as the command line takes it."""
        parts = urlsplit(self.pool_url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))

    @property
    def address(self) -> str:
        """Give where the started server listens."""
        return f"unix:{self.runtime}/server.sock"

    @property
    def data_dir(self) -> Path:
        """Give where the started server keeps its database."""
        return self.root / "metadata"

    @property
    def environment(self) -> dict[str, str]:
        """Give the environment of its processes: nothing of the user's own, no setting but the key file."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BLOCKYARD_", "XDG_"))}
        return {
            **clean,
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "XDG_DATA_HOME": str(self.root / "data"),
            "XDG_STATE_HOME": str(self.root / "state"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "BLOCKYARD_TRACEBACK": "1",
            "BLOCKYARD_KEY_FILE": str(self.key),
            **self.variables,
        }

    def run(self, *arguments: str | Path, status: int = 0, timeout_s: float = 60) -> str:
        """Run one `blockyard` command to its end; gives its output, for a status other than 0 its error text."""
        done = subprocess.run(
            [sys.executable, "-m", "core.cli", *map(str, arguments)],
            env=self.environment,
            check=False,
            capture_output=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{arguments} ended with {done.returncode}: {done.stderr.decode()}"
        return (done.stdout if status == 0 else done.stderr).decode()

    def create(self, *options: str | Path) -> "SharedFilesystem":
        """`blockyard fs create`."""
        self.run("fs", "create", self.reference, *options)
        return self

    def spawn(self, name: str, *arguments: str | Path, program: tuple[str, ...] = ("-m", "core.cli")) -> Process:
        """Start a `blockyard` command; the filesystem ends it at the latest."""
        process = self._start(name, arguments, program)
        self.others.append(process)
        return process

    def start_server(self, *options: str | Path, lease_s: float | None = None, listen: str | None = None) -> Process:
        """Start the metadata server (again, after one that is gone) and wait until it listens. Mounts made later use it."""
        assert self.server is None or not self.server.alive, "one server"
        listen = listen or self.address
        lease = [] if lease_s is None else ["--lease", f"{lease_s:g}"]
        told, ready = os.pipe()
        where = ["--listen", listen, "--data-dir", self.data_dir, "--ready-fd", str(ready)]
        with open(told, closefd=True) as answer:
            arguments = ["metadata-server", self.reference, *where, *lease, *options]
            self.server = server = self._start("server", arguments, pass_fds=(ready,))
            os.close(ready)
            assert select.select([answer], [], [], START_S)[0], f"it does not listen: {server.said()}"
            assert answer.read(), f"the metadata server ended: {server.said()}"
        return server

    @property
    def at_server(self) -> tuple[str, ...]:
        """Give the options that lead a verb to the started server."""
        return () if self.server is None else ("--server", self.address)

    def forward(self, name: str = "forwarder", at: str | None = None) -> tuple[Process, str]:
        """Start a process between mounts and the server; gives it and the address to mount with."""
        address = at or f"unix:{self.runtime}/{name}.sock"
        process = self.spawn(name, address, self.address, program=(str(FORWARDER),))
        wait_until(lambda: "listening" in process.said() or not process.alive, "the forwarder listens")
        assert process.alive, process.said()
        return process, address

    def mount(
        self,
        name: str = "a",
        *options: str | Path,
        server: str | None = None,
        at: Path | None = None,
        snapshot: str | None = None,
    ) -> Mounted:
        """Mount in a directory NAME and wait until it answers: with the server that was started, with a private one otherwise.

        A snapshot has a private server of its own in any case.
        """
        path = at or self.short / "mnt" / name
        path.mkdir(parents=True, exist_ok=True)
        is_served = self.server is not None and snapshot is None
        address = server or (self.address if is_served else None)
        where = [] if address is None else ["--server", address]
        reference = self.reference_to(self.name if snapshot is None else f"{self.name}@{snapshot}")
        started = self._start(f"mount-{name}", ["mount", reference, path, "-f", *where, *options])
        mounted = Mounted(started.name, started.process, started.log, path, self)
        self.mounts.append(mounted)
        _wait_for_mount(mounted)
        return mounted

    def used(self) -> tuple[int, int]:
        """Give the bytes and inodes that the server counts."""
        told = json.loads(self.run("fs", "df", self.reference, "--json", *self.at_server))
        return told["used_bytes"], told["used_inodes"]

    def check(self, *options: str) -> None:
        """`blockyard fs check`, which must find nothing wrong."""
        where = ["--data-dir", self.data_dir] if self.server is not None else []
        self.run("fs", "check", self.reference, *where, *options)

    def worker(self, name: str = "worker") -> Worker:
        """Start a process that uses mounts."""
        worker = Worker(name)
        self.workers.append(worker)
        return worker

    def rearm(self) -> None:
        """Give the watchdog its full time again, as one filesystem that serves several tests needs it."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = threading.Timer(self.watchdog_s, self._bite)
        self._watchdog.daemon = True
        self._watchdog.start()

    def end(self) -> None:
        """Leave nothing behind: mounts first, since who waits for them cannot die before them."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        for process in (*self.mounts, *self.others, *([self.server] if self.server else [])):
            print(f"{process.name}, {process.process.poll()}: {process.said()[-LOG_SHOWN:]}")
        self._end_mounts()
        for worker in self.workers:
            worker.kill()
        for process in (*self.others, *([self.server] if self.server else [])):
            process.kill()
        for pid in self._strays():
            _kill_stranger(pid)
        for path in (*_mounted_below(self.root), *_mounted_below(self.short)):
            detach(path)
        for path in (self.short / "mnt").iterdir():
            path.rmdir()  # never a tree: what if it were still mounted
        shutil.rmtree(self.runtime)
        (self.short / "mnt").rmdir()
        self.short.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _start(
        self,
        name: str,
        arguments: "tuple[str | Path, ...] | list[str | Path]",
        program: tuple[str, ...] = ("-m", "core.cli"),
        pass_fds: tuple[int, ...] = (),
    ) -> Process:
        self._count += 1
        log = self.root / f"{self._count}-{name}.log"
        with log.open("wb") as target:
            process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                env=self.environment,
                pass_fds=pass_fds,
            )
        return Process(name, process, log)

    def _end_mounts(self) -> None:
        for mounted in self.mounts:
            if mounted.alive:
                mounted.process.send_signal(signal.SIGKILL)
            mounted.process.wait()
            detach(mounted.path)

    def _bite(self) -> None:
        print(f"the test had its mounts for {self.watchdog_s:g} s and seems stuck: killing them", file=sys.stderr)
        for mounted in self.mounts:
            if mounted.alive:
                mounted.process.send_signal(signal.SIGKILL)

    def _strays(self) -> list[int]:
        """Find processes that ours started, such as private servers: they have our runtime directory in their environment."""
        mark = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return found


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted exactly there, without asking it."""
    return path in _mounted_below(path)


def detach(path: Path) -> None:
    """Take a mount out of the tree, whether it is alive or dead."""
    while is_mounted(path):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def comes_true(condition: Callable[[], bool], for_s: float, pause_s: float = 0.01) -> bool:
    """Tell whether a condition came true within the time."""
    deadline = time.monotonic() + for_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
    return True


def _mounted_below(root: Path) -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    paths = [Path(os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))) for line in lines]
    return [path for path in reversed(paths) if path == root or root in path.parents]


def _wait_for_mount(mounted: Mounted) -> None:
    """Wait for the mount table to show it, then for its answer to a question."""
    ended = os.pidfd_open(mounted.pid)
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI | select.POLLERR)
            poll.register(ended, select.POLLIN)
            deadline = time.monotonic() + START_S
            while not is_mounted(mounted.path):
                left_ms = int((deadline - time.monotonic()) * 1000)
                assert left_ms > 0, f"not mounted within {START_S:g} s: {mounted.said()}"
                poll.poll(left_ms)
                assert mounted.alive, f"the mount ended with {mounted.process.returncode}: {mounted.said()}"
    finally:
        os.close(ended)
    question = subprocess.Popen(["stat", "-f", mounted.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        status = question.wait(START_S)
    except subprocess.TimeoutExpired:
        mounted.kill()
        raise AssertionError(f"mounted, but it answers nothing: {mounted.said()}") from None
    assert status == 0, f"mounted, but it answers with an error: {mounted.said()}"


def _kill_stranger(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], STOP_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
