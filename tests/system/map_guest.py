"""A Debian kernel in QEMU (TCG, no KVM) that runs this checkout's Python: where `blockyard map` meets a real nbd driver.

Owns: a root disk under `.make/map-guest/` (python, the venv's runtime packages, nbdkit, mkfs, shells), built once per
content key and never written to afterwards (QEMU's snapshot mode throws the guest's writes away), and per run a small
initramfs with the kernel modules, the checkout's own code and the script.

1. A root disk appears under its key by rename only: two test processes may build it at the same time.
2. Paths in the guest equal paths on the host, so that whatever finds its files on the host finds them there.
3. What the script prints comes back over the second serial port, apart from the kernel's log on the first.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".make" / "map-guest"
SITE_PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
NBDKIT_LIBRARY = Path("/usr/lib/x86_64-linux-gnu/nbdkit")
STANDARD_LIBRARY = Path(os.__file__).resolve().parent
TOOLS = (
    "busybox", "nbdkit", "mke2fs", "mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_growfs", "nbd-client", "python3",
)  # fmt: skip
NBDKIT_PARTS = ("plugins/nbdkit-python-plugin.so", "plugins/nbdkit-memory-plugin.so", "plugins/nbdkit-file-plugin.so")
MODULES = ("virtio_pci", "virtio_blk", "nbd", "xfs")
CODE = ("core", "gateway_nbd", "tests/system/in_map_guest")
ROOT_DISK_BYTES = 640 << 20
MEMORY_MIB = 1024

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t ext4 -o noatime /dev/vda /root || poweroff -f
cp -a /code/. /root/
cp /script /environment /root/
mount -t proc proc /root/proc; mount -t sysfs sys /root/sys; mount -t devtmpfs dev /root/dev
mount -t tmpfs -o mode=755 tmpfs /root/run; chmod 1777 /root/tmp  # a directory: the checkout may lie below it
[ -b /dev/vdb ] && mount -t ext4 -o noatime /dev/vdb /root/pool
exec chroot /root /bin/sh /started
"""

_STARTED = """
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root
. /environment
stty -F /dev/ttyS1 -onlcr
cd /
sh -e /script >/dev/ttyS1 2>&1
echo "guest-exit=$?" >/dev/ttyS1
sync
[ -d /pool/lost+found ] && umount /pool
poweroff -f
"""


@dataclass(frozen=True)
class GuestResult:
    """What came back: the script's exit status (None: the guest never got there), its output, the kernel's log."""

    status: int | None
    output: str
    kernel_log: str


def run_in_guest(
    script: str,
    work: Path,
    *,
    pool_disk: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 200,
) -> GuestResult:
    """Boot a guest that runs `script` (POSIX sh, -e) as root; `pool_disk` is an ext4 image that appears at /pool."""
    version = _kernel_version()
    root_disk = _root_disk()
    initramfs = _initramfs(work, version, script, environment or {})
    output, kernel_log = work / "guest-output", work / "guest-kernel-log"
    # fmt: off
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB),
        "-display", "none", "-no-reboot", "-nic", "none", "-monitor", "none",
        "-serial", f"file:{kernel_log}", "-serial", f"file:{output}",
        "-kernel", f"/boot/vmlinuz-{version}", "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1",
        "-drive", f"file={root_disk},format=raw,if=virtio,snapshot=on",
    ]
    # fmt: on
    if pool_disk is not None:
        command += ["-drive", f"file={pool_disk},format=raw,if=virtio,cache=unsafe"]
    with contextlib.suppress(subprocess.TimeoutExpired):  # the result then tells how far the guest came
        subprocess.run(command, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    text = _text(output)
    found = re.search(r"^guest-exit=(\d+)$", text, re.MULTILINE)
    return GuestResult(
        status=int(found[1]) if found else None,
        output=re.sub(r"^guest-exit=\d+\n", "", text, flags=re.MULTILINE),
        kernel_log=_text(kernel_log),
    )


def make_pool_disk(path: Path, size_bytes: int, content: Path | None = None) -> Path:
    """Make the ext4 image that the guest mounts at /pool and the host looks into afterwards; it begins with `content`."""
    path.touch()
    os.truncate(path, size_bytes)
    filled = [] if content is None else ["-d", str(content)]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", *filled, str(path)], check=True)
    return path


def _text(path: Path) -> str:
    return path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""


def _kernel_version() -> str:
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=lambda kernel: kernel.stat().st_mtime)
    if not kernels:
        raise RuntimeError("no kernel for the guest in /boot; apt-get install linux-image-cloud-amd64")
    return kernels[-1].name.removeprefix("vmlinuz-")


# --- the initramfs: made anew for every run, it carries what changes -------------------------------------------------


