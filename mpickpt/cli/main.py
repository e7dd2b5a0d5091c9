"""Save running MPI programs, restart them, and look at what was saved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mpickpt.cli import ls, requeue, run, sbatch, show, trigger
from mpickpt.errors import MpickptError

VERBS = {"run": run, "ls": ls, "show": show, "trigger": trigger, "sbatch": sbatch, "requeue": requeue}


def parser() -> argparse.ArgumentParser:
    """Make the parser of all verbs."""
    top = argparse.ArgumentParser(prog="mpickpt", description=__doc__, allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        text = module.__doc__ or ""
        verb = verbs.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.set_defaults(execute=module.execute)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Parameters
    ----------
    arguments : sequence of str, optional
        `sys.argv` without the name of the program by default.

    Returns
    -------
    int
        The exit code: 0, that of the error (`MpickptError.exit_code`), or that of the program that was run.
    """
    args = parser().parse_args(arguments)
    try:
        code: int = args.execute(args)
    except MpickptError as error:
        print(f"mpickpt: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, and the interpreter would complain while flushing
        return 1
    return code
