"""The NBD front door: an nbdkit plugin that serves the images of a pool, and kernel devices on top of it."""

from importlib import metadata


def version() -> str:
    """Give the installed version; a checkout that was never installed has none."""
    try:
        return metadata.version("blockyard")
    except metadata.PackageNotFoundError:
        return "unknown"
