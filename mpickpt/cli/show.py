"""Show what is in an epoch: arrays, objects, and what each rank did.

    mpickpt show heat.ckpt                    the newest complete epoch
    mpickpt show heat.ckpt:7                  epoch 7, in a slot or archived
    mpickpt show heat.ckpt/slot-0.h5          whatever is in this slot, complete or not

Objects are listed with their types; nothing is unpickled and no code of the file runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from mpickpt.cli import tables
from mpickpt.cli.ls import BROKEN, state_of
from mpickpt.cli.pickles import types_in
from mpickpt.cli.places import PLACE, add_json, open_checkpoint, open_slot, split_place
from mpickpt.layout.arrays import RECORD, ArraySpec, Layout, RecordState
from mpickpt.reading.image import RankImage, images_of
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, read_structure
from mpickpt.texts import counted, visible
from mpickpt.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.tree import Tree

MOST_RANKS = 64  # that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("place", metavar="PATH", help=PLACE)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the tree and the table of records; return 1 if the file is corrupt or a rank could not write."""
    path, epoch = split_place(args.place)
    slot = open_slot(path) if path.is_file() and epoch is None else open_checkpoint(args.place).slot
    layout, offsets = read_structure(slot.path, crc32c)
    images = images_of(slot.path, layout, offsets, slot.records, slot.packed) if slot.complete else []
    state = state_of(slot)
    if args.json:
        tables.print_json(_described(slot, layout, images))
    else:
        _print(slot, layout, images, state)
    return 1 if state in BROKEN else 0


def _print(slot: SlotInfo, layout: Layout, images: list[RankImage], state: str) -> None:
    cut = tables.age(int(slot.records["cut_time_ns"].max(initial=0)))
    told = f"epoch {slot.epoch}, step {slot.step}, cut {cut}" if slot.complete else f"{state}: {slot.why_not}"
    print(f"{slot.path}: {told}")
    packed = ", compressed" if slot.packed else ""
    blocks = human_bytes(slot.block_bytes)
    print(f"{counted(slot.world_size, 'rank')}, blocks of {blocks}{packed}, layout {slot.digest.hex()[:12]}\n")
    tables.draw(_tree(slot, layout, images))
    print()
    tables.draw_table(*_records(slot))
    if slot.world_size > MOST_RANKS:
        print(f"and {slot.world_size - MOST_RANKS} more ranks: --json tells of all")


def _tree(slot: SlotInfo, layout: Layout, images: list[RankImage]) -> Tree:
    from rich.tree import Tree

    tree = Tree(slot.path.name)
    specs = {name: [spec for _, spec in layout.having(name)] for name in layout.names}
    complete = {name: found for name, found in specs.items() if found[0].part}
    if complete:
        branch = tree.add("global arrays")
        for name, found in complete.items():
            assert found[0].part is not None
            part = found[0].part
            nbytes = human_bytes(prod(part.shape) * found[0].dtype.itemsize)
            dims = f" ({', '.join(part.dims)})" if part.dims else ""
            branch.add(f"{name}: {found[0].dtype} {part.shape}{dims}, {nbytes}, on {counted(len(found), 'rank')}")
    for number, rank in enumerate(layout.ranks[:MOST_RANKS]):
        branch = tree.add(f"rank {number}")
        for spec in rank.arrays:
            branch.add(_array(spec))
        if images:
            branch.add(_objects(images[number]))
    return tree


def _array(spec: ArraySpec) -> str:
    part = f", cells from {spec.owned.start}" if spec.part else ""
    order = ", Fortran order" if spec.order == "F" else ""
    return f"{spec.name}: {spec.dtype} {spec.shape}, {human_bytes(spec.nbytes)}{part}{order}"


def _objects(image: RankImage) -> str:
    types, wrong = _types(image)
    told = ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none"
    return f"objects: {visible(wrong or told)}"


def _types(image: RankImage) -> tuple[dict[str, str], str]:
    """Return the objects' types, or what is wrong with them."""
    payload, damage = image.read_objects()
    if damage:
        return {}, damage[0].what
    try:
        return types_in(payload), ""
    except ValueError as error:
        return {}, str(error)


def _records(slot: SlotInfo) -> tuple[list[str], Iterable[list[str]]]:
    """Return head and rows of the table of records; epoch and step only if the ranks may differ in them."""
    records = slot.records[:MOST_RANKS]
    in_flight = bool(slot.records["channels_bytes"].any())
    heads = ["rank", "state", *(() if slot.complete else (" epoch", " step")), " written", " drain", " blocked"]
    heads += [" stall", " copied", " objects", *((" in flight",) if in_flight else ())]
    rows = []
    for rank, record in enumerate(records):
        row = [str(rank), _state(int(record["state"]))]
        row += [] if slot.complete else [str(record["epoch"]), str(record["step"])]
        row += [human_bytes(int(record["bytes_written"]))]
        row += [human_seconds(int(record[name]) / 1e9) for name in ("drain_ns", "blocked_ns", "stall_ns")]
        row += [str(record["blocks_copied"]), human_bytes(int(record["objects_bytes"]))]
        rows.append(row + ([human_bytes(int(record["channels_bytes"]))] if in_flight else []))
    return heads, rows


def _state(number: int) -> str:
    return RecordState(number).name.lower() if number <= max(RecordState) else f"unknown ({number})"


def _described(slot: SlotInfo, layout: Layout, images: list[RankImage]) -> dict[str, object]:
    names = [name for name in (RECORD.names or ()) if name not in ("magic", "digest", "crc")]
    found = []
    for number, (rank, record) in enumerate(zip(layout.ranks, slot.records, strict=True)):
        arrays = [
            {
                "name": spec.name,
                "dtype": str(spec.dtype),
                "shape": spec.shape,
                "order": spec.order,
                "global_shape": spec.part.shape if spec.part else None,
                "dims": spec.part.dims if spec.part else None,
                "global_start": spec.owned.start if spec.part else None,
            }
            for spec in rank.arrays
        ]
        types, wrong = _types(images[number]) if images else ({}, slot.why_not)
        values = {name: int(record[name]) for name in names}
        found.append({"arrays": arrays, "objects": types, "objects_wrong": wrong or None, "record": values})
    head = {"file": str(slot.path), "epoch": slot.epoch, "step": slot.step, "complete": slot.complete}
    about = {"why": slot.why_not or None, "packed": slot.packed, "block_bytes": slot.block_bytes}
    return head | about | {"layout": slot.digest.hex(), "ranks": found}
