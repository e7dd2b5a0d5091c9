"""Run a Python program with other options of mpickpt than it was written with.

    mpirun -n 4 mpickpt run [options] app.py [arguments]
    mpirun -n 4 mpickpt run [options] -m package.module [arguments]

Options given here take precedence over the environment (MPICKPT_DIR, MPICKPT_EVERY, ...), and the environment over the
arguments of mpickpt.open() in the program. The same command again resumes the program, on any number of ranks.
If a rank ends by an uncaught exception or a non-zero exit code, all ranks are ended. A program that is asked to stop
(SIGTERM, mpickpt trigger --stop) ends with exit status 75 after its last checkpoint is complete.
"""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
import time
import traceback
from itertools import takewhile
from pathlib import Path

from mpickpt.errors import MpickptError, Stopped, UsageError
from mpickpt.mpi import abort, begin_survival, current_survival, world_rank_and_size
from mpickpt.options import command_line

OPTIONS = {
    "dir": ("DIR", "the checkpoint directory"),
    "every": ("STEPS", "cut each time so many steps are done"),
    "interval": ("TIME", "cut each time so much time went by: 90s, 10min, 1h30min; auto: as often as is best"),
    "keep": ("N", "number of slots, at least 2"),
    "restart": ("WHAT", "auto: the newest complete epoch; never: start from the beginning; or the number of an epoch"),
    "pool": ("SIZE", "room on each rank for copies of what changes before it is saved: 256MiB, 25%%"),
    "margin": ("TIME", "a batch job stops when so much of its time is left, beside that of a drain; 1min"),
    "mtbf": ("TIME", "mean time between failures of the job, for --interval auto; 1d"),
    "on_rebind": ("WHAT", "error, warn or ignore: when the program does not hold any more what it wants saved; error"),
    "term_limit": ("TIME", "end a program that still runs so long after the first SIGTERM; never"),
    "archive_every": ("TIME", "archive an epoch each time so much time went by, beside the program: 1h, 1d"),
    "keep_archives": ("N", "how many of these archives stay; all"),
    "archive_to": ("DIR", "where they are made; the checkpoint directory"),
    "stall_limit": ("TIME", "give an epoch up that holds the program up, if no write ends for so long; 1min; or never"),
}
SWITCHES = ("lazy", "record", "progress", "alone")

INTERRUPTED = 130  # the exit code that shells give to a program that Ctrl-C ended
LAST_WORDS_SECONDS = 5.0  # for a rank to say why it left, before those that cannot continue without it end all
WITHOUT_MAIN = (
    "mpickpt: the program came to its end without a call of mpickpt.main(f), so --survive had no effect: no rank could "
    "have gone on after the loss of another"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.usage = "mpickpt run [options] (app.py | -m module) [arguments]"
    for name, (metavar, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
    text = "after a restart, compute at once and read the arrays meanwhile; without: when all is read and checked"
    parser.add_argument("--lazy", action=argparse.BooleanOptionalAction, help=text)
    text = "take notes for mpickpt report, as is done unless the program does not want it; without: none"
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, help=text)
    text = "have rank 0 tell on stderr where the program is: step and pace, the drain, the last complete epoch"
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help=text)
    text = "this process is to be alone, also if its launcher started several that MPI does not know of"
    parser.add_argument("--alone", action=argparse.BooleanOptionalAction, help=text)
    text = "when a rank dies, go on without it, or with another process in its place (Open MPI, mpirun --with-ft ulfm)"
    parser.add_argument("--survive", choices=("shrink", "respawn"), help=text)
    parser.add_argument("-m", dest="is_module", action="store_true", help="the program is a module, as for python -m")
    parser.add_argument("program", help="the program to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program gets as sys.argv[1:]")


def execute(args: argparse.Namespace) -> int:
    """Run the program as ``__main__``; return its exit code, or end all ranks."""
    command_line.given = {
        name: str(value) for name in (*OPTIONS, *SWITCHES) if (value := getattr(args, name)) is not None
    }
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd() if args.is_module else Path(args.program).resolve().parent)
    _check_program(args.program, args.is_module)
    sys.argv = [args.program, *args.arguments]
    code = _run(args)
    survival = current_survival()
    if survival is not None:
        if code == 0 and not survival.was_entered and survival.comm.rank == 0:
            _say(WITHOUT_MAIN)
        survival.end(code)
    return code


def _run(args: argparse.Namespace) -> int:
    try:
        if args.survive is not None:
            begin_survival(args.survive)
        if args.is_module:
            runpy.run_module(args.program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(args.program, run_name="__main__")
    except Stopped as stopped:  # on all ranks
        return stopped.exit_code
    except SystemExit as error:
        return _end_all(_exit_code(error))
    except KeyboardInterrupt:
        rank, size = world_rank_and_size()
        _say(f"mpickpt: rank {rank} of {size} was interrupted")
        return _end_all(INTERRUPTED)
    except BaseException as error:
        rank, size = world_rank_and_size()
        if isinstance(error, MpickptError) and error.everywhere:
            if rank == 0:
                _say(f"mpickpt: {error}")
            return error.exit_code
        if isinstance(error, MpickptError) and error.elsewhere:
            time.sleep(LAST_WORDS_SECONDS)
        name = type(error).__name__
        _say(f"{_report(error)}mpickpt: rank {rank} of {size} ended by an uncaught {name}, and so all ranks end")
        return _end_all(1)
    return 0


def _check_program(program: str, is_module: bool) -> None:
    """Raise a `UsageError` if there is no such program."""
    if not is_module:
        if not Path(program).exists():
            raise UsageError(f"There is no program {program}.")
        return
    try:
        found = importlib.util.find_spec(program)
    except (ImportError, ValueError) as error:
        raise UsageError(f"There is no module {program}: {error}.") from None
    if found is None:
        raise UsageError(f"There is no module {program}.")


def _exit_code(error: SystemExit) -> int:
    """Return the exit code that the interpreter would use."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    _say(str(error.code))
    return 1


def _end_all(code: int) -> int:
    """End all ranks if the code is not zero."""
    if code != 0:
        abort(code)
    return code


def _report(error: BaseException) -> str:
    """Format a traceback without the frames of runpy; for an error of mpickpt, without those of mpickpt, too."""
    report = traceback.TracebackException.from_exception(error)
    package = str(Path(__file__).parents[1])
    outer = len(list(takewhile(lambda frame: frame.filename in (__file__, "<frozen runpy>"), report.stack)))
    frames = report.stack[outer:]
    if isinstance(error, MpickptError):
        frames = [frame for frame in frames if not frame.filename.startswith(package)]
        report.__cause__ = report.__context__ = None
    report.stack = traceback.StackSummary.from_list(frames)
    return "".join(report.format())


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")  # in one piece, as other ranks may be writing too
    sys.stderr.flush()
