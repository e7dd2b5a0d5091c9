"""A program on any number of ranks: cut, restored, and the same bits at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
ROWS, COLS = 61, 4000


def part_of(comm: MPI.Intracomm) -> tuple[int, int]:
    return ROWS * comm.rank // comm.size, ROWS * (comm.rank + 1) // comm.size


def program(directory: Path, stop: int, comm: MPI.Intracomm = COMM, **options: object) -> dict[str, Any]:
    """Couple all ranks in each step by a sum; give this rank's state at the end."""
    options.setdefault("every", 10)
    low, high = part_of(comm)
    with mpickpt.open(directory, comm, **options) as ckpt:
        field = ckpt.array("field", (high - low, COLS), fill=1.0, part=mpickpt.Part((ROWS, COLS), (low, 0)))
        walk = ckpt.protect("walk", np.zeros(1001))
        rng = ckpt.object("rng", np.random.default_rng(comm.rank))
        first = None
        for step in ckpt.range(stop):
            first = step if first is None else first
            walk += rng.standard_normal(walk.shape)
            total = comm.allreduce(float(walk[0]))
            field *= 1 + 1e-3 * np.sin(total + step)
        return {"field": field.copy(), "walk": walk.copy(), "first": first, "ckpt": ckpt}


def slots(directory: Path) -> dict[int, tuple[int | None, int | None]]:
    """Epoch and step by slot."""
    return {slot.index: (slot.epoch, slot.step) for slot in Store(directory, crc32c).slots()}


def test_same_bits(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    straight = program(mpi_tmp_path / "straight", 40)
    program(mpi_tmp_path / "c", 25)
    COMM.barrier()
    assert slots(mpi_tmp_path / "c") == {0: (1, 10), 1: (2, 20)}
    capfd.readouterr()
    again = program(mpi_tmp_path / "c", 40)
    told = capfd.readouterr().err
    ranks = f"{COMM.size} rank{'s' if COMM.size > 1 else ''}"
    line = f"mpickpt: restored epoch 2 (step 20) of {mpi_tmp_path / 'c'} on {ranks}\n"
    assert told == (line if COMM.rank == 0 else "")
    assert again["first"] == 20
    assert np.array_equal(again["field"], straight["field"])
    assert np.array_equal(again["walk"], straight["walk"])


def test_ranks_may_be_far_apart(mpi_tmp_path: Path) -> None:
    """Ranks that share no message drift apart by many steps; the epochs are complete all the same."""
    with mpickpt.open(mpi_tmp_path, COMM, every=5) as ckpt:
        u = ckpt.array("u", 100_000)
        for step in ckpt.range(31):
            u += step
            time.sleep(0.004 * COMM.rank)
    assert ckpt.stats().complete == 6
    COMM.barrier()
    assert slots(mpi_tmp_path) == {0: (5, 25), 1: (6, 30)}


def test_interval_on_skewed_ranks(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, interval=0.15) as ckpt:
        u = ckpt.array("u", 10_000)
        for step in ckpt.range(60):
            u[:] = step
            time.sleep(0.003 * (1 + COMM.rank) + 0.01)
    stats = ckpt.stats()
    assert COMM.allgather(stats.cuts) == [stats.cuts] * COMM.size
    assert stats.complete == stats.cuts >= 2
    COMM.barrier()
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        assert ckpt.restored is not None
        assert (ckpt.array("u", 10_000) == ckpt.restored.step - 1).all()


def test_options_of_rank_0_count(mpi_tmp_path: Path) -> None:
    mine = {"every": 10 + COMM.rank, "keep": 2 + COMM.rank}
    result = program(mpi_tmp_path / f"d{COMM.rank}", 35, **mine)
    assert result["ckpt"].options.every == 10
    assert result["ckpt"].options.directory == mpi_tmp_path / "d0"
    assert result["ckpt"].stats().cuts == 3


def test_sessions_of_parts_of_the_ranks(mpi_tmp_path: Path) -> None:
    color = COMM.rank % 2
    comm = COMM.Split(color, COMM.rank)
    for stop in (25, 35):
        result = program(mpi_tmp_path / str(color), stop, comm)
    assert result["first"] == 20
    assert result["ckpt"].stats().complete == 1
    comm.Free()


def test_ranks_may_have_different_arrays(mpi_tmp_path: Path) -> None:
    for _ in range(2):
        with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
            arrays = [ckpt.array(f"a{k}", (k, 1000), np.float32, fill=COMM.rank) for k in range(COMM.rank)]
            for _ in ckpt.range(4):
                for array in arrays:
                    array += 1
            assert all((array == COMM.rank + 4).all() for array in arrays)


def test_late_arrays(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, every=2) as ckpt:
        u = ckpt.array("u", 5000)
        late: np.ndarray | None = None
        for step in ckpt.range(9):
            if step == 5:
                late = ckpt.array("late", 300 + COMM.rank, fill=float(COMM.rank))
            u += 1
        assert late is not None
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        assert (ckpt.array("u", 5000) == 8).all()
        assert (ckpt.array("late", 300 + COMM.rank) == COMM.rank).all()


def test_parts_that_do_not_fit_are_an_error_on_all_ranks(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        _u = ckpt.array("u", 10, part=mpickpt.Part((10 * COMM.size + 1,), (10 * COMM.rank,)))
        with pytest.raises(mpickpt.LayoutError, match="Array 'u': no rank's part holds the cells"):
            ckpt.step()


def test_directory_in_use_is_an_error_on_all_ranks(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM), pytest.raises(mpickpt.InUseError, match="is in use by process"):
        mpickpt.open(mpi_tmp_path, COMM)
