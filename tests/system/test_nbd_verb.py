"""`blockyard nbd`, the demo and the examples, as a user types them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nbd_server import PLUGIN, run, wait_until

from core.units import MIB

pytestmark = pytest.mark.system

ROOT = PLUGIN.parents[1]
BLOCKYARD = Path(sys.executable).with_name("blockyard")
EXAMPLES = [ROOT / "examples" / name for name in ("tour.sh", "shared.sh", "generations.sh")]


def test_print_shows_the_command_and_does_nothing(directory_pool, tmp_path):
    done = run(
        BLOCKYARD, "nbd", f"{directory_pool.url}/disk", "--socket", tmp_path / "s", "--key-file", directory_pool.key,
        "--readonly", "-o", "ram_cache=64M", "--print",
    )  # fmt: skip
    words = done.stdout.split()
    assert words[0] == "nbdkit" and str(PLUGIN) in words
    assert {f"pool={directory_pool.url}", "image=disk", "readonly=true", "ram_cache=64M"} < set(words)
    assert not (tmp_path / "s").exists()


def test_it_serves_in_the_background_over_the_socket_of_a_gateway_that_was_killed(directory_pool, tmp_path):
    directory_pool.make_image("disk", MIB)
    address, pid_file = tmp_path / "s", tmp_path / "pid"
    common = ["nbd", f"{directory_pool.url}/disk", "--socket", address, "--key-file", directory_pool.key]
    for number in range(2):
        done = run(BLOCKYARD, *common, "--daemon", pid_file)
        uri = f"nbd+unix:///disk?socket={address}"
        assert uri in done.stderr and "nbd-client -unix" in done.stderr
        pid = int(pid_file.read_text())
        run("qemu-io", "-f", "raw", "-c", f"write -f -P {number + 1} 0 4k", uri)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the gateway is gone")
        assert address.exists()
    run(BLOCKYARD, *common, "--run", 'qemu-io -f raw -c "read -P 2 0 4k" "$uri" | grep -v failed')


def test_a_whole_pool_is_served_on_a_port(directory_pool):
    directory_pool.make_image("one", MIB)
    done = run(
        BLOCKYARD, "nbd", directory_pool.url, "--all-images", "--port", "10871", "--key-file", directory_pool.key,
        "--run", 'nbdinfo --list "$uri"',
    )  # fmt: skip
    assert '"one"' in done.stdout


def test_a_mistake_is_one_sentence_and_exit_status_2(directory_pool, tmp_path):
    done = run(BLOCKYARD, "nbd", "disk", "--socket", tmp_path / "s", check=False)
    assert done.returncode == 2 and "POOL/IMAGE" in done.stderr
    done = run(BLOCKYARD, "nbd", "a/disk", "--socket", tmp_path / "s", "-o", "chache_dir=/x", check=False)
    assert done.returncode == 2 and "did you mean cache_dir=?" in done.stderr


def test_other_machines_without_tls_are_warned_of(directory_pool):
    done = run(
        BLOCKYARD, "nbd", f"{directory_pool.url}/absent", "--port", "10872", "--bind", "0.0.0.0",
        "--key-file", directory_pool.key, check=False,
    )  # fmt: skip
    assert "anybody who reaches" in done.stderr
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs(script):
    environment = os.environ | {"PATH": f"{BLOCKYARD.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done." in done.stdout
