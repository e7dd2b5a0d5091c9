"""Arrays that not all ranks have: an error on a rank without one names the ranks that have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.cli.main import main
from mpickpt.texts import told_ranks

pytestmark = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1
OTHERS = told_ranks(range(max(LAST, 1)))  # on one rank all are skipped


def test_a_rank_without_a_share(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is told once, for all arrays alike; with an empty part nothing is said."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        arrays = [
            ckpt.array(name, 4, part=mpickpt.Part((4 * LAST,), (4 * COMM.rank,)))
            for name in ("u", "v")
            if COMM.rank != LAST
        ]
        ckpt.step()
        late = ckpt.array("late", 3, part=mpickpt.Part((3 * COMM.size,), (3 * COMM.rank,)))  # a layout of its own
        w = np.zeros(4 if COMM.rank != LAST else 0)
        ckpt.protect("w", w, mpickpt.Part((4 * LAST,), (4 * COMM.rank,)))
        ckpt.step()
    del arrays, late
    told = capfd.readouterr().err
    expected = [f"mpickpt: rank {LAST} declared no share of the global arrays 'u', 'v', all cells of which are"]
    lines = [line for line in told.splitlines() if "declared no share" in line]
    assert [line[: len(expected[0])] for line in lines] == (expected if COMM.rank == 0 else [])


def test_cells_that_are_missing_with_their_rank(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        if COMM.rank != LAST:
            ckpt.array("u", 4, part=mpickpt.Part((4 * COMM.size,), (4 * COMM.rank,)))
        told = rf"Array 'u': no rank's part holds .* \({4 * COMM.size},\)\. Rank {LAST} declared no array 'u'\."
        with pytest.raises(mpickpt.LayoutError, match=told):
            ckpt.step()


def test_an_array_that_only_other_ranks_saved(mpi_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a restart, in `Checkpoint`, and for the command line."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        both = ckpt.array("both", 3, fill=COMM.rank)
        own = ckpt.array("own", 3, fill=1.0 + COMM.rank) if COMM.rank != LAST else None
        for _ in ckpt.range(2):
            pass
    COMM.barrier()
    for lazy in (False, True):
        with mpickpt.open(mpi_tmp_path, COMM, lazy=lazy) as ckpt:
            if COMM.rank == LAST:
                told = f"Rank {LAST} saved no array 'own' .*: {OTHERS} did"
                with pytest.raises(mpickpt.LayoutError, match=told) as error:
                    ckpt.array("own", 3)
                read = str(error.value).rpartition("can read it: ")[2].rstrip(".")
                assert (eval(read, {"mpickpt": mpickpt})[...] == 1.0).all()  # what it says works
                with pytest.raises(mpickpt.LayoutError, match="There is no array 'nowhere' in epoch 1"):
                    ckpt.array("nowhere", 3)
            else:
                own = ckpt.array("own", 3)
                assert (own == 1.0 + COMM.rank).all()
            both = ckpt.array("both", 3)
            assert (both == COMM.rank).all()
    if COMM.rank == 0:
        checkpoint = mpickpt.Checkpoint(mpi_tmp_path)
        has = "has" if COMM.size == 2 else "have"
        with pytest.raises(KeyError, match=f"rank {LAST} has no array 'own'; {OTHERS} {has} it. Rank {LAST} has: both"):
            checkpoint.rank(LAST)["own"]
        with pytest.raises(KeyError, match=rf"'own' has no part: .* but {OTHERS} hold.* see rank\(0\)\['own'\]"):
            checkpoint["own"]
        out = str(mpi_tmp_path / "x.npy")
        assert main(["export", str(mpi_tmp_path), out, "--array", "own", "--rank", str(LAST)]) == 2
        assert f"There is no array 'own' on rank {LAST} of " in (told := capsys.readouterr().err)
        assert f", but on {OTHERS} (--rank 0). There is: both." in told
    COMM.barrier()
