"""Save running MPI programs, restart them, and look at what was saved."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from mpickpt.errors import BatchError, InUseError, LayoutError, MpickptError, NoProgress, StoreError, UsageError

# The verbs, and the first line of each one's docstring. A module is imported only when its verb is used.
VERBS = {
    "run": "Run a Python program with other options of mpickpt than it was written with.",
    "ls": "List the epochs of a checkpoint directory.",
    "show": "Show what is in an epoch: arrays, objects, and what each rank did.",
    "report": "Draw what a program's checkpoints cost it, and when: a page to open in a browser.",
    "verify": "Read an epoch, or all of a directory, and compare every block with its checksum.",
    "diff": "Compare two epochs bit by bit.",
    "export": "Write arrays of an epoch into a file that other programs read.",
    "prune": "Delete old epochs, and never the last complete one.",
    "archive": "Make a file of its own of an epoch, which no program overwrites.",
    "trigger": "Ask a running program for a checkpoint now.",
    "sbatch": "Write a batch script for Slurm that runs a program until it is done.",
    "requeue": "End a batch script: put the job back into the queue if its program did not come to its end.",
    "doctor": "Find out what this machine and a directory give to checkpoints, by trying it.",
}
EXIT_STATUS = """
exit status: 0 all is fine, 1 something is wrong with the checkpoint, 2 the
command cannot be carried out as given. mpickpt run ends as the program does,
with 75 if it was asked to stop. mpickpt VERB --help has examples.
"""

WRONG, MISUSED = 1, 2


def parser(*verbs: str) -> argparse.ArgumentParser:
    """Make the parser that knows all verbs, and the arguments of `verbs`."""
    top = argparse.ArgumentParser(
        prog="mpickpt",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version of mpickpt, and exit")
    listed = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, sentence in VERBS.items():
        module = verb_module(name) if name in verbs else None
        verb = listed.add_parser(
            name,
            help=sentence,
            description=module.__doc__ if module else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if module:
            module.add_arguments(verb)
            verb.set_defaults(execute=module.execute)
    return top


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        print(f"mpickpt {metadata.version('mpickpt')}")
        parser.exit()


def verb_module(name: str) -> ModuleType:
    """Import the module of a verb."""
    return import_module(f"mpickpt.cli.{name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default `sys.argv` without the name of the program.

    Returns
    -------
    int
        The exit status: 0 for success, 1 if something is wrong with the checkpoint, 2 for wrong usage; of `run`, that
        of the program.
    """
    given = sys.argv[1:] if arguments is None else arguments
    args = parser(*given[:1]).parse_args(given)
    try:
        status: int = args.execute(args)
    except MpickptError as error:
        print(f"mpickpt: {error}", file=sys.stderr)
        return exit_status(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, and the interpreter would complain while flushing
        return WRONG
    return status


def exit_status(error: MpickptError) -> int:
    """Return the exit status for an error of the checkpoint, or for wrong usage.

    A file that is not a slot counts as corrupt; a path that the operating system refuses counts as wrong usage.
    """
    if isinstance(error, UsageError | LayoutError | InUseError):
        return MISUSED
    if isinstance(error, BatchError | NoProgress):  # the status of a batch job shows the reason
        return error.exit_code
    system = error.errno if isinstance(error, StoreError) else None
    return MISUSED if system not in (None, errno.EIO) else WRONG
