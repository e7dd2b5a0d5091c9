"""Delete old epochs, and never the last complete one.

    mpickpt prune heat.ckpt --keep 1 --dry-run       says what would be deleted
    mpickpt prune heat.ckpt --keep 3                 keeps the three newest complete epochs

Only complete epochs count, in slots and archived; other files are not touched. While a program uses the directory, only
archived epochs can be deleted: the slots belong to the program. `verify` checks whether an epoch is valid.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpickpt.cli import tables
from mpickpt.cli.places import add_json, open_directory
from mpickpt.errors import EpochError, InUseError
from mpickpt.store import SlotInfo, Store
from mpickpt.units import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory")
    parser.add_argument("--keep", type=_at_least_one, required=True, metavar="N", help="how many epochs to keep")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, only say what would be deleted")
    add_json(parser)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def execute(args: argparse.Namespace) -> int:
    """Delete the surplus epochs."""
    store = open_directory(args.directory)
    with _locked(store, args.dry_run) as holder:
        complete = [slot for slot in (*store.slots(), *store.archives()) if slot.complete]
        if not complete:
            raise EpochError(f"There is no complete epoch in {args.directory}, and nothing is deleted.")
        kept = sorted({slot.epoch or 0 for slot in complete})[-args.keep :]
        surplus = [slot for slot in complete if slot.epoch not in kept]
        _refuse_slots(store, holder, surplus)
        freed = sum(slot.path.stat().st_blocks * 512 for slot in surplus)
        if not args.dry_run:
            for slot in surplus:
                store.remove(slot.path)
    if args.json:
        deleted = [{"file": str(slot.path), "epoch": slot.epoch} for slot in surplus]
        tables.print_json({"deleted": deleted, "kept": kept, "bytes": freed, "dry_run": args.dry_run})
        return 0
    verb = "would delete" if args.dry_run else "deleted"
    for slot in surplus:
        print(f"{verb} {slot.path.name}, epoch {slot.epoch}")
    print(f"keeps {_epochs(kept)}; {verb} {_epochs([s.epoch or 0 for s in surplus])}, {human_bytes(freed)}")
    return 0


@contextmanager
def _locked(store: Store, dry_run: bool) -> Iterator[str | None]:
    """Lock the directory; if a program uses it, or for a dry run, do not lock and yield its holder."""
    holder = store.holder()
    if dry_run or holder is not None:
        yield holder
        return
    store.lock()
    try:
        yield None
    finally:
        store.unlock()


def _refuse_slots(store: Store, holder: str | None, surplus: list[SlotInfo]) -> None:
    slots = [slot for slot in surplus if slot.index >= 0]
    if holder is not None and slots:
        names = ", ".join(f"{slot.path.name} (epoch {slot.epoch})" for slot in slots)
        raise InUseError(
            f"The checkpoint directory {store.directory} is in use by {holder}, which needs {names}. Nothing is "
            f"deleted. Wait for it to end, or keep more epochs."
        )


def _epochs(numbers: list[int]) -> str:
    if not numbers:
        return "nothing"
    return f"epoch{'s' if len(set(numbers)) > 1 else ''} {tables.spans(sorted(set(numbers)))}"
