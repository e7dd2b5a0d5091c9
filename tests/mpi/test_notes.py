"""The notes of all ranks of a run exist, and agree with the session."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.report.figures import figures_of
from mpickpt.report.files import read_run, runs
from mpickpt.report.notes import total

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD


def compute(directory: Path, **options: object) -> mpickpt.Stats:
    """Run a program in which the ranks wait for each other; gives what its session says at the end."""
    with mpickpt.open(directory, COMM, **options) as ckpt:  # type: ignore[arg-type]
        u = ckpt.array("u", 400_000)
        for step in ckpt.range(100):
            u += step
            time.sleep(0.002 * (COMM.rank + 1))
            COMM.allreduce(step)
        COMM.barrier()
    return ckpt.stats()


@pytest.mark.parametrize("options", [{"every": 10}, {"interval": 0.05}, {"every": 1, "pool": 1}])
def test_notes_agree_with_the_stats(mpi_tmp_path: Path, options: dict[str, object]) -> None:
    stats = compute(mpi_tmp_path, **options)
    COMM.barrier()
    (name,) = runs(mpi_tmp_path)
    run = read_run(mpi_tmp_path, name)
    assert sorted(run.ranks) == list(range(COMM.size))
    notes = run.ranks[COMM.rank]
    assert notes.end is not None
    assert (notes.header.rank, notes.header.ranks) == (COMM.rank, COMM.size)
    assert (notes.end.complete, notes.end.failed, notes.end.by_itself) == (stats.complete, stats.failed, False)
    assert len(notes.epochs) == stats.cuts > 0
    costs = total([*notes.epochs, notes.end])
    assert costs.blocked == pytest.approx(stats.blocked_seconds, abs=1e-3)
    assert costs.waited == pytest.approx(stats.waited_seconds, abs=1e-3)
    assert costs.drain == pytest.approx(stats.drain_seconds, abs=1e-3)
    assert costs.stall == pytest.approx(stats.stall_seconds, abs=1e-3)
    assert costs.fault_seconds == pytest.approx(stats.fault_seconds, abs=1e-3)
    assert (costs.blocks_copied, costs.bytes_written) == (stats.blocks_copied, stats.bytes_written)
    assert costs.bytes_waiting == stats.bytes_waiting
    assert 0 <= costs.bytes_idle <= costs.bytes_written
    assert 8 * costs.faults >= costs.blocks_copied  # of 256 KiB: one fault may copy a unit of 2 MiB

    figures = figures_of(run)
    assert figures.ended
    assert [epoch.epoch for epoch in figures.epochs if epoch.complete] == list(range(1, stats.complete + 1))
    assert sum(epoch.nbytes for epoch in figures.epochs) == COMM.allreduce(stats.bytes_written)
    for before, after in zip(notes.epochs, notes.epochs[1:], strict=False):
        assert before.cut < before.drained <= after.cut + 1e-3
        assert all(0 <= start <= after.drained for start, _ in after.waits)
    assert notes.epochs[-1].drained <= notes.end.closed


class Slow:
    """Takes its time to be pickled, which is time that the program is blocked at the cut."""

    def __getstate__(self) -> dict[str, object]:
        time.sleep(0.02)
        return {}


def test_the_cut_that_ends_a_wait_is_no_part_of_it(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", 400_000)
        _slow = ckpt.object("slow", Slow())
        for step in ckpt.range(20):
            u += step
    COMM.barrier()
    notes = read_run(mpi_tmp_path, runs(mpi_tmp_path)[0]).ranks[COMM.rank]
    waits = [(start, seconds, epoch.cut) for epoch in notes.epochs for start, seconds in epoch.waits]
    beyond = [start + seconds - cut for start, seconds, cut in waits if start < cut]
    assert beyond, "the next cut comes before the drain has ended"
    assert min(beyond) < 0.02, "with the cut in it, each would end so much later"
    assert sum(seconds for _, seconds, _ in waits) == pytest.approx(ckpt.stats().waited_seconds, abs=1e-3)
    assert ckpt.stats().blocked_seconds > 0.02 * ckpt.stats().cuts


def test_a_restart_begins_new_notes(mpi_tmp_path: Path) -> None:
    compute(mpi_tmp_path, every=40)
    COMM.barrier()
    with mpickpt.open(mpi_tmp_path, COMM, every=5) as ckpt:
        _u = ckpt.array("u", 400_000)
        for _ in ckpt.range(100):
            pass
    COMM.barrier()
    first, second = (read_run(mpi_tmp_path, name) for name in runs(mpi_tmp_path))
    assert {notes.header.restored for notes in first.ranks.values()} == {None}
    assert {notes.header.restored for notes in second.ranks.values()} == {2}
    assert len({notes.header.started_ns for notes in second.ranks.values()}) == 1
    assert len(second.ranks) == COMM.size
