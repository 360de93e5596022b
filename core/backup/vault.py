"""The vault of a pool: a volume of its own that holds the chunks and manifests of backups. Made on first use; stateless; any thread.

Objects below its prefix (docs/format.md, "Vault"): `pack/<run>/<number>`, `index/<run>-<number>`, `manifest/<id>`, `forgotten/<id>`,
`condemned/<id>`, `reader/<run>`, `vault` (its sealed description).
"""

import contextlib
from dataclasses import dataclass
from typing import Final

from core.crypto.derive import derive_key
from core.crypto.volume import VolumeKeys
from core.errors import AlreadyExistsError, IntegrityError, NotFoundError
from core.format.record import volume_record_keys
from core.pool.names import VolumeKind
from core.pool.pool import Pool
from core.pool.records import RecordStore
from core.pool.volumes import VAULTS, create_volume, load_volume
from core.store.contract import Store
from core.world import World

NAME: Final = ".vault"
"""The name of the vault among the volumes of its pool."""
_CHUNKS_CONTEXT: Final = "blockyard 2026 vault chunks v1"


@dataclass(frozen=True, slots=True)
class VaultNames:
    """Keys of the objects of a vault. `prefix` has no trailing slash."""

    prefix: str

    @property
    def packs(self) -> str:
        """Where packs stand."""
        return f"{self.prefix}/pack/"

    @property
    def indexes(self) -> str:
        """Where index objects stand."""
        return f"{self.prefix}/index/"

    @property
    def manifests(self) -> str:
        """Where manifests stand: a backup is there when its manifest is."""
        return f"{self.prefix}/manifest/"

    @property
    def forgotten(self) -> str:
        """Where the links of forgotten manifests stand."""
        return f"{self.prefix}/forgotten/"

    @property
    def condemned(self) -> str:
        """Where the lists of packs that are to be deleted stand."""
        return f"{self.prefix}/condemned/"

    @property
    def leases(self) -> str:
        """Where runs and readers say that they are at work."""
        return f"{self.prefix}/reader/"

    def packs_of(self, nonce: bytes) -> str:
        """Give the prefix of the packs of one run."""
        return f"{self.packs}{nonce.hex()}/"

    def pack(self, nonce: bytes, number: int) -> str:
        """Give the key of a pack."""
        return f"{self.packs_of(nonce)}{number:08x}"

    def index(self, nonce: bytes, number: int) -> str:
        """Give the key of an index object."""
        return f"{self.indexes}{nonce.hex()}-{number:08x}"

    def pack_of(self, key: str) -> tuple[bytes, int]:
        """Read (run, number) out of the key of a pack."""
        return self._parts(key, self.packs, "/", "pack")

    def index_of(self, key: str) -> tuple[bytes, int]:
        """Read (run, number) out of the key of an index object."""
        return self._parts(key, self.indexes, "-", "index")

    def _parts(self, key: str, prefix: str, separator: str, noun: str) -> tuple[bytes, int]:
        nonce, _, number = key.removeprefix(prefix).partition(separator)
        try:
            if len(nonce) == 32 and len(number) == 8:
                return bytes.fromhex(nonce), int(number, 16)
        except ValueError:
            pass
        raise IntegrityError(f"{key} is no name of a {noun} of a vault: it does not belong here")


@dataclass(frozen=True, slots=True)
class Vault:
    """An open vault."""

    pool: Pool
    volume_id: bytes
    keys: VolumeKeys
    names: VaultNames
    records: RecordStore
    chunk_key: bytes
    """The key of chunk ids: what a chunk is called tells nothing to whoever has not got it."""

    @property
    def store(self) -> Store:
        """The store the vault stands in."""
        return self.pool.store

    @property
    def world(self) -> World:
        """Clocks and randomness."""
        return self.pool.world


def find_vault(pool: Pool) -> Vault | None:
    """Open the vault of a pool; None if it has none yet."""
    found = pool.names.find(NAME)
    if found is None:
        return None
    return _open(pool, pool.names.get(NAME, VolumeKind.VAULT).volume_id)


def open_vault(pool: Pool) -> Vault:
    """Open the vault of a pool; NotFoundError if nothing was ever backed up there."""
    vault = find_vault(pool)
    if vault is None:
        raise NotFoundError(f"the pool at {pool.store.url} holds no backups; `blockyard backup run` makes the first")
    return vault


def open_or_create_vault(pool: Pool) -> Vault:
    """Open the vault of a pool, after making it if there is none. Of two that make it at once both get the same."""
    vault = find_vault(pool)
    if vault is not None:
        return vault
    with contextlib.suppress(AlreadyExistsError):  # somebody was faster
        create_volume(pool, VAULTS, NAME, {})
    return open_vault(pool)


def _open(pool: Pool, volume_id: bytes) -> Vault:
    _, keys, _ = load_volume(pool, VAULTS, NAME, volume_id)
    records = RecordStore(pool.store, volume_record_keys(keys), pool.world)
    chunk_key = derive_key(keys.key, _CHUNKS_CONTEXT, volume_id)
    return Vault(pool, volume_id, keys, VaultNames(VAULTS.prefix(volume_id)), records, chunk_key)
