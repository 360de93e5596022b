"""S3, Google Cloud Storage and Azure Blob Storage through obstore's blocking calls. One attempt a call: the retrying
wrapper is around it.

Owns one obstore client, made at the first call because its runtime's threads do not survive a fork; `_lock` guards the
making. Any thread.

Invariants:
1. A put asks the server for absence (`If-None-Match: *` or the cloud's equal). "It is there" is read back and compared,
   so a put whose answer was lost, here or inside the client, recognises itself.
2. A ranged read returns what was asked or raises; short answers never pass.
3. Only words that mean a quota or a full medium are out of space; 503 and every other trouble are not.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, TypeAlias

import obstore
from obstore import exceptions as failures
from obstore.store import AzureStore, GCSStore, S3Store

from core.errors import OutOfSpaceError, StoreError, StoreTimeoutError
from core.limits import STORE_ATTEMPT_S
from core.store.contract import (
    AccessRefusedError,
    Buffer,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectShortError,
    StoreClosedError,
    StoreSpace,
)
from core.store.keys import check_key, check_prefix
from core.store.object_urls import Bucket

_Client: TypeAlias = S3Store | GCSStore | AzureStore

_FULL = re.compile(r"\b507 Insufficient Storage\b|QuotaExceeded|InsufficientStorage|StorageFull")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|ContainerBeingDeleted|bucket does not exist", re.IGNORECASE)
_OUT_OF_RANGE = re.compile(r"\b416 Range|\b416 Requested|InvalidRange|[Ww]anted range|Out of range|Range started")
_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)
_REFUSED = re.compile(
    r"\b401 Unauthorized|\b403 Forbidden|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|AuthenticationFailed"
)
_SECRET = re.compile(r"((?:sig|signature|token|credential|key|se|skoid)=)[^&\s\"]+", re.IGNORECASE)
_REASON_CHARS: Final = 400
_LIST_CHUNK: Final = 1000


class ObjectStore:
    """A store in a bucket or container, below a prefix. See `contract.Store`."""

    def __init__(self, bucket: Bucket) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._prefix = bucket.prefix
        self._lock = threading.Lock()
        self._client: _Client | None = None
        self._bucket_seen = False
        self._closed = False

    def put(self, key: str, data: Buffer) -> None:
        """Put if absent, in one request; what is there already is compared (invariant 1)."""
        path = self._path(key)
        body = bytes(data)
        with self._translated("put", key):
            try:
                obstore.put(self._open(), path, body, mode="create", use_multipart=False)
            except (failures.AlreadyExistsError, failures.PreconditionError):
                self._recognise(key, body)

    def overwrite(self, key: str, data: Buffer) -> None:
        """Put whatever was there."""
        path = self._path(key)
        with self._translated("overwrite", key):
            obstore.put(self._open(), path, bytes(data), mode="overwrite", use_multipart=False)

    def get(self, key: str) -> bytes:
        """Read the whole object in one request."""
        path = self._path(key)
        with self._translated("get", key):
            answer = obstore.get(self._open(), path)
            size_bytes = answer.meta["size"]
            data = answer.bytes().to_bytes()
        return self._exactly(key, data, size_bytes)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Read exactly these bytes in one request."""
        path = self._path(key)
        if length == 0:
            return b""
        with self._translated("get_range", key):
            data = obstore.get_range(self._open(), path, start=offset, length=length).to_bytes()
        return self._exactly(key, data, length)

    def get_tail(self, key: str, length: int) -> tuple[bytes, int]:
        """Read the end: one request where the cloud knows suffix ranges, two on Azure and for an empty object."""
        path = self._path(key)
        if self._bucket.scheme == "s3" and length > 0:
            try:
                with self._translated("get_tail", key):
                    answer = obstore.get(self._open(), path, options={"range": {"suffix": length}})
                    size_bytes = answer.meta["size"]
                    data = answer.bytes().to_bytes()
                return self._exactly(key, data, min(length, size_bytes)), size_bytes
            except ObjectShortError:
                pass  # an empty object has no range at all; its size is asked for below
        info = self.head(key)
        if info is None:
            raise ObjectMissingError(f"{self.url}: get_tail of {key!r} failed: there is no such object")
        length = min(length, info.size_bytes)
        return self.get_range(key, info.size_bytes - length, length), info.size_bytes

    def head(self, key: str) -> ObjectInfo | None:
        """Ask for the object's size."""
        path = self._path(key)
        try:
            with self._translated("head", key):
                return ObjectInfo(key, obstore.head(self._open(), path)["size"])
        except ObjectMissingError:
            if not self._bucket_seen:  # the answer to HEAD has no body that could tell a missing bucket
                next(self._listed("", ""), None)
                self._bucket_seen = True
            return None

    def delete(self, key: str) -> None:
        """Delete; a missing object is fine."""
        path = self._path(key)
        try:
            with self._translated("delete", key):
                obstore.delete(self._open(), path)
        except ObjectMissingError:
            return

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield page by page, as the server sorts them; a server that does not sort is refused."""
        check_prefix(prefix)
        self._check_open()
        return self._listed(prefix, after)

    def space(self) -> StoreSpace:
        """Buckets have no size."""
        self._check_open()
        return StoreSpace(None, None)

    def close(self) -> None:
        """Drop the client and its connections."""
        self._closed = True
        self._client = None

    def _listed(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        # obstore's prefixes end at a slash, so the last part of ours is compared here.
        top = (self._prefix + prefix).rpartition("/")[0]
        offset = self._prefix + after if after else None
        last = ""
        with self._translated("list", prefix):
            pages = iter(obstore.list(self._open(), top or None, offset=offset, chunk_size=_LIST_CHUNK))
        while True:
            with self._translated("list", prefix):
                page = next(pages, None)
            if page is None:
                return
            for entry in page:
                key = entry["path"].removeprefix(self._prefix)
                if key <= last:
                    raise StoreError(f"{self.url}: the store lists {key!r} after {last!r}; a pool needs byte order")
                last = key
                if key.startswith(prefix) and key > after:
                    yield ObjectInfo(key, entry["size"])
                elif key > prefix and not key.startswith(prefix):
                    return

    def _recognise(self, key: str, body: bytes) -> None:
        """Return if the object under `key` is `body`; else it is somebody else's (invariant 1)."""
        try:
            there = self.get(key)
        except ObjectMissingError as cause:
            raise StoreError(
                f"{self.url}: put of {key!r}: refused for an object that is not there; try again"
            ) from cause
        if there != body:
            raise ObjectExistsError(f"{self.url}: put of {key!r}: another object is there")

    def _exactly(self, key: str, data: bytes, length: int) -> bytes:
        if len(data) != length:
            raise ObjectShortError(f"{self.url}: {key!r} gave {len(data)} bytes where {length} were asked for")
        return data

    def _path(self, key: str) -> str:
        self._check_open()
        return self._prefix + check_key(key)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"{self.url}: the store is closed")

    def _open(self) -> _Client:
        client = self._client
        if client is None:
            with self._lock:
                self._check_open()
                client = self._client = self._client or _connect(self._bucket)
        return client

    @contextmanager
    def _translated(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (failures.BaseError, OSError, ValueError) as cause:
            raise self._error(operation, key, cause) from None  # the cause's text may hold a signature

    def _error(self, operation: str, key: str, cause: Exception) -> StoreError:
        text = " ".join(str(cause).split())
        reason = _SECRET.sub(r"\1...", text)[:_REASON_CHARS]
        message = f"{self.url}: {operation} of {key!r} failed: "
        if _NO_BUCKET.search(text):
            return AccessRefusedError(f"{message}there is no bucket {self._bucket.name!r}; create it first")
        if isinstance(cause, failures.NotFoundError | FileNotFoundError):
            return ObjectMissingError(f"{message}there is no such object")
        if _FULL.search(text):
            return OutOfSpaceError(f"{message}the store is full or over its quota; free space and go on")
        if isinstance(cause, failures.PermissionDeniedError | failures.UnauthenticatedError) or _REFUSED.search(text):
            return AccessRefusedError(f"{message}access refused; check the credentials: {reason}")
        if operation.startswith("get") and _OUT_OF_RANGE.search(text):
            return ObjectShortError(f"{message}the object is shorter than that")
        if _TIMED_OUT.search(text):
            return StoreTimeoutError(f"{message}no answer in {STORE_ATTEMPT_S:g} s")
        return StoreError(message + reason)


def _connect(bucket: Bucket) -> _Client:
    options: obstore.store.ClientConfig = {
        "allow_http": bucket.allow_http,
        "timeout": timedelta(seconds=STORE_ATTEMPT_S),
        "connect_timeout": timedelta(seconds=STORE_ATTEMPT_S),
        "user_agent": "blockyard",
    }
    # Retrying is the wrapper's business, which knows the deadline.
    once: obstore.store.RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=STORE_ATTEMPT_S)}
    settings = dict(bucket.settings)
    if bucket.scheme == "s3":
        return S3Store(bucket.name, config=settings, client_options=options, retry_config=once)  # type: ignore[arg-type]
    if bucket.scheme == "gs":
        return GCSStore(bucket.name, config=settings, client_options=options, retry_config=once)  # type: ignore[arg-type]
    return AzureStore(bucket.name, config=settings, client_options=options, retry_config=once)  # type: ignore[arg-type]
