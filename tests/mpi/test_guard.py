"""Receives that are pending at a cut: the image is the memory as it was at the cut."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt

CELLS = 300_000  # some blocks
EPOCHS = 4

Bytes = NDArray[np.uint8]
Write = Callable[[Bytes, int], None]  # what happens after the cut of a step, while the drain runs
Prepare = Callable[[MPI.Intracomm, Bytes], tuple[Write, Write, Callable[[], None]]]


def _neighbours(comm: MPI.Intracomm) -> tuple[int, int]:
    return (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size


def _message(rank: int, step: int, size: int) -> Bytes:
    return np.full(size, (17 * rank + 29 * step + 3) % 251, np.uint8)


def pending_receives(comm: MPI.Intracomm, u: Bytes) -> tuple[Write, Write, Callable[[], None]]:
    """An Irecv that is posted before each cut; its message is sent after it."""
    left, right = _neighbours(comm)
    into = u[100 : 100 + CELLS // 2]
    requests: list[MPI.Request] = []

    def before(u: Bytes, step: int) -> None:
        requests.append(comm.Irecv(into, left, step))
        comm.Barrier()

    def after(u: Bytes, step: int) -> None:
        comm.Barrier()  # every rank is cut
        comm.Send(_message(comm.rank, step, into.size), right, step)
        requests.pop().Wait()
        assert np.array_equal(into, _message(left, step, into.size))

    return before, after, lambda: None


def persistent_receives(comm: MPI.Intracomm, u: Bytes) -> tuple[Write, Write, Callable[[], None]]:
    """A receive that was made once and is started in each step."""
    left, right = _neighbours(comm)
    into = u[-CELLS // 3 :]
    request = comm.Recv_init(into, left, 5)

    def after(u: Bytes, step: int) -> None:
        request.Start()
        comm.Send(_message(comm.rank, step, into.size), right, 5)
        request.Wait()
        assert np.array_equal(into, _message(left, step, into.size))

    return lambda u, step: None, after, request.Free


def window(comm: MPI.Intracomm, u: Bytes) -> tuple[Write, Write, Callable[[], None]]:
    """A window that a peer writes to while the epoch is drained."""
    left, right = _neighbours(comm)
    win = MPI.Win.Create(u, comm=comm)

    def after(u: Bytes, step: int) -> None:
        sent = _message(comm.rank, step, CELLS // 2)
        win.Fence()
        win.Put(sent, right, [50, sent.size, MPI.BYTE])
        win.Fence()
        assert np.array_equal(u[50 : 50 + sent.size], _message(left, step, sent.size))

    return lambda u, step: None, after, win.Free


@pytest.mark.mpi
@pytest.mark.parametrize("prepare", [pending_receives, persistent_receives, window])
def test_receive_over_cuts(mpi_tmp_path: Path, prepare: Prepare) -> None:
    comm = MPI.COMM_WORLD
    for epoch in range(1, EPOCHS + 1):
        place = mpi_tmp_path / str(epoch)
        with mpickpt.open(place, comm, every=1) as ckpt:
            u = ckpt.array("u", CELLS, np.uint8, fill=comm.rank + 1)
            before, after, finish = prepare(comm, u)
            expected = u.copy()
            steps = ckpt.range(epoch + 1)
            for step in range(epoch + 1):
                before(u, step)
                expected = u.copy()
                assert next(steps) == step  # the cut, but for step 0
                after(u, step)
                u[::1000] += np.uint8(1)
            finish()
        saved = mpickpt.Checkpoint(place)
        assert saved.step == epoch
        assert np.array_equal(saved.rank(comm.rank)["u"], expected)
        comm.Barrier()


@pytest.mark.mpi
def test_memory_kept_writable(mpi_tmp_path: Path) -> None:
    """A call fetched as a pointer goes past the guard; the image is right if the program says what it writes to."""
    comm = MPI.COMM_WORLD
    untracked = ctypes.CDLL(None, use_errno=True).read
    with (
        mpickpt.open(mpi_tmp_path / "kept", comm, every=1) as ckpt,
        Path("/dev/zero").open("rb", buffering=0) as zeros,
    ):
        u = ckpt.array("u", CELLS, np.uint8, fill=7)
        kept = u[1000:2000]
        with ckpt.writable(kept):
            steps = ckpt.range(3)
            for step in range(3):
                expected = u.copy()
                assert next(steps) == step
                got = untracked(zeros.fileno(), kept.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(kept.size))
                assert got == kept.size, ctypes.get_errno()
                u += np.uint8(step + 1)
        with pytest.raises(mpickpt.LayoutError, match="contiguous"):
            ckpt.writable(u[::2])
    assert np.array_equal(mpickpt.Checkpoint(mpi_tmp_path / "kept").rank(comm.rank)["u"], expected)
