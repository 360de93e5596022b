"""The supervisor with real gateways (nbdkit) and a model of the kernel's driver; the real driver is in test_map_guest.py."""

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_kernel import ModelDevice, ModelKernel

from core.errors import WorldError
from gateway_nbd.kernel.command import gateway_command
from gateway_nbd.kernel.control import UNMAP, ToldError, ask
from gateway_nbd.kernel.gateway import Gateway
from gateway_nbd.kernel.runtime import MappingFolder
from gateway_nbd.kernel.supervisor import Supervisor, Wishes, World

pytestmark = pytest.mark.system

WISHES = Wishes(
    export_name="",
    connections=4,
    timeout_s=30,
    dead_connection_timeout_s=600,
    block_bytes=4096,
    readonly=False,
)
SIZE = 8 << 20
FILE_SERVER = ("nbdkit", "-f", "-U", "{socket}", "file")


class Mapped:
    """A supervisor in a thread of the test, with what it works on."""

    def __init__(self, runtime: Path, command: Sequence[str]) -> None:
        self.kernel = ModelKernel()
        self.folder = MappingFolder(runtime, "pool/disk").acquire()
        self.gateway = Gateway(command, dict(os.environ), self.folder.gateway, self.folder.log("gateway"))
        self.mapped = threading.Event()
        self.error: BaseException | None = None
        self.supervisor = Supervisor(
            self.folder,
            self.gateway,
            self.kernel,
            WISHES,
            World(time.monotonic, time.sleep, lambda: "now", os.getpid()),
            device_of=lambda _index: ModelDevice(self.kernel),
            on_mapped=lambda _device: self.mapped.set(),
        )
        self.wake, self.waker = os.pipe()
        self.supervisor.wake_on(self.wake, self._woken)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except BaseException as error:
            self.error = error
        finally:
            self.mapped.set()

    def _woken(self) -> None:
        os.read(self.wake, 1)
        self.supervisor.restart_gateway()

    def restart_gateway(self) -> None:
        os.write(self.waker, b"x")

    def gateway_pid(self) -> int:
        state = self.folder.state()
        assert state is not None
        assert state.gateway_pid is not None
        return state.gateway_pid

    def another_gateway(self, than: int) -> int:
        """Wait until a gateway other than process `than` serves."""

        def look() -> int | None:
            state = self.folder.state()
            assert state is not None
            return state.gateway_pid if state.serving and state.gateway_pid != than else None

        return eventually(look)

    def close(self) -> None:
        if self.thread.is_alive():
            ask(self.folder.control, UNMAP)
        self.thread.join(30)
        self.kernel.close()
        self.folder.remove()
        os.close(self.wake)
        os.close(self.waker)


def eventually(look):
    deadline = time.monotonic() + 20
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)
    return found


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or a zombie that only waits for init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def supervised(runtime: Path, *command: str) -> Iterator[Mapped]:
    mapped = Mapped(runtime, command)
    mapped.thread.start()
    try:
        assert mapped.mapped.wait(20)
        yield mapped
    finally:
        mapped.close()


