"""A pool damaged at random: scrub finds every damage, a mirror mends it to the byte, and where it cannot, scrub says so."""

import random
import re
from pathlib import Path

import pytest

from tests.helpers import stored_bytes
from tests.unit.scrub_world import Damage, Objects, World, fill, make_pool, open_on, random_damage

DAMAGES = 100
CHUNK = 25
NEEDS_A_MIRROR = (
    # What loses nothing, or nothing that anybody else tells of: without another copy there is nothing to hold it against.
    r"(name|image/[0-9a-f]{32}/snapshot)/.* replaced by an older version of itself",
    r".*/snapshot/.* deleted",
    r".*/metadata/.* deleted",
    r"vault/.* deleted",  # `blockyard backup verify` follows the manifests
    r".*/checkpoint/.*/root deleted",
    r"image/{disk}/log/000000000000080[567] deleted",  # behind the last checkpoint, where a log may end anywhere
)


def is_excused(good: World, damage: Damage) -> bool:
    disk = good.pool.names.get("disk").volume_id.hex()
    return any(re.fullmatch(each.replace("{disk}", disk), damage.text) for each in NEEDS_A_MIRROR)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_pool(tmp_path_factory.mktemp("notes"))
    fill(world, tmp_path_factory.mktemp("fork"))
    return world


@pytest.fixture(scope="module")
def objects(good: World) -> Objects:
    return stored_bytes(good.first)


def damaged(good: World, objects: Objects, damage: Damage, directory: Path, mirror: Objects | None = None) -> World:
    """Open the pool, and damage it then: a gateway that runs for weeks meets it so."""
    world = open_on(objects, objects if mirror is None else mirror, good.key_file, directory)
    damage.apply(world.first._objects)
    return world


def test_a_pool_that_is_well_is_clean_and_its_mirror_is_the_same(good: World, objects: Objects, tmp_path: Path) -> None:
    assert stored_bytes(good.second) == objects
    world = open_on(objects, objects, good.key_file, tmp_path)
    report = world.scrub()
    assert (report.findings, report.strays, report.ranges) == ([], [], [])
    assert report.objects == len(objects)
    assert report.size_bytes == sum(map(len, objects.values()))
    assert report.volumes == 5


@pytest.mark.parametrize("chunk", range(DAMAGES // CHUNK))
def test_every_damage_is_found_and_mended_from_the_mirror_to_the_byte(
    good: World, objects: Objects, tmp_path: Path, chunk: int
) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        damage = random_damage(random.Random(seed), objects, good.first.versions)
        print(f"seed {seed}: {damage.text}")
        world = damaged(good, objects, damage, tmp_path)
        assert world.first._objects != objects
        assert world.scrub(repair=False).bad or is_excused(good, damage)
        report = world.scrub()
        assert report.bad, "found"
        assert report.clean, [each for each in report.findings if not each.repaired]
        assert world.first._objects == objects, "mended to the byte"


def test_a_mirror_that_is_bad_in_the_same_object_mends_nothing_and_scrub_says_so(
    good: World, objects: Objects, tmp_path: Path
) -> None:
    told = 0
    for seed in range(20):
        damage = random_damage(random.Random(1000 + seed), objects, good.first.versions)
        mirror = dict(objects)
        for key in damage.keys:
            mirror[key] = mirror[key][: len(mirror[key]) // 2]
        world = damaged(good, objects, damage, tmp_path, mirror)
        before = stored_bytes(world.first)
        report = world.scrub()
        if is_excused(good, damage):
            continue
        print(f"seed {1000 + seed}: {damage.text}")
        assert not report.clean
        assert any(not each.repaired and each.remedy for each in report.findings)
        assert stored_bytes(world.first) == before, "nothing is made worse"
        assert stored_bytes(world.second) == mirror
        told += 1
    assert told > 10


def test_many_damages_at_once_are_all_mended(good: World, objects: Objects, tmp_path: Path) -> None:
    for seed in range(2000, 2004):
        source = random.Random(seed)
        world = open_on(objects, objects, good.key_file, tmp_path)
        for _ in range(8):
            damage = random_damage(source, objects, good.first.versions)
            for key in damage.keys:
                world.first._objects.pop(key, None)
            changed = dict(objects)
            damage.apply(changed)
            world.first._objects.update({key: changed[key] for key in damage.keys if key in changed})
        for _ in range(2):  # what hides behind a bad description is met when that was mended
            report = world.scrub()
        assert report.clean
        assert world.first._objects == objects, f"seed {seed}"
