"""Archives beside a program on several ranks: all of them leave the slot alone that rank 0 copies."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.errors import UsageError
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.session import archiver
from mpickpt.snapshot import Copier, crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold rank 0's copies up until the event is set, and have none cloned."""
    event, copy = threading.Event(), archiver._copy

    def copy_when_set(copier: Copier, source: Path, target: Path) -> None:
        assert event.wait(60)
        copy(copier, source, target)

    monkeypatch.setattr(archiver, "_copy", copy_when_set)
    monkeypatch.setattr(mpickpt.store.archive, "_clone", lambda *_: False)
    return event


@pytest.mark.parametrize("keep", [3, 4])
def test_a_slot_is_pinned_on_all_ranks(mpi_tmp_path: Path, held: threading.Event, keep: int) -> None:
    options: dict[str, Any] = {"every": 1, "keep": keep, "archive_every": "1h", "record": False}
    with mpickpt.open(mpi_tmp_path, COMM, **options) as ckpt:
        u = ckpt.array("u", 50_000, fill=0.0)
        for step in ckpt.range(12):
            ckpt.wait()
            if step == 9:
                held.set()
                made = ckpt._ending._archiver
                assert (made is None) == (COMM.rank > 0)
                if made is not None and made._thread is not None:
                    made._thread.join(60)
            u[:] = step + 1 + COMM.rank
    assert (ckpt.stats().complete, ckpt.stats().failed) == (11, 0)
    archived = Checkpoint(mpi_tmp_path / "epoch-1.h5")
    assert archived.verify() == []
    assert archived.step == 1
    for rank in range(COMM.size):
        assert np.unique(archived.rank(rank)["u"][...]) == [1 + rank]
    held_by = {slot.epoch: slot.index for slot in Store(mpi_tmp_path, crc32c).slots()}
    assert len(held_by) == keep
    assert {9, 10, 11} <= set(held_by), "from epoch 10 on its slot takes its turn again"
    COMM.barrier()


def test_what_rank_0_finds_wrong_is_raised_on_all(mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiver, "clones", lambda *_: False)
    with pytest.raises(UsageError, match="archive_every needs at least 3 slots here, and keep is 2"):
        mpickpt.open(mpi_tmp_path, COMM, keep=2, archive_every="1h")
    COMM.barrier()
    with mpickpt.open(mpi_tmp_path, COMM):
        pass
