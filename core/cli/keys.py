"""`blockyard key …` (and `blockyard pool key …`): the slots that open a pool."""

from collections.abc import Callable
from pathlib import Path

import click

from core.cli.openers import NewSlot, ask_new_passphrase, new_slot_options
from core.cli.options import PATH, json_option, with_session
from core.cli.output import Row, format_time, print_json, print_table
from core.cli.rotation import ROTATION_VERBS
from core.cli.session import Session
from core.config import PoolSettings
from core.crypto.slots import SlotKind
from core.errors import UsageError
from core.pool.key_files import KeyFile, default_key_path, replace_key_file, save_key_file
from core.pool.keyring import add_slot, drop_slot, rotate_slot, slots_of
from core.pool.keys import Role
from core.pool.pool import Pool
from core.pool.slots import SlotInfo

_KINDS = {SlotKind.KEY_FILE: "key file", SlotKind.PASSPHRASE: "passphrase"}


@click.group()
def key() -> None:
    """Manage the key slots of a pool, and change the keys of pools and volumes. None of it rewrites data."""


for _verb in ROTATION_VERBS:
    key.add_command(_verb)


@key.command("ls")
@click.argument("pool", metavar="POOL")
@json_option
@with_session
def list_(session: Session, pool: str, as_json: bool) -> None:
    """List the key slots; `*` marks the one that opened the pool."""
    with session.pool(pool) as opened:
        rows = [_row(each, opened) for each in slots_of(opened)]
    if as_json:
        print_json(rows)
        return
    columns = ("slot", "kind", "role", "created", "label")
    print_table(("", *columns), [("*" if row["open"] else "", *(str(row[name]) for name in columns)) for row in rows])


@key.command()
@click.argument("pool", metavar="POOL")
@click.option("--role", type=click.Choice([each.value for each in Role]), default="owner", show_default=True)
@click.option("--label", default="", help="What to call the slot.")
@json_option
@new_slot_options
@with_session
def add(session: Session, new: NewSlot, pool: str, role: str, label: str, as_json: bool) -> None:
    """Add a key slot. Needs an owner's key."""
    passphrase = new.passphrase()
    if passphrase is None and new.key_file is None:
        raise UsageError("say what opens the new slot: --new-key-file, --new-passphrase, -file or -fd")
    with session.pool(pool) as opened:
        slot = add_slot(opened, passphrase or _saver(new.key_file), Role.parse(role), label)
        _report(slot, opened, as_json, f"added the {role}'s slot {slot.id}")


@key.command()
@click.argument("pool", metavar="POOL")
@click.argument("file", type=PATH)
@click.option("--reader", is_flag=True, required=True, help="Export a key that reads and cannot write or forge.")
@click.option("--label", default="", help="What to call the slot.")
@json_option
@with_session
def export(session: Session, pool: str, file: Path, reader: bool, label: str, as_json: bool) -> None:
    """Write a new key file for somebody who is only to read. Needs an owner's key."""
    assert reader, "click requires it"
    with session.pool(pool) as opened:
        slot = add_slot(opened, _saver(file), Role.READER, label)
        _report(slot, opened, as_json, f"wrote a reader's key to {file}; its slot is {slot.id}")


@key.command()
@click.argument("pool", metavar="POOL")
@click.argument("slot")
@with_session
def rm(session: Session, pool: str, slot: str) -> None:
    """Remove a key slot: what opened it opens the pool no more. Needs an owner's key.

    Quick, and enough for a key that nobody else ever had. `revoke` also shuts out who kept a copy of what was in it.
    """
    with session.pool(pool) as opened:
        dropped = drop_slot(opened, slot)
    click.echo(f"removed the {dropped.role}'s slot {dropped.id}")


@key.command()
@click.argument("pool", metavar="POOL")
@json_option
@new_slot_options
@with_session
def rotate(session: Session, new: NewSlot, pool: str, as_json: bool) -> None:
    """Replace the key that opened the pool: a new key file in its place, or a new passphrase."""
    passphrase = new.passphrase()
    settings = session.settings(pool)
    with session.pool(pool) as opened:
        if passphrase is None and new.key_file is None and opened.slot_kind is SlotKind.PASSPHRASE:
            passphrase = ask_new_passphrase()
        if passphrase is not None:
            slot = rotate_slot(opened, passphrase)
        elif new.key_file is not None:
            slot = rotate_slot(opened, _saver(new.key_file))
        else:
            slot = _rotate_key_file(opened, settings)
        _report(slot, opened, as_json, f"the key was replaced; its slot is {slot.id} now")


def _rotate_key_file(opened: Pool, settings: PoolSettings) -> SlotInfo:
    """Write the new key file aside, and put it in the old one's place only once its slot is there."""
    path = settings.key_file or default_key_path(opened.id)
    aside = path.with_name(path.name + ".rotating")

    def save(made: KeyFile) -> None:
        save_key_file(aside, made, replace=True)

    def put_in_place() -> None:
        replace_key_file(aside, path)

    return rotate_slot(opened, save, put_in_place)


def _saver(path: Path | None) -> Callable[[KeyFile], None]:
    assert path is not None, "asked for by an option"
    return lambda made: save_key_file(path, made)


def _row(slot: SlotInfo, opened: Pool) -> Row:
    return {
        "slot": slot.id,
        "kind": _KINDS[slot.kind],
        "role": slot.role.value,
        "created": format_time(slot.created),
        "label": slot.label,
        "open": slot.id == opened.slot_id,
    }


def _report(slot: SlotInfo, opened: Pool, as_json: bool, text: str) -> None:
    if as_json:
        print_json(_row(slot, opened))
    else:
        click.echo(text)
