"""A program for test_survive_mishaps.py: it loses ranks, and meets with mishaps while it goes on.

Its arguments are the number of steps, the ranks that die at one of them, joined by commas, and mishaps. One is
``WHO:WHAT:WHEN:CALL``: the process that is WHO gets the signal WHAT at the ``start`` or ``end`` of its first call of
CALL after the loss. WHO is a rank of the start, ``new`` for those that are kept ready, or ``first`` for that one of
them which makes the call first. Instead of a signal, ``limit`` makes it part of a batch job that ends soon, ``late`` is
a pause, and ``quick`` reduces the limit that CALL names.
"""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt

CELLS, LOSS = 1001, 30
IS_NEW = "mpickpt_kept" in sys._xoptions
NAME = "new" if IS_NEW else str(MPI.COMM_WORLD.rank)
is_late = IS_NEW  # the first loss has been


def evolve(cells: NDArray[np.uint64], low: int, step: int) -> None:
    """Advance cells, each of which depends on its number and on all steps."""
    cells *= np.uint64(3)
    cells += np.arange(low, low + cells.size, dtype=np.uint64) + np.uint64(step)


def solve(comm: MPI.Intracomm) -> None:
    """Run the job on the ranks of `comm`."""
    global is_late
    steps, dead = int(sys.argv[1]), sys.argv[2].split(",")
    low, high = (CELLS * r // comm.size for r in (comm.rank, comm.rank + 1))
    part = mpickpt.Part((CELLS,), start=(low,))
    with mpickpt.open("ckpt", comm, every=10) as ckpt:
        cells = ckpt.array("cells", (high - low,), np.uint64, fill=0, part=part)
        begins = ckpt.restored.step if ckpt.restored else 0
        print(f"rank {comm.rank} of {comm.size} ({NAME}, {os.getpid()}) begins at step {begins}", flush=True)
        for step in ckpt.range(steps):
            if step == LOSS and not is_late:
                is_late = True
                assert ckpt.save()
                comm.Barrier()
                if NAME in dead:
                    os.kill(os.getpid(), signal.SIGKILL)
            comm.Barrier()
            evolve(cells, low, step)
            time.sleep(0.01)
    blocks = comm.gather(cells.copy())
    if blocks is not None:
        Path("out").write_bytes(np.concatenate(blocks).tobytes())


@cache
def is_first() -> bool:
    """Return whether this is the first process to join that comes here."""
    with suppress(FileExistsError):
        Path("first").touch(exist_ok=False)
        return True
    return False


def find(call: str) -> tuple[Any, str]:
    """Return the owner and the name of what MODULE/NAME.NAME means."""
    module, _, names = call.partition("/")
    owner: Any = import_module(module)
    *outer, last = names.split(".")
    for name in outer:
        owner = getattr(owner, name)
    return owner, last


def wrap(call: str, when: str, act: Callable[[], None]) -> None:
    """Have the first call of a function after the first loss do more."""
    owner, name = find(call)
    function = getattr(owner, name)
    todo = [act]

    @wraps(function)
    def wrapped(*args: object, **options: object) -> object:
        is_due = is_late and todo
        if is_due and when == "start":
            todo.pop()()
        result = function(*args, **options)
        if is_due and when == "end":
            todo.pop()()
        return result

    setattr(owner, name, wrapped)


def prepare(who: str, what: str, when: str, call: str) -> None:
    """Prepare for one mishap of this process."""

    def meet() -> None:
        if who == "first" and not is_first():
            return
        print(f"{NAME}: {what} at the {when} of {call}", flush=True)
        if what == "limit":
            os.environ.update(SLURM_JOB_ID="7", SLURM_JOB_END_TIME=str(int(time.time()) + 30))
        elif what == "late":
            time.sleep(5)
        else:
            os.kill(os.getpid(), getattr(signal, what))

    if what == "quick":
        setattr(*find(call), 2)
    else:
        wrap(call, when, meet)


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # to see where it hangs
    for mishap in sys.argv[3:]:
        who, *rest = mishap.split(":")
        if who == NAME or (who == "first" and IS_NEW):
            prepare(who, *rest)
    mpickpt.main(solve)