def _initramfs(work: Path, version: str, script: str, environment: Mapping[str, str]) -> Path:
    with tempfile.TemporaryDirectory(dir=work) as name:
        root = Path(name)
        for folder in ("bin", "modules", "code"):
            (root / folder).mkdir()
        shutil.copy2("/bin/busybox", root / "bin/busybox")
        for number, module in enumerate(_module_files(version)):
            shutil.copy2(module, root / "modules" / f"{number:03}-{module.name}")
        _copy_code(root / "code")
        exports = "".join(f"export {key}={json.dumps(value)}\n" for key, value in environment.items())
        (root / "environment").write_text(exports)
        (root / "script").write_text(script)
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        initramfs = work / "initramfs.cpio"
        with initramfs.open("wb") as target:
            names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
            subprocess.run(
                ["cpio", "-o", "-0", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=target, check=True
            )
    return initramfs


def _module_files(version: str) -> Iterator[Path]:
    seen = set()
    for module in MODULES:
        command = ["modprobe", "-S", version, "--show-depends", module]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        for line in lines:
            kind, file, *_ = line.split()
            if kind == "insmod" and file not in seen:
                seen.add(file)
                yield Path(file)


def _copy_code(code: Path) -> None:
    """Lay the checkout's packages under their own path, compiled, and say by .pth and entry points where they are."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    here = _below(code, REPOSITORY)
    for folder in CODE:
        if (REPOSITORY / folder).is_dir():
            shutil.copytree(REPOSITORY / folder, here / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", code, here],
        check=True,
    )
    site = _below(code, SITE_PACKAGES)
    information = site / f"blockyard-{project['version']}.dist-info"
    information.mkdir(parents=True)
    (site / "blockyard.pth").write_text(f"{REPOSITORY}\n")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: blockyard\nVersion: {project['version']}\n")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in targets.items())
        for group, targets in project.get("entry-points", {}).items()
    )
    (information / "entry_points.txt").write_text(points)
    commands = _below(code, Path("/usr/local/bin"))
    commands.mkdir(parents=True)
    (commands / "blockyard").write_text(
        f"#!{sys.prefix}/bin/python\nimport sys\nfrom core.cli.main import main\n\nsys.exit(main())\n"
    )
    (commands / "blockyard").chmod(0o755)
    (code / "started").write_text(_STARTED)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


# --- the root disk: made once per content key ------------------------------------------------------------------------


def _root_disk() -> Path:
    files = sorted(set(_root_files()))
    digest = hashlib.sha256(f"{ROOT_DISK_BYTES} 4".encode())
    for file in files:
        digest.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    disk = CACHE / f"root-{digest.hexdigest()[:16]}.ext4"
    if not disk.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for stale in CACHE.glob("root-*.ext4"):
            stale.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            _build_root_disk(files, Path(name) / "root", Path(name) / "disk")
            (Path(name) / "disk").rename(disk)
    return disk


def _build_root_disk(files: Iterable[Path], root: Path, disk: Path) -> None:
    for folder in ("proc", "sys", "dev", "run", "tmp", "mnt", "pool", "root", "etc", "var", "usr/bin", "usr/lib"):
        (root / folder).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib64"):  # as on Debian
        target = root / "usr" / link
        target.mkdir(exist_ok=True)
        (root / link).symlink_to(f"usr/{link}")
    for file in files:
        target = _below(root, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    names = subprocess.run(["busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        applet = root / "usr/bin" / name
        if not (applet.exists() or (root / "usr/sbin" / name).exists()):
            applet.symlink_to("busybox")
    python = _below(root, Path(sys.prefix)) / "bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to("/usr/bin/python3")
    (root / "etc/mtab").symlink_to("/proc/mounts")
    disk.touch()
    os.truncate(disk, ROOT_DISK_BYTES)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(disk)], check=True)


def _root_files() -> Iterator[Path]:
    """Every file of the root disk by its path on the host; a tool behind a symbolic link appears under both names."""
    programs = [Path(found) for tool in TOOLS if (found := shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin"))]
    parts = [NBDKIT_LIBRARY / part for part in NBDKIT_PARTS]
    packages = [*_standard_library(), *_runtime_packages(), Path(sys.prefix) / "pyvenv.cfg"]
    yield from (*programs, *parts, *packages)
    extensions = [file for file in packages if ".so" in file.suffixes]
    yield from _shared_libraries([*programs, *parts, *extensions])


def _standard_library() -> Iterator[Path]:
    unwanted = re.compile(r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|pydoc_data|config-[^/]*|dist-packages)/")
    for file in STANDARD_LIBRARY.rglob("*"):
        if file.is_file() and not unwanted.search(str(file)):
            yield file


def _runtime_packages() -> Iterator[Path]:
    """The files of the project's dependencies and of theirs; not of the tools that only tests and checks use."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    waiting, seen = list(project["dependencies"]), set()
    while waiting:
        requirement = waiting.pop()
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name is None or name[0].lower() in seen or "extra ==" in requirement:
            continue
        seen.add(name[0].lower())
        try:
            distribution = metadata.distribution(name[0])
        except metadata.PackageNotFoundError:
            continue  # a requirement of another platform or Python
        waiting += distribution.requires or []
        for entry in distribution.files or []:
            file = Path(str(entry.locate())).resolve()
            if file.is_file() and file.is_relative_to(SITE_PACKAGES) and "/tests/" not in str(file):
                yield file
                yield from file.parent.glob(f"__pycache__/{file.stem}.cpython-*.pyc")


def _shared_libraries(programs: Iterable[Path]) -> Iterator[Path]:
    listing = subprocess.run(["ldd", *map(str, programs)], check=False, capture_output=True, text=True).stdout
    for found in re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", listing, re.MULTILINE):
        library = Path(found)
        yield (
            Path("/usr") / library.relative_to("/")
            if not found.startswith("/usr/") and "/.venv/" not in found
            else library
        )


if __name__ == "__main__":  # a guest by hand: python tests/system/map_guest.py SCRIPT
    with tempfile.TemporaryDirectory() as folder:
        result = run_in_guest(Path(sys.argv[1]).read_text(), Path(folder))
        print(result.kernel_log, file=sys.stderr)
        print(result.output, end="")
        sys.exit(125 if result.status is None else result.status)
