"""Memory that several ranks write to (windows of MPI, shared mappings, files): images are those of the cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt

CELLS = 150_000  # some blocks
EPOCHS = 6
COMM = MPI.COMM_WORLD

Cells = NDArray[np.float64]


@contextmanager
def window(folder: Path) -> Iterator[Cells]:
    """Memory that rank 0 alone has, and all have mapped, by MPI."""
    win = MPI.Win.Allocate_shared(8 * CELLS if COMM.rank == 0 else 0, 8, comm=COMM)
    cells = np.ndarray(CELLS, "f8", win.Shared_query(0)[0])
    yield cells
    del cells
    win.Free()


@contextmanager
def posix(folder: Path) -> Iterator[Cells]:
    """The same by Python's shared memory."""
    own = shared_memory.SharedMemory(create=True, size=8 * CELLS) if COMM.rank == 0 else None
    name = COMM.bcast(None if own is None else own.name)
    mine = own or shared_memory.SharedMemory(name)
    cells = np.ndarray(CELLS, "f8", mine.buf)
    yield cells
    del cells
    mine.close()
    COMM.Barrier()
    if own is not None:
        own.unlink()
    resource_tracker.ensure_running()  # it stays, whoever comes first: so it is no test's leak


@contextmanager
def file(folder: Path) -> Iterator[Cells]:
    """A file that all have mapped."""
    path = folder / "cells"
    if COMM.rank == 0:
        np.zeros(CELLS).tofile(path)
    COMM.Barrier()
    yield np.memmap(path, np.float64, "r+")


@pytest.fixture(autouse=True, scope="module")
def tracker() -> None:
    """Start what Python starts with its first shared memory, so that it is no test's leak."""
    resource_tracker.ensure_running()


def _check(directory: Path, expected: dict[int, Cells], name: str, rank: int) -> None:
    """Compare both slots with what the array was at their cuts."""
    for slot in directory.glob("slot-*.h5"):
        saved = mpickpt.Checkpoint(slot)
        assert saved.verify() == []
        assert np.array_equal(saved.rank(rank)[name][...], expected[saved.step]), saved.epoch


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("share", [window, posix, file])
def test_another_rank_stores_into_it(mpi_tmp_path: Path, share: Callable, capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 0 saves it; the last rank changes cells all the time but at safe points."""
    place, writer = mpi_tmp_path / "ckpt", COMM.size - 1
    expected: dict[int, Cells] = {}
    with share(mpi_tmp_path) as cells:
        with mpickpt.open(place, COMM, every=1) as ckpt:
            if COMM.rank == 0:
                cells[:] = 0
                ckpt.protect("u", cells)
            u = ckpt.array("other", 1000)
            for step in ckpt.range(EPOCHS + 1):
                if COMM.rank == 0:
                    expected[step] = cells.copy()  # as it is at the safe point, as nobody has written since
                COMM.Barrier()
                if COMM.rank == writer:
                    cells[step::7] += 1 + step
                u += 1
                COMM.Barrier()
        said = capfd.readouterr().err
        if COMM.rank == 0:
            assert said.count("array 'u' lies in ") == 1, said
            _check(place, expected, "u", 0)
        COMM.Barrier()


@pytest.mark.mpi
def test_peers_put_into_a_window(mpi_tmp_path: Path) -> None:
    """Memory that MPI allocated for a window is the peers' to write to, on one node by their own mappings of it."""
    right = (COMM.rank + 1) % COMM.size
    expected: dict[int, Cells] = {}
    with mpickpt.open(mpi_tmp_path / "ckpt", COMM, every=1) as ckpt:
        win = MPI.Win.Allocate(8 * CELLS, 8, comm=COMM)
        u: Cells = np.frombuffer(win.tomemory(), np.float64)
        u[:] = COMM.rank
        ckpt.protect("u", u)
        sent = np.zeros(CELLS)
        for step in ckpt.range(EPOCHS + 1):
            expected[step] = u.copy()
            sent[:] = 1000 * step + COMM.rank
            win.Fence()
            win.Put(sent, right)
            win.Fence()
    COMM.Barrier()
    _check(mpi_tmp_path / "ckpt", expected, "u", COMM.rank)
    del u
    win.Free()


@pytest.mark.mpi(min_size=2)
def test_a_pool_that_is_too_small_for_it(mpi_tmp_path: Path) -> None:
    """All ranks are told by the first safe point which size is needed, and with it the program runs."""
    needed = -(-8 * CELLS // 262_144) * 262_144
    with window(mpi_tmp_path) as cells:
        for pool in (needed - 262_144, needed):
            with mpickpt.open(mpi_tmp_path / str(pool), COMM, every=1, pool=pool) as ckpt:
                _u = ckpt.protect("u", cells) if COMM.rank == 0 else ckpt.array("u", 10)
                if pool < needed:
                    with pytest.raises(mpickpt.UsageError, match=rf"Rank 0: The pool of .* 'u' .*pool={needed} or"):
                        ckpt.step()
                else:
                    for _ in ckpt.range(3):
                        COMM.Barrier()
            COMM.Barrier()