@pytest.fixture
def disk(tmp_path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    return path


def test_writes_survive_a_gateway_that_is_killed_again_and_again(tmp_path, disk):
    generator = random.Random(1)
    expected = bytearray(SIZE)
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        for _ in range(12):
            pid = mapped.gateway_pid()
            killer = threading.Timer(generator.uniform(0, 0.02), os.kill, (pid, signal.SIGKILL))
            killer.start()
            for _ in range(50):
                offset, data = generator.randrange(0, SIZE - 4096), generator.randbytes(4096)
                mapped.kernel.write(offset, data)
                expected[offset : offset + 4096] = data
            killer.join()
            mapped.another_gateway(pid)
        assert mapped.kernel.read(0, SIZE) == expected
        assert mapped.kernel.errors == []
    assert disk.read_bytes() == expected


@pytest.fixture
def memory() -> Iterator[Path]:
    """A runtime directory on a tmpfs, where the gateway of an image insists to be."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_an_image_keeps_what_it_acknowledged_through_kills_without_any_flush(memory, directory_pool):
    """To the kernel the disk never went away: its next flush vouches for the writes of a gateway that was killed."""
    directory_pool.make_image("disk", SIZE)
    command = gateway_command(
        f"{directory_pool.url}/disk", readonly=False, force=False, options={"key": str(directory_pool.key)}
    )
    generator = random.Random(2)
    expected = bytearray(SIZE)
    with supervised(memory, *command) as mapped:
        for _ in range(5):
            pid = mapped.gateway_pid()
            killer = threading.Timer(generator.uniform(0, 0.05), os.kill, (pid, signal.SIGKILL))
            killer.start()
            for _ in range(60):
                offset, length = generator.randrange(0, SIZE - 20000), generator.randrange(1, 20000)
                data = generator.randbytes(length)
                mapped.kernel.write(offset, data)
                expected[offset : offset + length] = data
            killer.join()
            mapped.another_gateway(pid)
            assert mapped.kernel.read(0, SIZE) == expected
        pid = mapped.gateway_pid()
        mapped.kernel.write(0, b"upgrade")
        expected[:7] = b"upgrade"
        mapped.restart_gateway()
        mapped.another_gateway(pid)
        assert mapped.kernel.read(0, SIZE) == expected
        assert mapped.kernel.errors == []
    with supervised(memory, *command) as mapped:
        assert mapped.kernel.read(0, SIZE) == expected


def test_a_planned_restart_answers_no_request_with_an_error(tmp_path, disk):
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        for number in range(5):
            pid = mapped.gateway_pid()
            mapped.restart_gateway()
            while mapped.gateway_pid() == pid:
                mapped.kernel.write(4096 * number, b"%04d" % number * 1024)
        assert mapped.kernel.errors == []
        for number in range(5):
            assert mapped.kernel.read(4096 * number, 4) == b"%04d" % number


def test_a_gateway_that_the_kernel_gave_up_is_dead_before_another_serves(tmp_path, disk):
    """Invariant 2: a write that hangs in the old gateway must not come after its repetition in the new one."""
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        hanging = mapped.gateway_pid()
        os.kill(hanging, signal.SIGSTOP)
        mapped.kernel.give_up_a_connection()
        mapped.another_gateway(hanging)
        assert has_ended(hanging)
        mapped.kernel.write(0, b"x" * 4096)


def test_the_device_grows_when_the_image_has_grown(tmp_path, disk, monkeypatch):
    monkeypatch.setattr("gateway_nbd.kernel.supervisor.SIZE_CHECK_S", 0.1)
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        pid = mapped.gateway_pid()
        os.truncate(disk, 2 * SIZE)
        eventually(lambda: mapped.kernel.resizes == [2 * SIZE])
        mapped.kernel.write(2 * SIZE - 4096, b"y" * 4096)
        assert mapped.kernel.errors == []
        assert mapped.gateway_pid() == pid
        eventually(lambda: mapped.folder.state().size_bytes == 2 * SIZE)


def test_unmapping_returns_when_the_gateway_has_ended(tmp_path, disk):
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        pid = mapped.gateway_pid()
        ask(mapped.folder.control, UNMAP)
        assert has_ended(pid)
        assert not mapped.kernel.attached
        mapped.thread.join(20)
        assert mapped.error is None


def test_a_device_that_somebody_else_disconnects_ends_the_supervisor(tmp_path, disk):
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        pid = mapped.gateway_pid()
        mapped.kernel.disconnect(0)
        mapped.thread.join(20)
        assert not mapped.thread.is_alive()
        assert has_ended(pid)
        assert mapped.error is None


def test_a_gateway_that_never_served_is_an_error_with_its_last_words(tmp_path):
    with supervised(tmp_path, *FILE_SERVER, str(tmp_path / "absent")) as mapped:
        mapped.thread.join(20)
        assert isinstance(mapped.error, WorldError)
        assert "absent: No such file or directory" in str(mapped.error)


def test_a_program_that_does_not_exist_is_named(tmp_path):
    with supervised(tmp_path, "no-such-nbdkit") as mapped:
        mapped.thread.join(20)
        assert "no-such-nbdkit" in str(mapped.error)


def test_a_gateway_that_does_not_come_back_is_tried_until_it_does(tmp_path, disk):
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        pid = mapped.gateway_pid()
        disk.rename(tmp_path / "elsewhere")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "No such file" in mapped.folder.log("gateway").read_text())
        (tmp_path / "elsewhere").rename(disk)
        mapped.kernel.write(0, b"z" * 4096)
        assert mapped.kernel.errors == []


def test_a_server_that_allows_one_connection_gets_one(tmp_path, disk):
    one = ("nbdkit", "-f", "-U", "{socket}", "--filter=multi-conn", "file", str(disk), "multi-conn-mode=disable")
    with supervised(tmp_path, *one) as mapped:
        assert mapped.kernel.connections == 1


def test_a_question_that_a_supervisor_does_not_know_is_refused(tmp_path, disk):
    with supervised(tmp_path, *FILE_SERVER, str(disk)) as mapped:
        with pytest.raises(ToldError, match="'dance'"):
            ask(mapped.folder.control, "dance")
        assert mapped.kernel.attached
