"""The README tells the truth: its transcripts are run and compared, and every other command names what runs it.

A block of commands has a comment before it:

    <!-- run: NAME -->         a transcript (```console): `$ ` begins a command, the rest is what it printed. Transcripts of one
                               NAME run in one shell, in the order of the page. A line `…` stands for any lines, `…` within a line
                               for any characters; numbers, ids, times and spacing may differ. A command whose output begins
                               with `blockyard:` must fail, any other must succeed.
    <!-- shown: FILE,… -->     commands (```sh) that these run: a test, an example, or the Makefile.
"""

import os
import re
import shlex
import subprocess
import tempfile
import tomllib
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nbd_server import wait_until

from core.config import load_config
from core.store.factory import open_store
from tests.servers.ceph import free_ports

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
HOME_SHOWN = "/home/you"
_BLOCK = re.compile(r"(?:<!-- (run|shown): (\S+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = "\x1e"
_MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8,}\b"), "HEX"),
    (re.compile(r"\d+(?:\.\d+)?(?: ?[KMGT]i?B?)?\b"), "N"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass
class Step:
    """One command of a transcript and what the page says it prints."""

    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        return bool(self.shown) and self.shown[0].startswith("blockyard:")


def blocks() -> list[tuple[str, str, str, str]]:
    """Give (how, name, language, text) of every fenced block."""
    return [(m[1] or "", m[2] or "", m[3], m[4]) for m in _BLOCK.finditer(README)]


def transcript(name: str) -> list[Step]:
    steps: list[Step] = []
    for how, found, language, text in blocks():
        if (how, found) == ("run", name):
            assert language == "console", f"a transcript of {name} is not marked as console"
            for line in text.splitlines():
                if line.startswith("$ "):
                    steps.append(Step(line.removeprefix("$ ")))
                else:
                    steps[-1].shown.append(line)
    assert steps, f"the README has no transcript {name}"
    return steps


def perform(name: str, home: Path, environment: Mapping[str, str]) -> None:
    """Run a transcript and hold what it prints against the page."""
    steps = transcript(name)
    printed = home / "printed"
    script = ["trap '{ umount ~/mnt; fusermount3 -u ~/dev; kill $(cat ~/disk.pid); } > /dev/null 2>&1' EXIT"]
    for step in steps:
        script += [step.command, f"printf '{_MARK}%s{_MARK}' $?"]
    with printed.open("wb") as output:
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=ROOT,
            env=clean_environment(home) | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        shell.wait(400)
    pieces = printed.read_text(errors="replace").split(_MARK)
    assert len(pieces) > 2 * len(steps), f"the shell ended early:\n{printed.read_text(errors='replace')}"
    for step, said, status in zip(steps, pieces[::2], pieces[1::2], strict=False):
        assert (status != "0") == step.fails, f"$ {step.command}\n{said}[{status}]"
        shown = "\n".join(step.shown)
        assert matches(shown, said.replace(str(home), HOME_SHOWN)), (
            f"$ {step.command}\nprinted:\n{said}\nthe README shows:\n{shown}"
        )


def clean_environment(home: Path) -> dict[str, str]:
    # A socket's path has 107 bytes, which a test's own directory may well use up.
    runtime = Path(tempfile.gettempdir()) / f"readme-{zlib.crc32(bytes(home)):08x}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "BLOCKYARD_", "AWS_"))}
    path = f"{ROOT / '.venv/bin'}:{kept['PATH']}:/usr/sbin:/sbin"
    return kept | {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path, "LC_ALL": "C.UTF-8"}


def masked(text: str) -> str:
    for pattern, word in _MASKS:
        text = pattern.sub(word, text)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def matches(shown: str, said: str) -> bool:
    lines = [
        r"(?:.*\n)*?" if line == "…" else r"[^\n]*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in masked(shown).splitlines()
    ]
    return re.fullmatch("".join(lines), masked(said) + "\n" if said.strip() else "") is not None


def test_the_five_minute_tour_prints_what_the_readme_shows(tmp_path):
    perform("tour", tmp_path, {})


def test_the_first_command_of_the_page_serves_an_image_as_it_stands(tmp_path):
    command = next(line for _, _, _, text in blocks() for line in text.splitlines() if line.startswith("nbdkit"))
    port, pool = str(free_ports(1)), f"file://{tmp_path}/pool"
    command = command.replace("10809", port).replace("file:///srv/pool", pool)
    assert port in command and pool in command
    environment = clean_environment(tmp_path)
    subprocess.run(["blockyard", "pool", "create", pool], env=environment, check=True, timeout=60)
    arguments = shlex.split(command)
    with subprocess.Popen([arguments[0], "-f", *arguments[1:]], cwd=ROOT, env=environment) as server:
        try:
            look = ["nbdinfo", "--size", f"nbd://127.0.0.1:{port}/disk"]
            wait_until(
                lambda: subprocess.run(look, check=False, capture_output=True).returncode == 0, "the server answers"
            )
            assert subprocess.run(look, capture_output=True, check=True, text=True).stdout.strip() == str(100 << 30)
        finally:
            server.terminate()


def test_the_s3_example_runs_on_a_real_gateway(tmp_path, ceph):
    perform("s3", tmp_path, {"BUCKET": f"blockyard/{uuid.uuid4().hex}", **ceph.s3_environment})


def test_the_ceph_example_runs_on_a_real_cluster(tmp_path, ceph):
    environment = {"CEPH_POOL": f"blockyard/{uuid.uuid4().hex}", "CEPH_CONF": str(ceph.configuration)}
    perform("ceph", tmp_path, environment)


def test_every_command_of_the_readme_is_run_by_something():
    for how, name, language, text in blocks():
        if language == "toml":
            continue
        assert how, f"nothing is said to run this block:\n{text}"
        if how == "shown":
            proof = "".join((ROOT / each).read_text("utf-8") for each in name.split(","))
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                program = words[0] if words else ""
                if program and program != "export":
                    wanted = words[1] if program in ("make", "blockyard") else program
                    assert re.search(rf"\b{re.escape(wanted)}\b", proof), f"{name} does not run {line!r}"


def test_every_store_url_of_the_readme_makes_sense():
    urls = re.findall(r"`((?:file|memory|s3|gs|az|rados)://[^`\s]+)`", README)
    assert len(urls) >= 10
    for url in urls:
        open_store(url, environment={"HOME": "/nonexistent"}).close()


def test_the_configuration_of_the_readme_is_read_without_complaint(tmp_path):
    (text,) = (text for _, _, language, text in blocks() if language == "toml")
    assert tomllib.loads(text)
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert set(load_config(path).pools) == {"home", "backup"}


@pytest.mark.parametrize("page", ["README.md", "docs/README.md", "docs/durability.md", "docs/threat-model.md"])
def test_links_of_the_documentation_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links {target}, which is not there"
