"""A session with ckpt.comm, at its edges."""

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
        ckpt.array("u", 1000)
        for step in ckpt.range(6):
            for _ in range(calls):
                assert comm.sendrecv(step, dest=(COMM.rank + 1) % COMM.size, source=(COMM.rank - 1) % COMM.size) == step
    COMM.barrier()
    assert [slot.epoch for slot in Store(mpi_tmp_path, crc32c).slots() if slot.whole] == [1]
