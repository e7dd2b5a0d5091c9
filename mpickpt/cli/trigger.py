"""Ask a running program for a checkpoint now.

    mpickpt trigger heat.ckpt          a cut at one of the next safe points
    mpickpt trigger heat.ckpt --stop   the same; the program exits with status 75 when it is complete

Rank 0 of the program polls for the request at its safe points, twice a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpickpt.cli.places import add_json, open_directory
from mpickpt.cli.tables import print_json
from mpickpt.errors import UsageError
from mpickpt.session.triggers import leave_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory of the program")
    parser.add_argument("--stop", action="store_true", help="end the program when the checkpoint is complete")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the request into the directory."""
    holder = open_directory(args.directory).holder()
    if holder is None:
        raise UsageError(f"No running program uses {args.directory}: there is nobody to take a checkpoint.")
    leave_file(args.directory, stop=args.stop)
    if args.json:
        print_json({"asked": holder, "stop": args.stop})
        return 0
    print(f"asked {holder} for a checkpoint{' and to stop' if args.stop else ''}")
    return 0
