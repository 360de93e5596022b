"""`blockyard image`: which commands it has."""

import click

from core.cli.lazy import LazyGroup


@click.group(
    cls=LazyGroup,
    places={
        "children": "core.cli.clones:children",
        "create": "core.cli.images:create",
        "diff": "core.cli.streams:diff",
        "du": "core.cli.images:du",
        "export": "core.cli.transfer:export",
        "export-diff": "core.cli.streams:export_diff",
        "flatten": "core.cli.collection:flatten",
        "import": "core.cli.transfer:import_",
        "import-diff": "core.cli.streams:import_diff",
        "info": "core.cli.images:info",
        "ls": "core.cli.images:list_",
        "mv": "core.cli.images:mv",
        "resize": "core.cli.images:resize",
        "rm": "core.cli.images:rm",
    },
)
def image() -> None:
    """Make, list, copy and remove images."""
