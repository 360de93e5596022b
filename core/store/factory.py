"""From a URL to an open store, wrapped with what its kind needs."""

from urllib.parse import unquote, urlsplit

from core.errors import UsageError
from core.store.contract import Store
from core.store.file import FileStore
from core.store.memory import shared_memory_store


def open_store(url: str) -> Store:
    """Open the store that `url` names; nothing is contacted before its first call. UsageError if it makes no sense.

    `file:///directory`, `memory://name` (shared within the process).
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{url!r}: write file:// and an absolute path, such as file:///srv/pool")
        return FileStore(unquote(parts.path))
    if parts.scheme == "memory":
        return shared_memory_store(parts.netloc + parts.path)
    raise UsageError(f"{url!r} is not a store; known are file://, memory://, s3://, gs://, az:// and rados://")
