"""What the memory guard gains and costs: draining while ranks wait, and small messages.

Run under mpiexec with 2 ranks. First the ranks take turns: one computes while the other waits for it, so each waits
half of its time and all cores stay busy. The drain of one cut is timed, alternately with and without cores donated by
waiting ranks. Then messages of 8 bytes go back and forth, alternately with the guard open and closed; nothing is
protected.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
from folder import shared_folder
from mpi4py import MPI
from numpy.typing import NDArray

from mpickpt.layout.arrays import BLOCK_BYTES, SlotOffsets
from mpickpt.snapshot import CutPlan, Snapshotter, Target
from mpickpt.snapshot.guard import close_guard, open_guard

TURN_SECONDS = 0.005
COMM = MPI.COMM_WORLD
TOKEN: NDArray[np.uint8] = np.zeros(8, np.uint8)


def _take_turns(count: int) -> None:
    """Compute for a turn and wait for a turn, `count` times."""
    other = 1 - COMM.rank
    for _ in range(count):
        if COMM.rank == 1:
            COMM.Recv(TOKEN, other)
        end = time.perf_counter() + TURN_SECONDS
        while time.perf_counter() < end:
            pass
        COMM.Send(TOKEN, other)
        if COMM.rank == 0:
            COMM.Recv(TOKEN, other)


def _timed(count: int) -> float:
    COMM.Barrier()
    begin = time.perf_counter()
    _take_turns(count)
    return float(COMM.allreduce(time.perf_counter() - begin, MPI.MAX))


def _drain(folder: Path, nbytes: int, *, donates: bool) -> tuple[float, float]:
    """Seconds of a drain while the ranks take turns, and how much slower the turns were than without it."""
    path = folder / f"slot-{COMM.rank}"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, nbytes + (1 << 20))
    offsets = SlotOffsets(nbytes, (0,), (nbytes + 8192,), nbytes + 4096, 4096)
    open_guard(donate_cores=donates)
    snapshotter = Snapshotter()
    state = snapshotter.allocate(nbytes)
    state[:] = 1
    snapshotter.add(state, owned=True)
    snapshotter.seal(BLOCK_BYTES, 64 * BLOCK_BYTES)
    turns = 200
    plain = _timed(turns)
    target = Target(path, offsets, rank=COMM.rank, run=1, digest=bytes(32))
    snapshotter.cut(CutPlan(target, epoch=1, step=0, objects=b""))
    with_drain = _timed(turns)
    after = _timed(turns)
    while not COMM.allreduce(snapshotter.wait(0), MPI.MIN):
        _take_turns(10)
    seconds = float(COMM.allreduce(snapshotter.progress().drain_seconds, MPI.MAX))
    snapshotter.close()
    close_guard()
    return seconds, with_drain / min(plain, after) - 1


def _ping_pong(count: int) -> float:
    """Seconds of a message of 8 bytes."""
    other = 1 - COMM.rank
    COMM.Barrier()
    begin = time.perf_counter()
    for _ in range(count):
        if COMM.rank == 0:
            COMM.Send(TOKEN, other)
            COMM.Recv(TOKEN, other)
        else:
            COMM.Recv(TOKEN, other)
            COMM.Send(TOKEN, other)
    return (time.perf_counter() - begin) / (2 * count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="state of a rank")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1_000_000, help="there and back, in all")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the slots are written")
    options = parser.parse_args()
    if COMM.size != 2:
        parser.error("start it with 2 ranks")
    drains: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with shared_folder(COMM, "waiting-", options.dir) as folder:
        for _ in range(options.repetitions):
            for donates in (True, False):
                drains[donates].append(_drain(folder, options.mib << 20, donates=donates))
    pings: dict[bool, list[float]] = {True: [], False: []}
    pairs = 20
    for _ in range(pairs):
        for guarded in (True, False):
            if guarded:
                open_guard()
            pings[guarded].append(_ping_pong(options.messages // (2 * pairs)))
            if guarded:
                close_guard()
    if COMM.rank == 0:
        for donates, name in ((True, "waiting time donated"), (False, "not donated")):
            seconds = statistics.median(drain for drain, _ in drains[donates])
            slower = statistics.median(share for _, share in drains[donates])
            print(f"{name:18} drain {seconds * 1e3:7.0f} ms, the turns took {100 * slower:+.1f} % longer")
        ratios = [there / without for there, without in zip(pings[True], pings[False], strict=True)]
        plain = statistics.median(pings[False])
        print(f"message of 8 bytes {plain * 1e9:.0f} ns, guarded {100 * (statistics.median(ratios) - 1):+.1f} %")


main()
