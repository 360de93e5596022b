"""Two who remove an image at once, and a clone that is made of it meanwhile: the word of one is not taken back by the other."""

from core.errors import LockedError
from core.pool.pool import Pool, open_pool
from core.volume.generations.clones import create_clone
from core.volume.generations.snapshots import create_snapshot
from core.volume.images import create_image, image_names
from core.volume.removal import REMOVING, remove_image
from tests.helpers import HookedStore
from tests.unit.pool_world import Made, make_pool


def elsewhere(made: Made, moment: tuple[str, str, str], then) -> Pool:
    """Open the pool on another machine, where `then` happens once: when a call with such a key comes to this point."""
    store = HookedStore(made.store)
    pool = open_pool(store, made.key_file, made.world)
    left = [then]

    def hook(when: str, method: str, key: str) -> None:
        if (when, method) == moment[:2] and moment[2] in key and left:
            left.pop()()

    store.hook = hook
    return pool


def test_a_clone_is_refused_while_one_of_two_removers_has_looked_for_clones_before_it() -> None:
    made = make_pool()
    create_image(made.pool, "disk", 1 << 20)
    create_snapshot(made.pool, "disk", "old")
    refused = []

    def gives_up() -> None:
        try:
            remove_image(made.pool, "disk", force=True)
        except LockedError as error:
            refused.append(error)

    def clones() -> None:
        try:
            create_clone(elsewhere(made, ("after", "put", "/child/"), gives_up), "disk", "old", "copy")
        except LockedError as error:
            refused.append(error)

    remove_image(elsewhere(made, ("after", "list", "/child/"), clones), "disk", force=True)
    assert "has 1 clones" in str(refused[0])
    assert "is being removed" in str(refused[1])
    assert image_names(made.pool) == []
    assert not list(made.store.list(REMOVING)) and not list(made.store.list("image/"))
