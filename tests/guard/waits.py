"""An MPI program of 2 ranks: rank 0 waits for a message, which comes when its drain has ended.

Rank 0 prints one JSON object: how many bytes were drained while the rank waited, with and without its core donated.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
from mpi4py import MPI
from protected import Bench

from mpickpt.snapshot.guard import close_guard, open_guard

NBYTES = 32 << 20
ATTEMPTS = 20  # a drain may be over before the program gets to its call: with all of these that is not by chance


def waited(comm: MPI.Intracomm, folder: Path, *, lend_cores: bool, attempts: int) -> tuple[int, int]:
    """Give the bytes drained while rank 0 waited, and all of them; of the first attempt with any, or of the last."""
    token = np.zeros(1, np.uint8)
    saved = waiting = 0
    for attempt in range(attempts):
        drained = folder / f"drained-{lend_cores}-{attempt}"
        if comm.rank == 0:
            open_guard(donate_cores=lend_cores)
            bench = Bench(NBYTES, folder, comm.rank)
            bench.region[:] = 1
            bench.cut()
            watch = threading.Thread(target=lambda b, path: (b.snapshotter.wait(), path.touch()), args=(bench, drained))
            watch.start()
            comm.Recv(token, 1)
            watch.join()
            progress = bench.snapshotter.progress()
            saved, waiting = progress.bytes_written, progress.bytes_waiting
            bench.close()
            close_guard()
        else:
            while not drained.exists():
                threading.Event().wait(0.002)
            comm.Send(token, 0)
        if comm.bcast(waiting) > 0:
            break
    return waiting, saved


def main() -> None:
    """Wait with the core lent, and without."""
    comm = MPI.COMM_WORLD
    folder = Path(sys.argv[1])
    lent = waited(comm, folder, lend_cores=True, attempts=ATTEMPTS)
    kept = waited(comm, folder, lend_cores=False, attempts=3)
    if comm.rank == 0:
        print(json.dumps({"lent": lent, "kept": kept}))


main()
