"""How far the signature of a backup can be trusted after its writer was retired. Stateless; any thread.

History is never signed again, so what a retired writer signed stays readable, and its signature alone does not tell when it was made. A
time in it that is later than the retirement proves that it was made after: honest programs of theirs stop. An earlier one proves nothing,
since the writer set it. So:

1. What says itself that it is later is refused: it is never restored, and nothing is built on it.
2. What says that it is earlier is told and can be restored. No later backup is built on it: the next one of that source reads it whole,
   under a key that counts, and from there on nothing rests on what a retired writer said.
"""

from enum import Enum

from core import limits
from core.backup.catalog import Catalog
from core.backup.manifest import Manifest
from core.backup.vault import Vault
from core.errors import IntegrityError


class Standing(Enum):
    """What is known of who signed a backup; the value is how people read it."""

    ACTIVE = "active"
    RETIRED = "retired"
    LATE = "after retirement"


def standing(vault: Vault, manifest: Manifest) -> Standing:
    """Say what is known of who signed a backup. Clocks may be apart by `limits.CLOCKS_APART_S` before one is called late."""
    retired_s = vault.keys.verifiers.retired_at(manifest.writer_id)
    if retired_s is None:
        return Standing.ACTIVE
    return Standing.LATE if manifest.created > retired_s + limits.CLOCKS_APART_S else Standing.RETIRED


def refuse_late(vault: Vault, manifest: Manifest) -> Standing:
    """Give the standing of a backup that is to be restored; IntegrityError if it was signed after its writer was retired (1)."""
    found = standing(vault, manifest)
    if found is Standing.LATE:
        raise IntegrityError(
            f"backup {manifest.key_part} is signed by {manifest.writer_id.hex()}, who had been retired before it was made: it is forged. "
            "Name another backup by its id; `blockyard backup forget` removes this one"
        )
    return found


def to_build_on(vault: Vault, catalog: Catalog) -> Catalog:
    """Give the backups that a new one may come after (2)."""
    active = tuple(each for each in catalog.manifests if standing(vault, each) is Standing.ACTIVE)
    return Catalog(active, catalog.forgotten)
