"""Restart on another number of ranks: subsets of the ranks play the older and the newer run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
ROWS, COLS = 23, 700  # no number of ranks divides 23
FIELD = np.arange(ROWS * COLS, dtype=np.float64).reshape(ROWS, COLS)


@contextmanager
def first_ranks(count: int) -> Iterator[MPI.Intracomm | None]:
    """Make a communicator of the first `count` ranks, None on the others, who wait."""
    inside = COMM.rank < count
    comm = COMM.Split(0 if inside else MPI.UNDEFINED, COMM.rank)
    yield comm if inside else None
    if inside:
        comm.Free()
    COMM.barrier()


def halo_part(comm: MPI.Intracomm) -> tuple[int, int, mpickpt.Part]:
    low, high = ROWS * comm.rank // comm.size, ROWS * (comm.rank + 1) // comm.size
    return low, high, mpickpt.Part((ROWS, COLS), start=(low, 0), local=np.s_[1:-1])


def write(comm: MPI.Intracomm, directory: Path, epochs: int = 1) -> None:
    """Save the field with wrong halo cells (only the owner's cells count), and what belongs to each rank."""
    low, high, part = halo_part(comm)
    with mpickpt.open(directory, comm, every=1) as ckpt:
        u = ckpt.array("u", (high - low + 2, COLS), fill=-1.0, part=part)
        u[1:-1] = FIELD[low:high]
        columns = slice(COLS * comm.rank // comm.size, COLS * (comm.rank + 1) // comm.size)
        block = np.asfortranarray(FIELD[:, columns])
        ckpt.protect("columns", block, part=mpickpt.Part((ROWS, COLS), (0, columns.start)))
        own = ckpt.array("own", 100 + comm.rank, np.int32, fill=comm.rank)
        ckpt.object("history", ["all", "the", "same"], on_rebind="ignore")
        ckpt.object("mine", f"rank {comm.rank}", on_rebind="ignore")
        for _ in ckpt.range(epochs + 1):
            own += 1000


@pytest.mark.parametrize("writers", [1, 2, 3, 4])
@pytest.mark.parametrize("readers", [1, 2, 3, 4])
def test_global_arrays(mpi_tmp_path: Path, writers: int, readers: int, capfd: pytest.CaptureFixture[str]) -> None:
    if max(writers, readers) > COMM.size:
        pytest.skip("not so many ranks")
    with first_ranks(writers) as comm:
        if comm:
            write(comm, mpi_tmp_path)
    capfd.readouterr()
    with first_ranks(readers) as comm:
        if not comm:
            return
        low, high, part = halo_part(comm)
        with mpickpt.open(mpi_tmp_path, comm) as ckpt:
            assert ckpt.restored == mpickpt.Restored(1, 1, mpi_tmp_path / "slot-0.h5", writers)
            told = capfd.readouterr().err
            if comm.rank == 0 and readers != writers:
                assert f"on {readers} rank" in told
                assert f"(written by {writers})" in told
            u = ckpt.array("u", (high - low + 2, COLS), fill=-5.0, part=part)
            assert np.array_equal(u[1:-1], FIELD[low:high])
            if readers != writers:  # halo cells inside the field are the owner's, those beyond it are filled
                padded = np.pad(FIELD, ((1, 1), (0, 0)), constant_values=-5.0)
                assert np.array_equal(u, padded[low : high + 2])
            if readers == 1 or readers == writers:
                edge = np.zeros((ROWS, COLS * (comm.rank + 1) // readers - COLS * comm.rank // readers), order="F")
                ckpt.protect("columns", edge, part=mpickpt.Part((ROWS, COLS), (0, COLS * comm.rank // readers)))
                first = COLS * comm.rank // readers
                assert np.array_equal(edge, FIELD[:, first : first + edge.shape[1]])


@pytest.mark.mpi(min_size=2)
def test_what_belongs_to_ranks(mpi_tmp_path: Path) -> None:
    write(COMM, mpi_tmp_path)
    COMM.barrier()
    with first_ranks(COMM.size - 1) as comm:
        if not comm:
            return
        with mpickpt.open(mpi_tmp_path, comm, every=1) as ckpt:
            assert ckpt.object("history", [], replicated=True) == ["all", "the", "same"]
            joined = ckpt.object("mine", "", remap=lambda old, rank, size: f"{rank}/{size}: {old[0]} to {old[-1]}")
            assert joined == f"{comm.rank}/{comm.size}: rank 0 to rank {COMM.size - 1}"
            out = ckpt.array("own", COMM.size, remap=lambda old, rank, size: [a[rank] for a in old])
            assert out.tolist() == [r + 1000 for r in range(COMM.size)]


class Sim:
    """What a program holds its arrays in."""

    def __init__(self, u: NDArray[np.float64], row: NDArray[np.float64]) -> None:
        self.u, self.row = u, row


@pytest.mark.mpi(min_size=2)
def test_objects_that_hold_arrays(mpi_tmp_path: Path) -> None:
    """On other ranks a replicated object holds the array of its rank; `remap` is given the old ranks' arrays."""
    low, high, part = halo_part(COMM)
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", (high - low + 2, COLS), fill=-1.0, part=part)
        u[1:-1] = FIELD[low:high]
        table = ckpt.protect("table", np.arange(20.0), remap=lambda old, rank, size: old[0])
        sim = ckpt.object("sim", Sim(u, table[5:]))
        views = ckpt.object("views", [u[1:-1]])
        for _ in ckpt.range(2):
            table += 1
        assert sim.row.base is table
        assert len(views) == 1
    COMM.barrier()
    with first_ranks(COMM.size - 1) as comm:
        if not comm:
            return
        low, high, part = halo_part(comm)
        with mpickpt.open(mpi_tmp_path, comm) as ckpt:
            with pytest.raises(mpickpt.LayoutError, match="Object 'sim' holds array 'u', which is declared after it"):
                ckpt.object("sim", sim, replicated=True)
        with mpickpt.open(mpi_tmp_path, comm, every=1) as ckpt:
            u = ckpt.array("u", (high - low + 2, COLS), fill=-1.0, part=part)
            table = ckpt.protect("table", np.arange(20.0), remap=lambda old, rank, size: old[0])
            sim = ckpt.object("sim", sim, replicated=True)
            assert sim.u is u
            assert np.shares_memory(sim.row, table)
            np.testing.assert_array_equal(sim.row, np.arange(6.0, 21.0))
            joined = ckpt.object("views", [], remap=lambda old, rank, size: np.concatenate([views[0] for views in old]))
            np.testing.assert_array_equal(joined, FIELD)
        with mpickpt.open(mpi_tmp_path, comm) as ckpt:
            u = ckpt.array("u", (high - low + 2, COLS), part=part)
            table = ckpt.protect("table", np.arange(20.0), remap=lambda old, rank, size: old[0])
            with pytest.raises(mpickpt.LayoutError, match="Object 'views' holds a part of array 'u'"):
                ckpt.object("views", [], replicated=True)


@pytest.mark.mpi(min_size=2)
def test_what_has_no_meaning_on_other_ranks_fails_by_name(mpi_tmp_path: Path) -> None:
    write(COMM, mpi_tmp_path)
    COMM.barrier()
    with first_ranks(COMM.size - 1) as comm:
        if not comm:
            return
        with mpickpt.open(mpi_tmp_path, comm) as ckpt:
            with pytest.raises(mpickpt.LayoutError, match=f"Array 'own' was saved by {COMM.size} ranks .*remap="):
                ckpt.array("own", 100)
            with pytest.raises(mpickpt.LayoutError, match="Object 'mine' was saved .* replicated=True, or remap="):
                ckpt.object("mine", "")
            with pytest.raises(mpickpt.LayoutError, match="There is no object 'other' in epoch 1"):
                ckpt.object("other", "", replicated=True)
            with pytest.raises(mpickpt.LayoutError, match="There is no array 'v' in epoch 1"):
                ckpt.array("v", 3)
            low, high, _ = halo_part(comm)
            with pytest.raises(mpickpt.LayoutError, match=r"Array 'u' is now .*\(24, 700\), but .*\(23, 700\)"):
                ckpt.array("u", (high - low, COLS), part=mpickpt.Part((ROWS + 1, COLS), (low, 0)))


@pytest.mark.mpi(min_size=2)
def test_damage_is_found_whoever_reads_the_share(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for rank in range(COMM.size):
        directory = mpi_tmp_path / str(rank)
        write(COMM, directory, epochs=2)
        COMM.barrier()
        with first_ranks(COMM.size - 1) as comm:
            if not comm:
                continue
            if comm.rank == 0:
                place = Store(directory, crc32c).offsets(1)[rank]
                with (directory / "slot-1.h5").open("r+b") as file:
                    file.seek(place.arrays[0] + 8 * COLS)
                    file.write(b"\xff")
            comm.barrier()
            capfd.readouterr()
            with mpickpt.open(directory, comm) as ckpt:
                assert ckpt.restored is not None
                assert ckpt.restored.epoch == 1
            if comm.rank == 0:
                assert f"epoch 2 is corrupt: rank {rank}, array 'u', block 0" in capfd.readouterr().err


@pytest.mark.mpi(min_size=2)
def test_the_new_number_of_ranks_takes_over_slot_by_slot(mpi_tmp_path: Path) -> None:
    write(COMM, mpi_tmp_path, epochs=2)
    COMM.barrier()
    with first_ranks(COMM.size - 1) as comm:
        if not comm:
            return
        low, high, part = halo_part(comm)

        def sizes() -> dict[int, tuple[int, int | None]]:
            comm.barrier()
            return {slot.index: (slot.world_size, slot.epoch) for slot in Store(mpi_tmp_path, crc32c).slots()}

        def advance(to: int) -> None:
            with mpickpt.open(mpi_tmp_path, comm, every=1) as ckpt:
                _u = ckpt.array("u", (high - low + 2, COLS), part=part)
                if ckpt.restored and ckpt.restored.world_size == COMM.size:
                    with pytest.warns(UserWarning, match="holds columns"):
                        ckpt.step()
                for _ in ckpt.range(3, to):
                    pass

        advance(4)
        assert sizes() == {0: (comm.size, 3), 1: (COMM.size, 2)}
        advance(5)
        assert sizes() == {0: (comm.size, 3), 1: (comm.size, 4)}


SCALAR, COLUMN, FEW = np.array(2.5), np.arange(9.0).reshape(9, 1), np.arange(15.0).reshape(3, 5)


def declare_odd_shapes(ckpt: mpickpt.Session, comm: MPI.Intracomm, value: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Declare arrays whose bytes are the same in both orders on some ranks; gives each, and what it should hold."""
    found = []
    if comm.rank == comm.size - 1:  # no other rank has a share of it
        found.append((ckpt.array("scalar", (), fill=value, part=mpickpt.Part((), ())), SCALAR))
    for name, world, cuts in (
        ("column", COLUMN, [9 * rank // comm.size for rank in range(comm.size + 1)]),
        ("few", FEW, [*(min(2 * rank, 3) for rank in range(comm.size)), 3]),  # two rows, one, none
    ):
        mine = slice(cuts[comm.rank], cuts[comm.rank + 1])
        array = np.full_like(world[mine], value, order="F")
        part = mpickpt.Part(world.shape, (mine.start, 0))
        found.append((ckpt.protect(name, array, part), world[mine]))
    return found


@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 3), (4, 4)])
def test_shapes_that_lie_in_both_orders(mpi_tmp_path: Path, writers: int, readers: int) -> None:
    """No axes, one column, one row beside others, empty shares, more ranks than rows, ranks without a share."""
    if max(writers, readers) > COMM.size:
        pytest.skip("not so many ranks")
    with first_ranks(writers) as comm:
        if comm:
            with mpickpt.open(mpi_tmp_path, comm, every=1) as ckpt:
                arrays = declare_odd_shapes(ckpt, comm, 0.0)
                for array, right in arrays:
                    array[...] = right
                for _ in ckpt.range(2):
                    pass
    with first_ranks(readers) as comm:
        if comm:
            with mpickpt.open(mpi_tmp_path, comm) as ckpt:
                assert ckpt.restored is not None
                arrays = declare_odd_shapes(ckpt, comm, np.nan)
                for array, right in arrays:
                    assert np.array_equal(array, right)
                ckpt.step()  # no rank is warned of what others have a share of
