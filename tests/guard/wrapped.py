"""An MPI program under the preloaded wrapper of wrapper.c: what the wrapper counts of its calls.

It counts before memory is protected, while it is, and after; and it checks the received data. Each rank prints one JSON
object.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from protected import BLOCK, Bench

from mpickpt.snapshot.guard import close_guard, open_guard

BYTES = 2 * BLOCK + 77
COMM = MPI.COMM_WORLD
OTHER = 1 - COMM.rank


def counts() -> np.ndarray:
    """Calls of MPI_Recv, MPI_Irecv, MPI_Sendrecv and read that the wrapper saw."""
    out = (ctypes.c_int * 4)()
    ctypes.CDLL(None).tell_counts(out)
    return np.array(out)


def receive(into: np.ndarray, path: Path) -> tuple[list[int], bool]:
    """Receive into a quarter of `into` by each of the calls; give what was counted, and whether the bytes are right."""
    before = counts()
    sent = [np.full(BYTES, 10 * call + COMM.rank, np.uint8) for call in range(4)]
    parts = [into[call * 4 * BLOCK + 13 :][:BYTES] for call in range(4)]
    if COMM.rank == 0:
        COMM.Send(sent[0], OTHER)
        COMM.Recv(parts[0], OTHER)
    else:
        COMM.Recv(parts[0], OTHER)
        COMM.Send(sent[0], OTHER)
    request = COMM.Irecv(parts[1], OTHER)
    COMM.Send(sent[1], OTHER)
    request.Wait()
    COMM.Sendrecv(sent[2], OTHER, 0, parts[2], OTHER, 0)
    with path.open("rb", buffering=0) as file:
        assert file.readinto(memoryview(parts[3])) == BYTES
    right = all((part == 10 * call + OTHER).all() for call, part in enumerate(parts))
    return (counts() - before).tolist(), right


def main() -> None:
    """Receive into plain memory, into protected memory, and into plain memory again."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as own:
        path = Path(own, "bytes")
        path.write_bytes(bytes([30 + OTHER]) * BYTES)
        plain = np.zeros(16 * BLOCK, np.uint8)
        told = {"rank": COMM.rank, "before": receive(plain, path)}
        open_guard()
        bench = Bench(plain.size, Path(own), COMM.rank)
        for cut in ("first", "second"):
            expected = bench.cut()
            told[cut] = receive(bench.region, path)
            told[f"image of the {cut}"] = np.array_equal(bench.image(), expected)
        bench.close()
        close_guard()
        told["after"] = receive(plain, path)
    os.write(1, f"{json.dumps(told)}\n".encode())  # in one piece: both ranks print


main()
