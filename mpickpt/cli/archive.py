"""Make a file of its own of an epoch, which no program overwrites.

    mpickpt archive heat.ckpt                     the newest complete epoch, as heat.ckpt/epoch-<number>.h5
    mpickpt archive heat.ckpt:7 --compress        compressed HDF5, checked while it is written
    mpickpt archive heat.ckpt --to /archive       into another directory

Where the file system clones files (XFS, Btrfs, bcachefs) this takes no time, and no room until the slot is
overwritten; elsewhere the slot is copied.
The file is a checkpoint like any other: show, verify, diff, export and mpickpt.Checkpoint read it, and
`mpickpt run --restart 7` restores it. You can archive while a program is running: if it overwrites the slot meanwhile,
nothing is archived, and the command reports it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mpickpt.cli import tables
from mpickpt.cli.places import PLACE, add_json, open_checkpoint, open_directory
from mpickpt.reading.archive import archive
from mpickpt.store import archive_path, free_bytes
from mpickpt.units import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("place", metavar="PATH", help=PLACE)
    parser.add_argument("--to", type=Path, metavar="DIR", help="another directory, which exists")
    parser.add_argument("--compress", action="store_true", help="compress")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Archive the epoch."""
    checkpoint = open_checkpoint(args.place)
    directory = open_directory(args.to).directory if args.to else checkpoint.path.parent
    target = archive_path(directory, checkpoint.epoch)
    with tables.bar(target.name, checkpoint.nbytes, quiet=args.json) as progress:
        made = archive(checkpoint, target, compress=args.compress, progress=progress)
    if args.json:
        tables.print_json({"file": str(made.path), "epoch": checkpoint.epoch, "bytes": made.nbytes, "how": made.how})
    else:
        size = human_bytes(made.nbytes)
        print(f"{made.path}: epoch {checkpoint.epoch}, step {checkpoint.step}, {made.how} ({size})")
        if made.how == "cloned" and checkpoint.slot.index >= 0:
            _tell_room(checkpoint.path, made.nbytes, free_bytes(directory))
    return 0


def _tell_room(source: Path, need: int, free: int) -> None:
    """Say that a clone is not for nothing: the room that was reserved for the slot is the archive's now, too."""
    print(
        f"It shares its blocks with {source.name}, which takes up to {human_bytes(need)} of new room while it is "
        f"overwritten; {human_bytes(free)} are free"
    )
    if free < need:
        print("mpickpt: the next epoch there may find the disk full: make room, or delete archives", file=sys.stderr)
