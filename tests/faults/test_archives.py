"""Archives beside real ranks, which are killed with a copy in progress: each archive is valid whenever it is there."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
from mpijob import mpi_job

from mpickpt.reading.checkpoint import Checkpoint

PROGRAM = """
import time
from mpi4py import MPI
import mpickpt
from mpickpt.store import archive

archive._clone = lambda *_: False  # copied, wherever this test runs
comm = MPI.COMM_WORLD
with mpickpt.open("c", comm) as ckpt:
    u = ckpt.array("u", 1 << 20, fill=0.0)
    for step in ckpt.range(10**9):
        u += 1
        comm.barrier()
        time.sleep(0.01)
"""
OPTIONS = ["--interval", "0.1s", "--archive-every", "0.2s", "--keep-archives", "3"]


def archived(directory: Path) -> set[int]:
    """Check all archives that are there, each of which may be deleted any time, and return their epochs."""
    found = set()
    for path in directory.glob("epoch-*.h5"):
        checkpoint = Checkpoint(path)
        assert checkpoint.verify() == []
        for rank in range(checkpoint.world_size):
            assert np.unique(checkpoint.rank(rank)["u"][...]) == [checkpoint.step]
        found.add(checkpoint.epoch)
    return found


def test_archives_are_valid_whenever_the_ranks_are_killed(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    directory, copying = tmp_path / "c", 0
    seen: set[int] = set()
    for turn in range(3):
        command = ["-m", "mpickpt", "run", *OPTIONS, tmp_path / "app.py"]
        with mpi_job(2, command, tmp_path / f"log{turn}") as job:
            known, deadline = len(seen), time.monotonic() + 100
            while len(seen) < known + 4 or not list(directory.glob("epoch-*.new")):
                assert time.monotonic() < deadline
                assert job.running(), job.output()
                seen |= {int(path.stem.removeprefix("epoch-")) for path in directory.glob("epoch-*.h5")}
            assert job.kill_rank(0)
            job.wait(60)
            told = job.output()
        assert not re.search("Epoch .* failed", told)
        copying += len(list(directory.glob("epoch-*.new")))
        assert 1 <= len(archived(directory)) <= 5, "those that stay, one that is new, and one that could not be deleted"
    assert copying, "no copy was in progress when the ranks were killed"
