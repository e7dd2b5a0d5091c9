"""List the epochs of a checkpoint directory.

    mpickpt ls heat.ckpt
    mpickpt ls heat.ckpt --json | jq '.epochs[] | select(.state == "complete") | .epoch'

Prints for each slot and each archived epoch: the epoch and the step that it was cut at, whether it is complete on all
ranks, its size, how long ago it was cut, and the number of ranks. While a program runs, also which process it is, and
how far each rank is with the epoch in progress.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from mpickpt.cli import tables
from mpickpt.cli.places import add_json, open_directory
from mpickpt.layout.arrays import RecordState
from mpickpt.store import SlotInfo
from mpickpt.units import human_bytes

BROKEN = ("corrupt", "unreadable", "failed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the table; return 1 if a file is corrupt or a rank could not write."""
    store = open_directory(args.directory)
    holder = store.holder()
    found = [*store.slots(), *store.archives()]
    states = [state_of(slot) for slot in found]
    newest = max(found, key=lambda slot: slot.newest, default=None)
    running = newest if holder and newest and newest.newest and not newest.complete else None
    if running:
        states[found.index(running)] = "in progress"
    if args.json:
        epochs = [_described(slot, state) for slot, state in zip(found, states, strict=True)]
        progress = _progress(running) if running else None
        tables.print_json({"directory": args.directory, "holder": holder, "epochs": epochs, "progress": progress})
    else:
        _print(args.directory, holder, found, states)
        if running:
            print(_sentence(running))
    return 1 if any(state in BROKEN for state in states) else 0


def state_of(slot: SlotInfo) -> str:
    """Return one word for what a slot holds."""
    if slot.complete:
        return "complete"
    if not slot.readable:
        return "unreadable"
    if slot.corrupt:
        return "corrupt"
    if (slot.records["state"] == RecordState.FAILED).any():
        return "failed"
    return "unfinished" if slot.newest else "empty"


def _print(directory: Path, holder: str | None, found: list[SlotInfo], states: list[str]) -> None:
    if found:
        heads = ("file", " epoch", " step", "state", " size", " cut", " ranks")
        tables.draw_table(heads, [_row(slot, state) for slot, state in zip(found, states, strict=True)])
        for slot, state in zip(found, states, strict=True):
            if state not in ("complete", "in progress"):
                print(f"{slot.path.name}: {slot.why_not}")
    else:
        print(f"There are no epochs in {directory}.")
    if holder is not None:
        print(f"in use by {holder}")


def _row(slot: SlotInfo, state: str) -> tuple[str, ...]:
    told = _described(slot, state)
    return (
        slot.path.name,
        str(told["epoch"] or "-"),
        str(told["step"] if told["epoch"] else "-"),
        state,
        human_bytes(_size(slot.path)),
        tables.age(_cut_time(slot)),
        str(slot.world_size or "-"),
    )


def _described(slot: SlotInfo, state: str) -> dict[str, object]:
    begun = slot.records[slot.records["epoch"] == slot.newest]
    return {
        "file": slot.path.name,
        "epoch": slot.newest or None,
        "step": int(begun["step"].max()) if slot.newest else None,
        "state": state,
        "why": slot.why_not or None,
        "bytes": _size(slot.path),
        "cut_time_ns": _cut_time(slot) or None,
        "ranks": slot.world_size or None,
        "archived": slot.index < 0,
    }


def _cut_time(slot: SlotInfo) -> int:
    return int(slot.records[slot.records["epoch"] == slot.newest]["cut_time_ns"].max(initial=0)) if slot.newest else 0


def _size(path: Path) -> int:
    with suppress(OSError):  # it was deleted or replaced since
        return path.stat().st_size
    return 0


def _progress(slot: SlotInfo) -> dict[str, list[int]]:
    """List the ranks by how far they are with the epoch in progress."""
    found: dict[str, list[int]] = {"not cut yet": [], "draining": [], "complete": [], "failed": []}
    for rank, record in enumerate(slot.records):
        state = RecordState(int(record["state"])) if int(record["epoch"]) == slot.newest else RecordState.EMPTY
        found[list(found)[state]].append(rank)
    return found


def _sentence(slot: SlotInfo) -> str:
    told = [f"{len(ranks)} {name} ({tables.ranks(ranks)})" for name, ranks in _progress(slot).items() if ranks]
    return f"epoch {slot.newest} in progress, of {slot.world_size} ranks: {', '.join(told)}"
