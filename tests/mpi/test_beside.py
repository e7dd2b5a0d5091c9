"""Files and generators on several ranks: each has its own, and another number of ranks is refused or remapped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from test_redistribution import first_ranks

import mpickpt

pytestmark = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD


def test_each_rank_has_its_own(mpi_tmp_path: Path) -> None:
    path, drawn = mpi_tmp_path / f"log-{COMM.rank}.txt", []
    for stop in (8, 13):
        random.seed(COMM.rank)
        with mpickpt.open(mpi_tmp_path / "c", COMM, every=5) as ckpt:
            log = ckpt.append(path)
            ckpt.random()
            for _ in ckpt.range(stop):
                print(COMM.rank, random.random(), file=log)
            log.close()
    random.seed(COMM.rank)
    drawn = [f"{COMM.rank} {random.random()}\n" for _ in range(13)]
    assert path.read_text() == "".join(drawn)


def test_a_file_has_one_writer(mpi_tmp_path: Path) -> None:
    with (
        mpickpt.open(mpi_tmp_path / "c", COMM, every=1) as ckpt,
        pytest.raises(
            mpickpt.LayoutError,
            match=r"log.txt is appended to more than once, by ranks 0 (and|to) \d: each file has one",
        ),
    ):
        with ckpt.append(mpi_tmp_path / "log.txt"):
            next(ckpt.range(3))


def write(directory: Path, comm: MPI.Intracomm) -> None:
    np.random.seed(comm.rank)
    with mpickpt.open(directory / "c", comm, every=3) as ckpt:
        log = ckpt.append(directory / "log.txt") if comm.rank == 0 else None
        data = ckpt.append(directory / f"data-{comm.rank}", "ab", name="data")
        u = ckpt.array("u", 2, part=mpickpt.Part((2 * comm.size,), start=(2 * comm.rank,)))
        own = ckpt.array("own", 5)
        ckpt.random()
        for step in ckpt.range(5):
            data.write(bytes([step]) * (comm.rank + 1))
            u += 1
            own += 1
            if log is not None:
                print(step, file=log)
        data.close()
        if log is not None:
            log.close()


def test_another_number_of_ranks(mpi_tmp_path: Path) -> None:
    """Rank 0 goes on with the log, those that were there with their bytes; a rank more begins with nothing."""
    for old, new in ((1, 2), (2, 1)):
        folder = mpi_tmp_path / f"{old}-{new}"
        folder.mkdir(exist_ok=True)
        with first_ranks(old) as comm:
            if comm:
                write(folder, comm)
        with first_ranks(new) as comm:
            if comm:
                _restart(folder, comm, old)


def _restart(folder: Path, comm: MPI.Intracomm, old: int) -> None:
    def as_before(lengths: Sequence[int | None], rank: int, size: int) -> int:
        assert size == comm.size and len(lengths) == old
        return (lengths[rank] or 0) if rank < len(lengths) else 0

    with mpickpt.open(folder / "c", comm) as ckpt:
        assert ckpt.restored is not None and ckpt.restored.shapes == {"u": (2 * old,)}
        for refused in (lambda: ckpt.append(folder / "log.txt"), lambda: ckpt.append(folder / "x", "ab", name="data")):
            with pytest.raises(mpickpt.LayoutError, match=f"was appended to by one of {old} ranks, and there are"):
                refused()
            ckpt._claimed.clear()
        with pytest.raises(mpickpt.LayoutError, match="its remap function gave None"):
            ckpt.append(folder / "log.txt", remap=lambda lengths, rank, size: lengths[-1 if old > 1 else 0] and None)  # type: ignore[arg-type, return-value]
        ckpt._claimed.clear()
        with pytest.raises(mpickpt.LayoutError, match="was saved by"):
            ckpt.random()
        ckpt._claimed.clear()
        if comm.rank == 0:
            ckpt.append(folder / "log.txt", remap=as_before).close()
        ckpt.append(folder / f"data-{comm.rank}", "ab", name="data", remap=as_before).close()
        np.random.seed(99)
        ckpt.random(remap=lambda states, rank, size: states[rank] if rank < len(states) else None)
    if comm.rank == 0:
        assert (folder / "log.txt").read_text() == "0\n1\n2\n"
    was_there = comm.rank < old
    assert (folder / f"data-{comm.rank}").read_bytes() == (_bytes(comm.rank) if was_there else b"")
    expected = np.random.RandomState(comm.rank if was_there else 99).random()
    assert np.random.random() == expected


def _bytes(rank: int) -> bytes:
    return b"".join(bytes([step]) * (rank + 1) for step in range(3))
