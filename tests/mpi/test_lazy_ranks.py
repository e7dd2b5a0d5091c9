"""Lazy restarts on any number of ranks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.restart.lazy import Loading

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
ROWS, COLS = 40, 32 * 1024  # a row is a block
FIELD = np.arange(ROWS * COLS, dtype=np.float64).reshape(ROWS, COLS)


def run(comm: MPI.Intracomm, directory: Path, stop: int, **options: bool) -> tuple[int, int]:
    """Count in an array of the rank's own and in a part of a global one; check both; give its rows."""
    low, high = ROWS * comm.rank // comm.size, ROWS * (comm.rank + 1) // comm.size
    part = mpickpt.Part((ROWS, COLS), start=(low, 0))
    with mpickpt.open(directory, comm, every=5, **options) as ckpt:
        own = ckpt.array("own", (50, COLS), fill=comm.rank, remap=lambda olds, rank, size: np.full((50, COLS), rank))
        u = ckpt.array("u", (high - low, COLS), fill=lambda a: np.copyto(a, FIELD[low:high]), part=part)
        for step in ckpt.range(stop):
            u[(step - low) % ROWS : (step - low) % ROWS + 1] += 1.0  # one rank's, or nobody's
            own[step % 50] += step
    wanted = FIELD.copy()
    for step in range(stop):
        wanted[step % ROWS] += 1.0
    assert np.array_equal(u, wanted[low:high])
    return int(own[:, 0].sum()), int(own[0, 0])


def test_same_ranks(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Lazy starts one after the other, the last one without a cut in it."""
    for stop in (12, 31, 33):
        total, _ = run(COMM, mpi_tmp_path / "c", stop, lazy=True)
        assert total == 50 * COMM.rank + sum(range(stop))
    if COMM.rank == 0:
        assert "on " + str(COMM.size) in capfd.readouterr().err
    run(COMM, mpi_tmp_path / "c", 34)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("stop", [4, 20], ids=["no cut", "cuts"])
def test_nothing_is_written_before_all_ranks_are_sound(
    mpi_tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rank is late, and then its arrays are corrupt: all ranks say so, and have both epochs still."""
    directory = mpi_tmp_path / "c"
    run(COMM, directory, 12)
    COMM.Barrier()
    before = [path.read_bytes() for path in sorted(directory.glob("slot-*"))]
    COMM.Barrier()
    finish = Loading.finish

    def late(self: Loading) -> None:
        finish(self)
        if COMM.rank == COMM.size - 1:
            time.sleep(0.5)
            raise mpickpt.CorruptionError("as if", rank=COMM.rank)

    monkeypatch.setattr(Loading, "finish", late)
    with pytest.raises(mpickpt.CorruptionError, match=f"Rank {COMM.size - 1}: as if") as found:
        run(COMM, directory, 10 + stop, lazy=True)
    assert found.value.everywhere
    COMM.Barrier()
    assert [path.read_bytes() for path in sorted(directory.glob("slot-*"))] == before


@pytest.mark.mpi(min_size=2)
def test_other_ranks(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On another number of ranks all is read before the program computes, as ever."""
    inside = COMM.rank < COMM.size - 1
    fewer = COMM.Split(0 if inside else MPI.UNDEFINED, COMM.rank)
    if inside:
        run(fewer, mpi_tmp_path / "c", 12)
        fewer.Free()
    COMM.Barrier()
    run(COMM, mpi_tmp_path / "c", 23, lazy=True)
    if COMM.rank == 0:
        told = capfd.readouterr().err
        assert f"on {COMM.size} ranks (written by {COMM.size - 1})\n" in told
