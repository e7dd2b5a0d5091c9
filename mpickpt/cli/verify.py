"""Read an epoch, or all of a directory, and compare every block with its checksum.

    mpickpt verify heat.ckpt                  all complete epochs, in slots and archived
    mpickpt verify heat.ckpt:7                epoch 7
    mpickpt verify heat.ckpt/slot-0.h5

Prints rank, array, block, bytes and cells of all corrupt data.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

from mpickpt.cli import tables
from mpickpt.cli.ls import BROKEN, state_of
from mpickpt.cli.places import PLACE, add_json, open_checkpoint, open_directory, open_slot, split_place
from mpickpt.errors import EpochError, MpickptError
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.image import Damage
from mpickpt.store import SlotInfo
from mpickpt.texts import counted
from mpickpt.units import human_bytes, human_seconds


@dataclass
class Result:
    """The result for one file: `problem` makes the verb fail, `passed_over` does not."""

    slot: SlotInfo
    nbytes: int = 0
    seconds: float = 0.0
    damage: list[Damage] = field(default_factory=list)
    problem: str = ""
    passed_over: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("place", metavar="PATH", help=PLACE.replace("its newest complete epoch", "all complete epochs"))
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Verify; return 1 if anything is corrupt. EpochError if there is nothing to verify."""
    results = []
    for slot in _slots(args.place):
        results.append(_verify(slot, quiet=args.json))
        if not args.json:
            _print(results[-1])
    if args.json:
        tables.print_json({"files": [_described(result) for result in results]})
    wrong = any(result.damage or result.problem for result in results)
    if not wrong and all(result.passed_over for result in results):
        raise EpochError(f"There is no complete epoch in {args.place} to verify. See: mpickpt ls DIR")
    return 1 if wrong else 0


def _slots(place: str) -> list[SlotInfo]:
    path, epoch = split_place(place)
    if epoch is not None:
        return [open_checkpoint(place).slot]
    if path.is_file():
        return [open_slot(path)]
    store = open_directory(path)
    return [*store.slots(), *store.archives()]


def _verify(slot: SlotInfo, *, quiet: bool) -> Result:
    result = Result(slot)
    if not slot.complete:
        if state_of(slot) in BROKEN:
            result.problem = slot.why_not
        else:
            result.passed_over = slot.why_not
        return result
    try:
        checkpoint = Checkpoint(slot.path)
        result.nbytes = checkpoint.nbytes
        began = time.perf_counter()
        with tables.bar(f"{slot.path.name}: epoch {slot.epoch}", checkpoint.nbytes, quiet=quiet) as progress:
            result.damage = checkpoint.verify(progress)
        result.seconds = time.perf_counter() - began
    except EpochError as error:  # a running program overwrote the slot
        result.passed_over = str(error)
    except MpickptError as error:
        result.problem = str(error)
    return result


def _print(result: Result) -> None:
    name = result.slot.path.name
    if result.problem or result.passed_over:
        print(f"{name}: {result.problem or f'not verified: {result.passed_over}'}")
        return
    rate = human_bytes(result.nbytes / max(result.seconds, 1e-9))
    how = f"{human_bytes(result.nbytes)} in {human_seconds(result.seconds)}, {rate}/s"
    places = counted(len(result.damage), "place")
    print(f"{name}: epoch {result.slot.epoch} is {f'corrupt in {places}' if result.damage else 'valid'} ({how})")
    for damage in result.damage:
        print(f"  {damage}")
        if damage.bytes and damage.cells:
            first, last = damage.cells
            cells = f", cells {list(first)} to {list(last)}"
            print(f"    bytes {damage.bytes[0]} to {damage.bytes[1]} of the array{cells}")


def _described(result: Result) -> dict[str, object]:
    damage = [
        {
            "rank": found.rank,
            "array": found.array,
            "payload": found.payload,
            "block": found.block,
            "bytes": found.bytes,
            "cells": found.cells,
            "what": found.what,
        }
        for found in result.damage
    ]
    told = {"file": str(result.slot.path), "epoch": result.slot.epoch, "bytes": result.nbytes}
    wrong = {"problem": result.problem or None, "passed_over": result.passed_over or None}
    return told | {"seconds": result.seconds, "damage": damage} | wrong
