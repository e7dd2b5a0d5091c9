"""List the slots of a checkpoint directory.

For each slot: the epoch and the step in it, whether it is whole on all ranks, its size, how long ago it was cut, and
the number of ranks. While a program runs: the epoch in progress, rank by rank.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.table import Table

from mpickpt.cli.tables import console, human_bytes, human_seconds
from mpickpt.errors import StoreError
from mpickpt.layout import RecordState
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory")


def execute(args: argparse.Namespace) -> int:
    """Print the table."""
    if not args.directory.is_dir():
        raise StoreError(f"{args.directory} is not a directory.", path=args.directory)
    store = Store(args.directory, crc32c)
    slots = store.slots()
    if not slots:
        print(f"There are no slots in {args.directory}.")
        return 0
    table = Table()
    for title in ("slot", "epoch", "step", "whole", "size", "cut", "ranks"):
        table.add_column(title, justify="left" if title in ("slot", "whole") else "right", overflow="fold")
    for slot in slots:
        table.add_row(*_row(slot))
    out = console()
    out.print(table)
    holder = store.holder()
    if holder is not None:
        out.print(f"in use by {holder}", highlight=False)
        newest = max(slots, key=lambda slot: slot.newest)
        if newest.newest and not newest.whole:
            out.print(_progress(newest), highlight=False)
    return 0


def _progress(slot: SlotInfo) -> str:
    """Tell how far each rank is with the epoch that is being written."""
    epoch = slot.newest
    found: dict[str, list[int]] = {"not cut yet": [], "draining": [], "complete": [], "failed": []}
    for rank, record in enumerate(slot.records):
        state = RecordState(int(record["state"])) if int(record["epoch"]) == epoch else RecordState.EMPTY
        found[list(found)[state]].append(rank)
    parts = [f"{len(ranks)} {name} ({_ranks(ranks)})" for name, ranks in found.items() if ranks]
    return f"epoch {epoch} in progress, of {slot.world_size} ranks: {', '.join(parts)}"


def _ranks(ranks: list[int]) -> str:
    """Write ranks as spans."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"


def _row(slot: SlotInfo) -> tuple[str, ...]:
    newest = slot.newest
    begun = slot.records[slot.records["epoch"] == newest] if newest else slot.records[:0]
    return (
        slot.path.name,
        str(newest) if newest else "-",
        str(int(begun["step"].max())) if newest else "-",
        "yes" if slot.whole else f"no: {slot.why_not}",
        human_bytes(slot.path.stat().st_size),
        f"{human_seconds(max(0.0, time.time() - int(begun['cut_time_ns'].max()) / 1e9))} ago" if newest else "-",
        str(slot.world_size) if slot.readable else "-",
    )
