"""Debian's kernel in QEMU (TCG: no KVM needed), for what only a kernel's own NBD driver shows.

Owns, per test session, one initramfs: busybox, `nbd-client`, the tools of ext4 and XFS with their libraries, and the modules they
need. Each run adds a second, small archive with its script; the kernel unpacks both, one over the other.

A script is POSIX sh, run as root with -e. The host's loopback is 10.0.2.2 (`$HOST`). What it prints comes back over a second serial port.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("nbd-client", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair")
MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "nbd", "xfs")
IO_ERROR = re.compile(
    r"I/O error|EXT4-fs (error|warning)|XFS.*(error|shutdown|corrupt)|lost (async )?page write", re.IGNORECASE
)

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOST=10.0.2.2
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up && route add default gw 10.0.2.2
stty -F /dev/ttyS1 -onlcr
sh -e /script >/dev/ttyS1 2>&1
echo "guest-exit=$?" >/dev/ttyS1
sync
poweroff -f
"""


@dataclass(frozen=True)
class Guest:
    """A guest that is running, or has ended."""

    process: subprocess.Popen[bytes]
    output_file: Path
    kernel_log_file: Path

    def wait(self, timeout_s: float = 180) -> None:
        """Wait for its end and see that the script ended well and the kernel saw no I/O error."""
        try:
            self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
        print(self.kernel_log(), self.output(), sep="\n")
        assert "guest-exit=0" in self.output(), self.output() + self.kernel_log()[-3000:]
        assert not IO_ERROR.search(self.kernel_log()), self.kernel_log()[-3000:]

    def output(self) -> str:
        return _text(self.output_file)

    def kernel_log(self) -> str:
        return _text(self.kernel_log_file)


def start_guest(initramfs: Path, script: str, work: Path, *, devices: Sequence[str] = ()) -> Guest:
    """Boot a guest that runs `script`; `devices` are further arguments of QEMU."""
    work.mkdir(parents=True, exist_ok=True)
    both, output, log = work / "initramfs", work / "output", work / "kernel-log"
    own = work / "own"
    own.mkdir()
    (own / "script").write_text(script)
    with both.open("wb") as target:
        target.write(initramfs.read_bytes())
        target.flush()
        _archive(own, target.fileno())
    # fmt: off
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "768", "-display", "none", "-no-reboot", "-monitor", "none",
        "-nic", "user,model=virtio-net-pci", "-serial", f"file:{log}", "-serial", f"file:{output}",
        "-kernel", f"/boot/vmlinuz-{kernel_version()}", "-initrd", str(both), "-append", "console=ttyS0 quiet panic=-1",
        *devices,
    ]
    # fmt: on
    return Guest(subprocess.Popen(command, stdin=subprocess.DEVNULL), output, log)


def make_initramfs(work: Path) -> Path:
    """Make what every guest starts from; a second or two."""
    root = work / "root"
    for folder in ("bin", "sbin", "lib", "lib64", "proc", "sys", "dev", "mnt", "tmp", "etc", "modules"):
        (root / folder).mkdir(parents=True)
    for program in _programs():
        shutil.copy2(program, root / ("bin" if program.name == "busybox" else "sbin") / program.name)
        for library in _libraries(program):
            (root / library.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, root / library.relative_to("/"))
    for number, module in enumerate(_module_files()):
        shutil.copy2(module, root / "modules" / f"{number:03}-{module.name}")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    archive = work / "initramfs"
    with archive.open("wb") as target:
        _archive(root, target.fileno())
    return archive


def kernel_version() -> str:
    """Give the newest of Debian's cloud kernels on this host."""
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=lambda kernel: kernel.stat().st_mtime)
    assert kernels, "no kernel for the guest in /boot; apt-get install linux-image-cloud-amd64"
    return kernels[-1].name.removeprefix("vmlinuz-")


def _programs() -> Iterator[Path]:
    for tool in ("busybox", *TOOLS):
        found = shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin")
        assert found, f"{tool} is not installed"
        yield Path(found)


def _libraries(program: Path) -> Iterator[Path]:
    listing = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    for found in re.findall(r"(/\S+) \(0x", listing):
        yield Path(found)


def _module_files() -> Iterator[Path]:
    seen = set()
    for module in MODULES:
        command = ["modprobe", "-S", kernel_version(), "--show-depends", module]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            kind, file, *_ = line.split()
            if kind == "insmod" and file not in seen:
                seen.add(file)
                yield Path(file)


def _archive(root: Path, target: int) -> None:
    names = "\0".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
    subprocess.run(
        ["cpio", "-o", "-0", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=target, check=True
    )


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""
