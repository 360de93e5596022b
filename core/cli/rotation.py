"""`blockyard key …`: changing the keys of pools and volumes, and shutting people out."""

from collections.abc import Sequence
from pathlib import Path

import click

from core.cli.options import PATH, SIZE, json_option, with_session
from core.cli.output import Row, counting_bar, format_time, print_facts, print_json, print_table, progress_bar
from core.cli.session import Session
from core.crypto.slots import DEFAULT_COST, Argon2Cost
from core.errors import UsageError
from core.pool.connect import connect_with_opener, read_passphrase_file
from core.pool.key_files import load_key_file
from core.pool.keyring import drop_slot, rewrap_slot
from core.pool.pool import Pool
from core.pool.rotation import Rotated, rotate_pool
from core.pool.slots import Passphrase, Unlock
from core.pool.volume_keys import rotate_volume_key
from core.units import KIB, format_size
from core.volume.collection.key_usage import KeyStatus, key_status, retire_keys
from core.volume.collection.retirement import WriterRetired, retire_writer


@click.command("rotate-volume")
@click.argument("volume", metavar="POOL/NAME")
@json_option
@with_session
def rotate_volume_verb(session: Session, volume: str, as_json: bool) -> None:
    """Give an image or a filesystem a new key for what will be written.

    Nothing is written anew and nobody has to stop: programs that have it open seal under the new key within a minute. What was written
    before stays under the old key until collecting has carried it over; `rotation-status` shows how much that is.
    """
    with session.pool_of_image(volume) as (opened, name):
        change = rotate_volume_key(opened, name)
    if as_json:
        print_json({"name": name, "key": change.now, "before": change.before})
    else:
        click.echo(
            f"{name} has key {change.now} from now on; what was written under key {change.before} stays under it until it is moved"
        )


@click.command("rotation-status")
@click.argument("volume", metavar="POOL/NAME")
@json_option
@with_session
def rotation_status_verb(session: Session, volume: str, as_json: bool) -> None:
    """Show the keys of an image or a filesystem, and how much is still sealed under each. Looks at every object."""
    with session.pool_of_image(volume) as (opened, name), progress_bar(f"look at {name}") as report:
        status = key_status(opened, name, report)
    _show_status(name, status, as_json)


@click.command("retire")
@click.argument("volume", metavar="POOL/IMAGE")
@click.option("--carry-over", is_flag=True, help="Write anew first what is still under old keys.")
@click.option("--force", is_flag=True, help="Give up a journal that was left on another machine.")
@json_option
@with_session
def retire_verb(session: Session, volume: str, carry_over: bool, force: bool, as_json: bool) -> None:
    """Take away the old keys of an image that nothing needs any more. Nobody may have it open for writing.

    A snapshot or a clone keeps the keys of what it needs.
    """
    with session.pool_of_image(volume) as (opened, name), progress_bar(f"look at {name}") as report:
        retired = retire_keys(opened, name, report, carry_over=carry_over, force=force)
    left = sorted(each.key_id for each in retired.status.keys if not each.newest and each.key_id not in retired.gone)
    if as_json:
        print_json({"name": name, "gone": [str(each) for each in retired.gone], "needed": [str(each) for each in left]})
        return
    click.echo(f"removed key {', '.join(map(str, retired.gone))} of {name}" if retired.gone else "no key could go")
    if left:
        click.echo(f"key {', '.join(map(str, left))} is still needed; `blockyard key rotation-status` shows what for")


@click.command("rotate-pool")
@click.argument("pool", metavar="POOL")
@click.option("--with-key-file", type=PATH, multiple=True, help="Key file of a slot that an older program made.")
@click.option("--with-passphrase-file", type=PATH, multiple=True, help="The same for a passphrase.")
@click.option("--leave-out", metavar="SLOT", multiple=True, help="A slot of an older program that is to open no more.")
@json_option
@with_session
def rotate_pool_verb(
    session: Session,
    pool: str,
    with_key_file: tuple[Path, ...],
    with_passphrase_file: tuple[Path, ...],
    leave_out: tuple[str, ...],
    as_json: bool,
) -> None:
    """Give the pool a new key, or finish a change that was cut short. Rewrites small records and no data. Needs an owner's key.

    The key files and passphrases of everybody who was not removed go on opening the pool; what was removed does not, even with a copy of
    what was in it.
    """
    openers: list[Unlock] = [load_key_file(path) for path in with_key_file]
    openers += [read_passphrase_file(path) for path in with_passphrase_file]
    opened, own = connect_with_opener(session.settings(pool), session.world, session.prompt())
    try:
        with counting_bar("move records") as report:
            rotated = rotate_pool(opened, [own, *openers], leave_out=leave_out, report=report)
    finally:
        opened.close()
    if as_json:
        print_json(_rotated_row(rotated))
    else:
        _show_rotated(rotated)


