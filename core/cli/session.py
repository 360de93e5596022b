"""One run of the command: environment, configuration, terminal. Commands get everything of the outside world from here.

Lives for one command, in one thread.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import click

from core.config import (
    Config,
    PoolSettings,
    Settings,
    default_config_path,
    load_config,
    resolve_pool,
    settings_from_environment,
    split_image_reference,
)
from core.errors import NotFoundError
from core.pool.connect import Prompt, connect_pool
from core.pool.pool import Pool
from core.world import World


@dataclass(frozen=True)
class Session:
    """What a command needs to know. The default is the process as it is."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    config_path: Path | None = None
    arguments: Settings = field(default_factory=Settings)
    world: World = field(default_factory=World.real)

    def with_arguments(self, arguments: Settings) -> "Session":
        """Give a session in which the settings of the command line are these, over what was there."""
        return replace(self, arguments=arguments.over(self.arguments))

    def config(self) -> Config:
        """Read the configuration file."""
        return load_config(self.config_path or default_config_path(self.environment))

    def settings(self, reference: str) -> PoolSettings:
        """Resolve everything about the pool that `reference` names."""
        return resolve_pool(reference, self.config(), settings_from_environment(self.environment), self.arguments)

    @contextmanager
    def pool(self, reference: str) -> Iterator[Pool]:
        """Open a pool for the block."""
        pool = connect_pool(self.settings(reference), self.world, self.prompt())
        try:
            yield pool
        finally:
            pool.close()

    @contextmanager
    def pool_of_image(self, reference: str) -> Iterator[tuple[Pool, str]]:
        """Open the pool of an image reference for the block, and give the image's name with it."""
        pool_reference, name = split_image_reference(reference)
        with self.pool(pool_reference) as pool:
            yield pool, name

    @contextmanager
    def pool_or_volume(self, reference: str) -> Iterator[tuple[Pool, str | None]]:
        """Open the pool that a reference names, or the one whose volume it names; give the volume's name, None for a pool."""
        with ExitStack() as opening:
            if "://" in reference:
                # A URL does not tell: the pool at file:///srv/pool and the image `pool` in file:///srv look alike.
                try:
                    opened = opening.enter_context(self.pool(reference))
                except NotFoundError:
                    yield opening.enter_context(self.pool_of_image(reference))
                else:
                    yield opened, None
            elif "/" not in reference:
                yield opening.enter_context(self.pool(reference)), None
            else:
                yield opening.enter_context(self.pool_of_image(reference))

    @contextmanager
    def pool_of_filesystem(self, reference: str) -> Iterator[tuple[Pool, str]]:
        """Open the pool of a filesystem's reference for the block, and give the filesystem's name with it."""
        pool_reference, name = split_image_reference(reference, "a filesystem")
        with self.pool(pool_reference) as pool:
            yield pool, name

    def prompt(self) -> Prompt | None:
        """Give the way to ask for a passphrase; None where nobody sits at the terminal."""
        # The question goes to the terminal itself, so data may well come in by a pipe.
        return ask_passphrase if sys.stdin.isatty() or sys.stderr.isatty() else None


def ask_passphrase(text: str) -> str:
    """Ask for a passphrase on the terminal, without showing it."""
    answer: str = click.prompt(text, hide_input=True, err=True)
    return answer
