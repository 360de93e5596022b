"""The `blockyard` command as a real process with a home of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60


@dataclass
class Command:
    """Runs the command below `home`; the pool that most tests use is `home/pool`."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def pool(self) -> str:
        return f"file://{self.home}/pool"

    def image(self, name: str) -> str:
        return f"{self.pool}/{name}"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BLOCKYARD_", "XDG_"))}
        return {**clean, "HOME": str(self.home), "PYTHONPATH": str(ROOT), **self.variables}

    def start(self, *arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "core.cli", *map(str, arguments)], env=self.environment, **options
        )

    def run(self, *arguments: str | Path, status: int = 0, stdin: bytes = b"", **options: object) -> str:
        """Run it to its end and give its output; for a status other than 0, its error text."""
        done = self.run_raw(*arguments, stdin=stdin, **options)
        assert done.returncode == status, f"{arguments} ended with {done.returncode}: {done.stderr.decode()}"
        return done.stdout.decode() if status == 0 else done.stderr.decode()

    def run_raw(
        self, *arguments: str | Path, stdin: bytes = b"", **options: object
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "core.cli", *map(str, arguments)],
            env=self.environment,
            check=False,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            **options,
        )

    def json(self, *arguments: str | Path, **options: object):
        return json.loads(self.run(*arguments, "--json", **options))
