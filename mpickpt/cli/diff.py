"""Compare two epochs bit by bit.

    mpickpt diff heat.ckpt:6 heat.ckpt:7
    mpickpt diff monday.ckpt tuesday.ckpt          the newest complete epochs of two runs
    mpickpt diff heat.ckpt epoch-7.h5 --json

Prints which arrays differ, in how many blocks and cells, and the largest difference with its place. Global arrays are
compared even if they are distributed differently. Exits with 0 if both epochs are the same, and with 1 if not.
"""

from __future__ import annotations

import argparse

from mpickpt.cli import tables
from mpickpt.cli.places import PLACE, add_json, open_checkpoint
from mpickpt.reading.compare import Comparison, Difference, compare
from mpickpt.texts import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("a", metavar="A", help=PLACE)
    parser.add_argument("b", metavar="B", help="the same")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Compare; return 1 if there is a difference."""
    a, b = open_checkpoint(args.a), open_checkpoint(args.b)
    found = compare(a, b)
    if args.json:
        arrays = [vars(array) | {"differs": array.differs} for array in found.arrays]
        told = {"a": str(a.path), "b": str(b.path), "differ": found.differs, "arrays": arrays}
        tables.print_json(told | {"objects": found.objects, "channels": found.channels})
    else:
        for checkpoint, name in ((a, "A"), (b, "B")):
            print(f"{name}: {checkpoint.path}, epoch {checkpoint.epoch}, step {checkpoint.step}")
        _print(found)
    return 1 if found.differs else 0


def _print(found: Comparison) -> None:
    for array in found.arrays:
        print(f"{array.name}: {_sentence(array)}")
    if found.why_not_objects:
        print(found.why_not_objects)
    for what, ranks in (("objects", found.objects), ("messages in flight", found.channels)):
        if ranks:
            print(f"{what}: differ, as they are pickled, on {tables.ranks(ranks)}")
    print("they differ" if found.differs else "all is the same")


def _sentence(array: Difference) -> str:
    if array.why:
        return array.why
    if not array.cells:
        return f"the same ({counted(array.blocks, 'block')})"
    where = f"rank {array.rank} at {list(array.cell or ())}"
    if array.largest is None:
        most = f"first on {where}"
    elif array.largest == 0 and not array.nans:
        most = f"by nothing but signs of zero or kinds of NaN, first on {where}"
    else:
        most = f"by {array.largest:.6g} at most, on {where}"
    nans = f", {counted(array.nans, 'cell')} NaN on one side only" if array.nans else ""
    blocks = f"{array.differing_blocks:,} of {counted(array.blocks, 'block')}"
    return f"differs in {blocks}, {counted(array.cells, 'cell')}, {most}{nans}"
