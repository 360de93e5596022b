"""From a URL to an open store, wrapped with what its kind needs."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from core.config import user_state_directory
from core.errors import UsageError
from core.limits import MIRROR_DEADLINE_S
from core.store.contract import Store
from core.store.file import FileStore
from core.store.keys import check_key
from core.store.memory import shared_memory_store
from core.store.mirror import mirrored
from core.store.mirror_backlog import FileBacklog
from core.store.object_urls import parse_bucket_url
from core.store.retrying import RetryingStore, RetryPolicy, StoreObserver, Unobserved

_CEPH_CONFIGURATION = "/etc/ceph/ceph.conf"


def open_store(
    url: str,
    *,
    environment: Mapping[str, str] = os.environ,
    policy: RetryPolicy | None = None,
    observer: StoreObserver | None = None,
    mirror: str | None = None,
    backlog_directory: Path | None = None,
) -> Store:
    """Open the store that `url` names; nothing is contacted before its first call. UsageError if it makes no sense.

    `file:///directory`, `memory://name` (shared within the process), `s3://bucket/prefix`, `gs://bucket/prefix`,
    `az://container/prefix` (options in `object_urls`), `rados://pool/prefix?conf=FILE&user=NAME`. Stores behind a network
    come with deadline, retries and measurement around them; local ones need none and stay appendable.

    `mirror` is the URL of a second store that gets a copy of everything (core.store.mirror); what it misses is noted below
    `backlog_directory`, the user's own if None.
    """
    if mirror is not None:
        first = open_store(url, environment=environment, policy=policy, observer=observer)
        second = open_store(mirror, environment=environment, policy=RetryPolicy(deadline_s=MIRROR_DEADLINE_S))
        directory = backlog_directory or user_state_directory() / "mirror"
        return mirrored(first, second, FileBacklog(directory, first.url, second.url))
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return _file_store(url)
    if scheme == "memory":
        return shared_memory_store(url.removeprefix("memory://"))
    backend = _REMOTE.get(scheme)
    if backend is None:
        raise UsageError(f"{url!r} is not a store; known are file://, memory://, s3://, gs://, az:// and rados://")
    return RetryingStore(backend(url, environment), policy or RetryPolicy(), observer or Unobserved())


def _file_store(url: str) -> Store:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query:
        raise UsageError(f"{url!r}: write file:// and an absolute path, such as file:///srv/pool")
    return FileStore(unquote(parts.path))


def _bucket_store(url: str, environment: Mapping[str, str]) -> Store:
    home = Path(environment.get("HOME", "/"))
    bucket = parse_bucket_url(url, environment, home)
    # Imported here and not above: local pools should not pay for the library.
    store: Store = importlib.import_module("core.store.object_store").ObjectStore(bucket)
    return store


def _rados_store(url: str, environment: Mapping[str, str]) -> Store:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    configuration = options.pop("conf", environment.get("CEPH_CONF", _CEPH_CONFIGURATION))
    user = options.pop("user", "admin")
    if options:
        raise UsageError(f"rados:// takes no option {min(options)!r}; it takes conf and user")
    prefix = unquote(parts.path).strip("/")
    if not parts.netloc or not prefix:
        raise UsageError("write rados://POOL/PREFIX; the prefix keeps pools of one Ceph pool apart")
    module = importlib.import_module("core.store.rados")
    store: Store = module.RadosStore(module.RadosPlace(parts.netloc, check_key(prefix), configuration, user))
    return store


_REMOTE: Mapping[str, Callable[[str, Mapping[str, str]], Store]] = {
    "s3": _bucket_store,
    "gs": _bucket_store,
    "az": _bucket_store,
    "rados": _rados_store,
}