@click.command("rewrap")
@click.argument("pool", metavar="POOL")
@click.option("--memory", type=SIZE, help="Memory that stretching the passphrase takes, such as 64M.")
@click.option("--passes", type=int, help="Passes over that memory.")
@json_option
@with_session
def rewrap_verb(session: Session, pool: str, memory: int | None, passes: int | None, as_json: bool) -> None:
    """Wrap the slot that opens the pool anew: fresh salt, another cost of the passphrase. The same thing opens it afterwards."""
    opened, opener = connect_with_opener(session.settings(pool), session.world, session.prompt())
    try:
        slot = rewrap_slot(opened, _with_cost(opener, memory, passes))
    finally:
        opened.close()
    if as_json:
        print_json({"slot": slot.id, "version": slot.version})
    else:
        click.echo(f"wrapped the slot {slot.id} anew")


@click.command("revoke")
@click.argument("pool", metavar="POOL")
@click.argument("slot")
@click.option("--volumes", is_flag=True, help="Give every image and filesystem a new key as well.")
@json_option
@with_session
def revoke_verb(session: Session, pool: str, slot: str, volumes: bool, as_json: bool) -> None:
    """Shut somebody out for good: remove their slot, end what their key signs, give the pool a new key. Needs an owner's key.

    Images that they have open for writing are taken over. They may have copied keys of volumes while they could: --volumes sees to it that
    those open nothing that is written from now on.
    """
    with session.pool(pool) as opened:
        dropped = drop_slot(opened, slot)
        writer = _end_writer(opened, dropped.writer_id)
        with counting_bar("move records") as report:
            rotated = rotate_pool(opened, report=report)
        changed = (
            [rotate_volume_key(opened, each.name).volume.name for each in opened.names.everything()] if volumes else []
        )
    if as_json:
        print_json(
            {
                "slot": dropped.id,
                "role": dropped.role.value,
                **_writer_row(writer),
                **_rotated_row(rotated),
                "volumes": changed,
            }
        )
        return
    click.echo(f"removed the {dropped.role}'s slot {dropped.id}")
    if writer is not None:
        click.echo(f"what its key signs counts no more; {writer.taken_over} images were taken over")
        for name in writer.damaged:
            click.echo(f"{name} could not be taken over: it is damaged", err=True)
    _show_rotated(rotated)
    if changed:
        click.echo(f"gave {len(changed)} volumes new keys")


def _end_writer(opened: Pool, writer_id: bytes | None) -> WriterRetired | None:
    if writer_id is None:
        return None
    with counting_bar("end what the key signs") as report:
        return retire_writer(opened, writer_id, report)


def _with_cost(opener: Unlock, memory: int | None, passes: int | None) -> Unlock:
    if memory is None and passes is None:
        return opener
    if not isinstance(opener, Passphrase):
        raise UsageError("a key file needs no stretching; --memory and --passes are for passphrases")
    kib = DEFAULT_COST.memory_kib if memory is None else memory // KIB
    cost = Argon2Cost(kib, DEFAULT_COST.iterations if passes is None else passes, DEFAULT_COST.lanes)
    return Passphrase(opener.secret, cost)


def _show_status(name: str, status: KeyStatus, as_json: bool) -> None:
    rows: list[Row] = []
    for each in status.keys:
        usage = status.usage[each.key_id]
        rows.append(
            {
                "key": each.key_id,
                "created": format_time(each.created),
                "newest": each.newest,
                "objects": usage.objects,
                "bytes": usage.size_bytes,
                "needed": usage.is_needed,
            }
        )
    old = status.old
    if as_json:
        facts: Row = {
            "name": name,
            "old_objects": old.objects,
            "old_bytes": old.size_bytes,
            "all_bytes": status.size_bytes,
            "movable_bytes": status.movable_bytes,
        }
        print_json([facts, *rows])
        return
    print_table(
        ("", "key", "created", "objects", "stored"),
        [
            (
                "*" if row["newest"] else "",
                str(row["key"]),
                str(row["created"]),
                str(row["objects"]),
                _size(row["bytes"]),
            )
            for row in rows
        ],
        right=("key", "objects", "stored"),
    )
    if len(rows) > 1:
        done = 100 - 100 * old.size_bytes // max(status.size_bytes, 1)
        facts_shown = [("under old keys", f"{old.objects} objects, {format_size(old.size_bytes)}")]
        facts_shown += [("under the newest", f"{done} % of {format_size(status.size_bytes)}")]
        if status.movable_bytes:
            facts_shown += [("to be carried over", f"{format_size(status.movable_bytes)}; `blockyard gc` does it")]
        print_facts(facts_shown)


def _size(value: object) -> str:
    assert isinstance(value, int), "a number of bytes"
    return format_size(value)


def _rotated_row(rotated: Rotated) -> dict[str, int | Sequence[str]]:
    return {
        "pool_key": rotated.key_id,
        "slots": rotated.slots,
        "records": rotated.records,
        "left_out": rotated.left_out,
    }


def _writer_row(writer: WriterRetired | None) -> dict[str, int | Sequence[str]]:
    return {} if writer is None else {"taken_over": writer.taken_over, "damaged": writer.damaged}


def _show_rotated(rotated: Rotated) -> None:
    click.echo(
        f"the pool has key {rotated.key_id} now; {rotated.slots} slots and {rotated.records} records were written anew"
    )
    for slot in rotated.left_out:
        click.echo(f"the slot {slot} was left out and opens the pool no more")


ROTATION_VERBS = (
    rotate_volume_verb,
    rotation_status_verb,
    retire_verb,
    rotate_pool_verb,
    rewrap_verb,
    revoke_verb,
)
