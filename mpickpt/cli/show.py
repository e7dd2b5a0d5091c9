"""Show what is in a slot: its epoch, the arrays, and how each rank fared.

The path may also be that of a checkpoint directory, which stands for its newest whole slot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from mpickpt.cli.tables import console, human_bytes, human_seconds
from mpickpt.errors import EpochError, StoreError
from mpickpt.layout import Layout, RecordState
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store, read_slot, read_structure

MOST_RANKS = 64  # so many ranks have a line of their own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a slot file, or a checkpoint directory")


def execute(args: argparse.Namespace) -> int:
    """Print the tables."""
    slot = _find(args.file)
    layout, _ = read_structure(slot.path)
    out = console()
    state = f"epoch {slot.epoch}, step {slot.step}" if slot.whole else f"no whole epoch: {slot.why_not}"
    out.print(f"{slot.path}: {state}", markup=False)
    out.print(f"{slot.world_size} ranks, blocks of {human_bytes(slot.block_bytes)}, layout {slot.digest.hex()[:12]}")
    out.print(_arrays(layout))
    out.print(_ranks(slot))
    if slot.world_size > MOST_RANKS:
        out.print(f"and {slot.world_size - MOST_RANKS} more ranks")
    return 0


def _find(path: Path) -> SlotInfo:
    if path.is_dir():
        whole = [slot for slot in Store(path, crc32c).slots() if slot.whole]
        if not whole:
            raise EpochError(f"{path} holds no whole epoch. See: mpickpt ls {path}")
        return max(whole, key=lambda slot: slot.epoch or 0)
    if not path.exists():
        raise StoreError(f"There is no file {path}.", path=path)
    slot = read_slot(path, crc32c)
    if not slot.readable:
        raise StoreError(slot.why_not, path=path)
    return slot


def _arrays(layout: Layout) -> Table:
    table = Table(title="arrays", title_justify="left")
    for title in ("name", "dtype", "global shape", "shape on a rank", "part", "ranks", "size"):
        table.add_column(title, justify="right" if title in ("ranks", "size") else "left", overflow="fold")
    for name in layout.names:
        specs = [spec for rank in layout.ranks if (spec := rank.spec(name))]
        first = specs[0]
        part = first.part
        table.add_row(
            name,
            str(first.dtype),
            str(part.shape) if part else "-",
            _span([str(spec.shape) for spec in specs]),
            f"from {first.owned.start}" if part else "-",
            str(len(specs)),
            human_bytes(sum(spec.nbytes for spec in specs)),
        )
    return table


def _span(texts: Iterable[str]) -> str:
    """Name all different values, or the first two of them."""
    different = list(dict.fromkeys(texts))
    return " or ".join(different[:2]) + (", …" if len(different) > 2 else "")


def _ranks(slot: SlotInfo) -> Table:
    table = Table(title="ranks", title_justify="left")
    in_flight = bool(slot.records["channels_bytes"].any())
    for title in (
        *("rank", "state", "epoch", "step", "blocked", "drain", "bandwidth", "written"),
        *("copied blocks", "stall", "objects"),
        *(("in flight",) if in_flight else ()),
    ):
        table.add_column(title, justify="left" if title == "state" else "right")
    for rank, record in enumerate(slot.records[:MOST_RANKS]):
        drain, written = int(record["drain_ns"]) / 1e9, int(record["bytes_written"])
        table.add_row(
            str(rank),
            _state(int(record["state"])),
            str(record["epoch"]),
            str(record["step"]),
            human_seconds(int(record["blocked_ns"]) / 1e9),
            human_seconds(drain),
            f"{human_bytes(written / drain)}/s" if drain > 0 else "-",
            human_bytes(written),
            str(record["blocks_copied"]),
            human_seconds(int(record["stall_ns"]) / 1e9),
            human_bytes(int(record["objects_bytes"])),
            *((human_bytes(int(record["channels_bytes"])),) if in_flight else ()),
        )
    return table


def _state(number: int) -> str:
    return RecordState(number).name.lower() if number <= max(RecordState) else f"unknown ({number})"
