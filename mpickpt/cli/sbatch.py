"""Write a batch script for Slurm that runs a program until it is done.

The program may need any number of time limits.

    mpickpt sbatch -n 64 --time 4h --interval auto app.py its arguments > app.sbatch
    mpickpt sbatch -n 64 --time 4h --interval auto --submit app.py its arguments

The script goes to standard output, or with --submit to sbatch. docs/slurm.md explains it.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path

from mpickpt.cli import run
from mpickpt.options import parse_count, parse_seconds
from mpickpt.slurm import submit

PASSED_ON = ("interval", "archive_every", "keep_archives", "archive_to")  # to mpickpt run
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name} --ntasks={ranks} --time={minutes}{partition}
#SBATCH --requeue --open-mode=append
export MPICKPT_DIR=${{MPICKPT_DIR:-{directory}}}
trap : TERM  # the ranks answer it; this shell waits for them
{launcher} mpickpt run{options} {command}
mpickpt requeue $?
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.usage = "mpickpt sbatch [options] app.py [arguments]"
    parser.add_argument("-n", dest="ranks", default="1", metavar="RANKS", help="number of ranks; 1")
    parser.add_argument("--time", default="1h", metavar="TIME", help="time limit of each start, in whole minutes; 1h")
    parser.add_argument("--partition", metavar="NAME", help="the partition; that of the cluster by default")
    for name in PASSED_ON:
        metavar, text = run.OPTIONS[name]
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=f"as for mpickpt run: {text}")
    parser.add_argument("--dir", metavar="DIR", help="the checkpoint directory; the program's name with .ckpt")
    parser.add_argument("--launcher", default="srun", help="what starts the ranks: srun, 'srun --mpi=pmi2', mpirun")
    parser.add_argument("--submit", action="store_true", help="hand the script to sbatch")
    parser.add_argument("program", help="the program to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program gets as sys.argv[1:]")


def execute(args: argparse.Namespace) -> int:
    """Write the script, or submit it."""
    script = write(args)
    if args.submit:
        print(submit(script), end="")
    else:
        sys.stdout.write(script)
    return 0


def write(args: argparse.Namespace) -> str:
    """Return the script."""
    name = Path(args.program).stem
    return SCRIPT.format(
        name=shlex.quote(name),
        ranks=parse_count(args.ranks, 1),
        minutes=math.ceil(parse_seconds(args.time) / 60),
        partition=f" --partition={shlex.quote(args.partition)}" if args.partition else "",
        directory=shlex.quote(args.dir or f"{name}.ckpt"),
        launcher=args.launcher,
        options="".join(
            f" --{name.replace('_', '-')}={shlex.quote(value)}" for name in PASSED_ON if (value := getattr(args, name))
        ),
        command=shlex.join([args.program, *args.arguments]),
    )
