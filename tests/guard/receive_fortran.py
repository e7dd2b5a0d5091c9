"""An MPI program: rank 1 receives into protected memory through each of the Fortran calls of a library.

The message is shorter than the buffer. The guard has to open all blocks of the buffer: a fault would open those that
the message is written to. Rank 1 prints one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from protected import BLOCK, Bench

from mpickpt.snapshot.guard import close_guard, open_guard

COMM = MPI.COMM_WORLD
ROOM, SENT = 3 * BLOCK, 1000
START = BLOCK + 13


def receive(library: ctypes.CDLL, name: str, folder: Path) -> list[str]:
    """One call; give what was wrong."""
    open_guard()
    bench = Bench(7 * BLOCK, folder, COMM.rank)
    expected = bench.cut()
    into = bench.region[START : START + ROOM]
    pointer = into.ctypes.data_as(ctypes.c_void_p)
    wrong = [] if getattr(library, f"call_{name}")(pointer, ROOM, 0, COMM.py2f()) == 0 else ["an error code"]
    opened = np.flatnonzero(bench.writable()).tolist()
    reached = list(range(START // BLOCK, (START + ROOM - 1) // BLOCK + 1))
    wrong += [] if opened == reached else [f"writable {opened}, reached {reached}"]
    wrong += [] if (into == 7).sum() == SENT else ["wrong data"]
    wrong += [] if np.array_equal(bench.image(), expected) else ["a torn image"]
    bench.close()
    close_guard()
    return [f"{name}: {what}" for what in wrong]


def main() -> None:
    """Call the functions named on the command line."""
    wrong = []
    for name in sys.argv[3:]:
        if COMM.rank == 0:
            COMM.Send(np.full(SENT, 7, np.uint8), 1)
        else:
            with tempfile.TemporaryDirectory(dir=sys.argv[2]) as own:
                wrong += receive(ctypes.CDLL(sys.argv[1]), name, Path(own))
    if COMM.rank == 1:
        print(json.dumps({"wrong": wrong}))


main()
