"""List the slots of a checkpoint directory.

For each slot: the epoch and the step in it, whether it is whole on all ranks, its size, how long ago it was cut, and
the number of ranks.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.table import Table

from mpickpt.cli.tables import console, human_bytes, human_seconds
from mpickpt.errors import StoreError
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory")


def execute(args: argparse.Namespace) -> int:
    """Print the table."""
    if not args.directory.is_dir():
        raise StoreError(f"{args.directory} is not a directory.", path=args.directory)
    slots = Store(args.directory, crc32c).slots()
    if not slots:
        print(f"There are no slots in {args.directory}.")
        return 0
    table = Table()
    for title in ("slot", "epoch", "step", "whole", "size", "cut", "ranks"):
        table.add_column(title, justify="left" if title in ("slot", "whole") else "right", overflow="fold")
    for slot in slots:
        table.add_row(*_row(slot))
    console().print(table)
    return 0


def _row(slot: SlotInfo) -> tuple[str, ...]:
    newest = int(slot.records["epoch"].max(initial=0))
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
