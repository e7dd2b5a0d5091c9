"""Edge cases of a session with ckpt.comm."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD


@pytest.mark.parametrize("calls", [1, 3, 10, 30, 100])
def test_the_end_comes_just_after_the_counts(mpi_tmp_path: Path, calls: int) -> None:
    """The last calls of ckpt.comm bring the counts of the last cut; neither a safe point nor a wait follows."""
    with mpickpt.open(mpi_tmp_path, COMM, every=5) as ckpt:
        comm = ckpt.comm
        _u = ckpt.array("u", 1000)
        for step in ckpt.range(6):
            for _ in range(calls):
                assert comm.sendrecv(step, dest=(COMM.rank + 1) % COMM.size, source=(COMM.rank - 1) % COMM.size) == step
    COMM.barrier()
    assert [slot.epoch for slot in Store(mpi_tmp_path, crc32c).slots() if slot.complete] == [1]


def test_what_was_not_sent_again_before_the_next_cut_either(mpi_tmp_path: Path) -> None:
    """An early message of an older epoch, and nothing else in flight: it is not sent twice after the next restart."""
    got = []

    def run(steps: int, *, every: int, restart: str | int) -> None:
        with mpickpt.open(mpi_tmp_path, COMM, every=every, restart=restart) as ckpt:
            comm = ckpt.comm
            _u = ckpt.array("u", 1000)
            for step in ckpt.range(steps):
                if COMM.rank == 0 and step in (15, 16):
                    comm.send(step, dest=1)
                elif COMM.rank == 1 and step in (9, 16):
                    got.append(comm.recv(source=0))
        COMM.barrier()

    run(16, every=10, restart="never")
    run(14, every=13, restart=1)
    run(18, every=100, restart="auto")
    assert got == ([15, 16] if COMM.rank == 1 else [])
