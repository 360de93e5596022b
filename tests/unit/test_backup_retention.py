"""Which backups a policy keeps, jobs of the configuration file, and the units that run them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.backup.forget import judge
from core.backup.jobs import find_job, read_jobs, units
from core.backup.retention import Policy, kept
from core.errors import NotFoundError, UsageError
from tests.unit.backup_world import History, vault_world

CONFIG = Path("/etc/blockyard/config.toml")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


HISTORY = {
    name: at(text)
    for name, text in {
        b"a": "2024-12-30T10:00:00",  # week 1 of 2025
        b"b": "2025-01-02T09:00:00",
        b"c": "2025-06-15T09:00:00",
        b"d": "2026-01-01T00:30:00",  # week 1 of 2026
        b"e": "2026-01-01T00:50:00",
        b"f": "2026-01-01T23:59:59",
        b"g": "2026-01-02T00:00:00",
        b"h": "2026-02-01T12:00:00",
    }.items()
}


@pytest.mark.parametrize(
    ("policy", "stays"),
    [
        (Policy(), ""),
        (Policy(last=1), "h"),
        (Policy(last=3), "fgh"),
        (Policy(last=99), "abcdefgh"),
        (Policy(hourly=3), "fgh"),
        (Policy(hourly=4), "efgh"),
        (Policy(daily=2), "gh"),
        (Policy(daily=3), "fgh"),
        (Policy(weekly=2), "gh"),
        (Policy(weekly=4), "bcgh"),
        (Policy(monthly=2), "gh"),
        (Policy(monthly=4), "bcgh"),
        (Policy(yearly=2), "ch"),
        (Policy(yearly=9), "ach"),
        (Policy(last=1, yearly=3), "ach"),
        (Policy(daily=1, monthly=2), "gh"),
    ],
)
def test_a_policy_keeps_the_newest_of_each_period_that_has_one(policy: Policy, stays: str) -> None:
    assert "".join(sorted(name.decode() for name in kept(policy, HISTORY.items()))) == stays


def test_each_backup_that_stays_says_for_which_rules() -> None:
    found = kept(Policy(last=1, daily=2, yearly=1), HISTORY.items())
    assert found == {b"h": ("last", "daily", "yearly"), b"g": ("daily",)}


@given(
    st.lists(st.integers(0, 1 << 32), unique=True, max_size=40),
    st.builds(Policy, *[st.integers(0, 5)] * 6),
    st.randoms(),
)
def test_a_policy_keeps_the_newest_whatever_the_order_and_applied_again_forgets_nothing_more(
    times: list[int], policy: Policy, shuffle
) -> None:
    backups = [(each.to_bytes(8, "big"), each) for each in times]
    found = kept(policy, backups)
    if backups and not policy.says_nothing():
        assert max(times).to_bytes(8, "big") in found
    again = [each for each in backups if each[0] in found]
    shuffle.shuffle(again)
    assert kept(policy, again).keys() == found.keys()


def test_each_source_is_judged_by_itself_and_no_policy_at_all_is_refused() -> None:
    world = vault_world()
    for number in (1, 2):
        source = History(b"x", f"disk{number}", number)
        world.run(source)
        world.run(source)
    verdicts = judge(world.catalog(), Policy(last=1))
    assert sorted((each.manifest.source.name, each.keep) for each in verdicts) == [
        ("disk1", False), ("disk1", True), ("disk2", False), ("disk2", True),
    ]  # fmt: skip
    assert len(judge(world.catalog(), Policy(last=1), "disk2")) == 2
    with pytest.raises(UsageError, match="keep"):
        judge(world.catalog(), Policy())
    with pytest.raises(UsageError):
        Policy(daily=-1)


def test_a_job_is_read_from_its_table_in_either_spelling() -> None:
    (job,) = read_jobs(
        CONFIG,
        {"nightly": {"source": "main/disk", "target": "vault", "schedule": "03:00", "keep-daily": 7, "keep_last": 2,
                     "compression": "zstd:9", "chunker": "cdc", "prune": True}},
    )  # fmt: skip
    assert (job.source, job.target, job.schedule, job.prune) == ("main/disk", "vault", "03:00", True)
    assert job.policy == Policy(last=2, daily=7)
    assert (str(job.compression), job.chunker) == ("zstd:9", "cdc")
    assert find_job([job], "nightly") is job
    with pytest.raises(NotFoundError, match="nightly"):
        find_job([job], "weekly")


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"target": "v"}, "source"),
        ({"source": "s"}, "target"),
        ({"source": "s", "target": "v", "keep-daily": "7"}, "keep_daily"),
        ({"source": "s", "target": "v", "keep-daily": True}, "keep_daily"),
        ({"source": "s", "target": "v", "kep": 1}, "kep"),
        ({"source": "s", "target": "v", "schedule": "a\nExecStart=b"}, "schedule"),
        ({"source": "s", "target": "v", "compression": "zip"}, "zip"),
        ({"source": "s", "target": "v", "chunker": "rabin"}, "rabin"),
        ("text", "table"),
    ],
)
def test_a_job_that_is_not_understood_is_refused_by_name(table: object, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        read_jobs(CONFIG, {"nightly": table})


def test_a_job_gives_a_service_and_a_timer() -> None:
    (job,) = read_jobs(CONFIG, {"n": {"source": "s", "target": "v", "schedule": "Mon 03:00"}})
    made = units(job, "/opt/black yard/blockyard", CONFIG)
    assert set(made) == {"blockyard-backup-n.service", "blockyard-backup-n.timer"}
    assert "OnCalendar=Mon 03:00\n" in made["blockyard-backup-n.timer"]
    service = made["blockyard-backup-n.service"]
    assert 'ExecStart="/opt/black yard/blockyard" --config /etc/blockyard/config.toml backup run --job n\n' in service
    assert "SuccessExitStatus=3" in service
