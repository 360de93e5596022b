"""Key files: the secret that opens one slot, in a file that only its owner reads.

A file is written aside with mode 0600, synced and put under its name in one step, so that no moment shows half a key.
"""

import base64
import binascii
import contextlib
import os
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core import limits
from core.config import user_directory
from core.errors import AlreadyExistsError, KeyRefusedError, NotFoundError, UsageError, WorldError
from core.pool.keys import POOL_ID_BYTES, Role

SECRET_BYTES: Final = 32
SLOT_ID_BYTES: Final = 8
_HEAD: Final = "# Blockyard key file. Whoever can read it opens the pool: keep it as you keep a password.\n"


@dataclass(frozen=True, repr=False, slots=True)
class KeyFile:
    """What a key file holds: which pool and slot, the role for people to see, and the slot's secret."""

    pool_id: bytes
    slot_id: str
    role: Role
    secret: bytes

    def to_text(self) -> str:
        """Give the file's text (TOML)."""
        return (
            f"{_HEAD}version = 1\n"
            f'pool = "{self.pool_id.hex()}"\n'
            f'slot = "{self.slot_id}"\n'
            f'role = "{self.role}"\n'
            f'secret = "{base64.b64encode(self.secret).decode()}"\n'
        )

    @classmethod
    def from_text(cls, text: str, path: Path) -> "KeyFile":
        """Read the file's text; KeyRefusedError naming the file, never quoting it."""
        refused = KeyRefusedError(f"{path} is not a Blockyard key file, or was damaged")
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise refused from None
        pool, slot, role, secret = (values.get(name) for name in ("pool", "slot", "role", "secret"))
        if values.get("version") != 1 or not (
            isinstance(pool, str) and isinstance(slot, str) and isinstance(role, str) and isinstance(secret, str)
        ):
            raise refused
        try:
            found = cls(bytes.fromhex(pool), slot, Role(role), base64.b64decode(secret, validate=True))
            bytes.fromhex(slot)
        except (ValueError, binascii.Error):
            raise refused from None
        sizes = (len(found.pool_id), len(found.secret), len(found.slot_id))
        if sizes != (POOL_ID_BYTES, SECRET_BYTES, SLOT_ID_BYTES * 2):
            raise refused
        return found


def default_key_path(pool_id: bytes) -> Path:
    """Give where the user's key file for a pool stands."""
    return user_directory() / "keys" / f"{pool_id.hex()}.key"


def load_key_file(path: Path) -> KeyFile:
    """Read a key file. NotFoundError if it is not there, KeyRefusedError if others may read it or it is no key file."""
    data = read_private_file(path, "key file")
    try:
        return KeyFile.from_text(data.decode(), path)
    except UnicodeDecodeError:
        raise KeyRefusedError(f"{path} is not a Blockyard key file, or was damaged") from None


def read_private_file(path: Path, what: str) -> bytes:
    """Read a small file that holds a secret. A regular file that group or others may read is refused."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise KeyRefusedError(
                    f"the {what} {path} can be read by others (mode {stat.S_IMODE(mode):04o}); run `chmod 600 {path}`"
                )
            data = file.read(limits.RECORD_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {what} {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from error
    if len(data) > limits.RECORD_BYTES:
        raise UsageError(f"the {what} {path} is larger than {limits.RECORD_BYTES} bytes; it is something else")
    return data


def save_key_file(path: Path, key: KeyFile, *, replace: bool = False) -> None:
    """Write a key file with mode 0600, durable on return. Without `replace`, a name that is taken is refused."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.to_text())
            file.flush()
            os.fsync(file.fileno())
        if replace:
            aside.replace(path)
        else:
            path.hardlink_to(aside)
            aside.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        aside.unlink(missing_ok=True)
        raise AlreadyExistsError(f"{path} is there already; move it away or name another file") from None
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise WorldError(f"cannot write the key file {path}: {error.strerror}") from error


def replace_key_file(aside: Path, path: Path) -> None:
    """Put a key file that was saved aside in the place of another, in one step; durable on return."""
    try:
        aside.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise WorldError(f"cannot put {aside} in the place of {path}: {error.strerror}; do it by hand") from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
