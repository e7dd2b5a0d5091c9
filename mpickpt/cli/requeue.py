"""End a batch script: put the job back into the queue if its program did not come to its end.

    srun mpickpt run app.py
    mpickpt requeue $?

The exit status of the program decides. 0: the job is done. 75 (stopped in time, with its last epoch complete), or the
status of a crash: the job is queued again, and the same script resumes from the newest complete epoch. The job is
not queued again if it was cancelled, if mpickpt itself refused to continue (a usage error, a directory that is in use,
corrupt checkpoints), or if several restarts in a row saved no newer step; they are counted in the checkpoint directory.
The exit status is that of the program, or 10 for a job that is given up because it makes no progress.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mpickpt.errors import BatchError, EpochError, InUseError, NoProgress, NothingToRestore, Stopped, UsageError
from mpickpt.slurm import Environment, find
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, replace_text

COUNT = "requeued"  # the file in the checkpoint directory
RESTARTS = 3
# A restart would end in the same way: a person has to act.
FOR_A_PERSON = {error.exit_code for error in (UsageError, InUseError, NothingToRestore, EpochError)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("status", type=int, metavar="STATUS", help="exit status of srun or mpirun: $?")
    parser.add_argument("--dir", type=Path, help="the checkpoint directory; MPICKPT_DIR by default")
    text = f"so many restarts in a row may save no newer step; {RESTARTS}"
    parser.add_argument("--restarts", type=int, default=RESTARTS, metavar="N", help=text)


def execute(args: argparse.Namespace) -> int:
    """Queue the job again, or say why not."""
    environment = find(os.environ)
    if not environment.job:
        raise UsageError("mpickpt requeue ends the script of a batch job, and SLURM_JOB_ID is not set: this is none.")
    directory = args.dir or os.environ.get("MPICKPT_DIR")
    if not directory:
        raise UsageError("Which checkpoint directory? Set MPICKPT_DIR at the head of the script, or give --dir.")
    status: int = args.status
    if status == 0:
        _say(f"{environment.job} is done, after {environment.restarts} restarts")
    elif status in FOR_A_PERSON:
        _say(f"{environment.job} is not queued again: it ended with status {status}, and would do so each time")
    else:
        _requeue(environment, Path(directory), status, args.restarts)
    return status


def _requeue(environment: Environment, directory: Path, status: int, most: int) -> None:
    complete = [slot for slot in Store(directory, crc32c).slots() if slot.complete]
    newest = max(complete, key=lambda slot: slot.epoch or 0, default=None)
    saved = f"nothing is saved in {directory}"
    if newest is not None:
        saved = f"epoch {newest.epoch} (step {newest.step}) of {directory} is complete"
    times = _count(environment, directory, None if newest is None else newest.step)
    if times >= most:
        raise NoProgress(
            f"{environment.job} is given up: {times} restarts in a row saved no newer step, and the last one ended "
            f"with status {status}; {saved}. See what it said above. To try again, submit it again."
        )
    try:
        environment.requeue()
    except BatchError as error:
        _say(f"{error} To go on, submit it again: {saved}.")
        return
    how = "was stopped in time" if status == Stopped.exit_code else f"ended with status {status}"
    _say(f"{environment.job} {how} and is queued again, restart {environment.restarts + 1}: {saved}")


def _count(environment: Environment, directory: Path, step: int | None) -> int:
    """Count the restarts in a row after which `step` is still the newest one saved."""
    path = directory / COUNT
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    here = {"job": environment.job, "step": step}
    same = all(before.get(name) == value for name, value in here.items())
    times = before.get("times", 0) + 1 if same else 0
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({**here, "times": times}))
    return int(times)


def _say(text: str) -> None:
    print(f"mpickpt: {text}", file=sys.stderr, flush=True)
