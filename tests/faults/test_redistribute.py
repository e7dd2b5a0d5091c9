"""A job saved by 4 ranks is restarted on another number of ranks."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from kill_jobs import CG, HEAT, HEAT_SHORT, NBODY, Job, with_size
from mpijob import mpi_job
from slots import Seen, is_complete, newest_complete, read_all, read_records

from conftest import Twin


def run_and_kill(ranks: int, job: Job, directory: Path, pause: float) -> Seen:
    """Run a job until an epoch of so many ranks is complete, and a little longer; kill a rank; give what is left."""
    log = directory.parent / "log"
    with mpi_job(ranks, job.checkpointed(directory, directory.parent / "killed.npy"), log) as run:
        limit = time.monotonic() + 30
        while not any(len(records) == ranks and is_complete(records) for records in read_records(directory)):
            assert run.running() and time.monotonic() < limit, f"no epoch became complete\n{run.output()}"
            time.sleep(0.01)
        time.sleep(pause)
        assert run.kill_rank(ranks - 1), f"the job ended before it could be killed\n{run.output()}"
        run.wait(100)
    newest = newest_complete(read_all(directory))
    assert newest is not None and len(newest.records) == ranks, f"a complete epoch was lost\n{run.output()}"
    return newest


def resume(job: Job, ranks: int, directory: Path, folder: Path) -> tuple[np.ndarray, str]:
    """Run a job to its end from a copy of a directory, and give its result and what it printed."""
    copy, out = folder / f"on-{ranks}", folder / f"on-{ranks}.npy"
    shutil.copytree(directory, copy)
    with mpi_job(ranks, job.checkpointed(copy, out), folder / "log") as run:
        assert run.wait(150) == 0, run.output()
    slots = read_all(copy)
    newest = newest_complete(slots)
    assert newest is not None
    assert len(newest.records) == ranks
    job.holds(newest, np.load(out))
    return np.load(out), run.output()


@pytest.mark.timeout(400)
def test_heat_from_4_ranks_on_1_2_3_and_6(folder: Path, twin: Twin) -> None:
    """Go on from one epoch on four other numbers of ranks; heat's bits do not depend on that number."""
    expected = twin(HEAT_SHORT, 4)
    directory = folder / "by-4"
    saved = run_and_kill(4, HEAT_SHORT, directory, 0.1)
    for ranks in (1, 2, 3, 6):
        result, output = resume(HEAT_SHORT, ranks, directory, folder)
        assert f"restored epoch {saved.epoch} (step {saved.step})" in output
        assert result.tobytes() == expected.tobytes(), f"on {ranks} ranks\n{output}"


@pytest.mark.timeout(400)
def test_heat_changes_its_number_of_ranks_again_and_again(folder: Path, twin: Twin) -> None:
    """Kill and go on with another number each time, so that slots of different layouts lie side by side."""
    expected = twin(HEAT, 4)
    directory, out = folder / "ckpt", folder / "out.npy"
    dice = random.Random("again and again")
    before = 0
    for ranks in (4, 2, 3, 6):
        newest = run_and_kill(ranks, HEAT, directory, dice.uniform(0, 0.15))
        HEAT.holds(newest, expected)
        assert newest.epoch > before
        before = newest.epoch
    with mpi_job(1, HEAT.checkpointed(directory, out), folder / "log") as run:
        assert run.wait(150) == 0, run.output()
    assert newest.announcement in run.output()
    assert np.load(out).tobytes() == expected.tobytes()


@pytest.mark.timeout(400)
def test_cg_from_4_ranks_on_3_reaches_the_same_solution(folder: Path) -> None:
    """Share out several vectors, one of them protected in place, and a replicated object."""
    job = with_size(CG, "--grid", "201", "--tolerance", "1e-10")
    directory = folder / "by-4"
    saved = run_and_kill(4, job, directory, 0)
    result, output = resume(job, 3, directory, folder)
    assert f"restored epoch {saved.epoch} (step {saved.step})" in output
    again, _ = resume(job, 4, directory, folder)
    # Sums over 3 ranks round otherwise than over 4, so these are not the same bits.
    np.testing.assert_allclose(result, again, rtol=0, atol=1e-7 * np.abs(again).max())


@pytest.mark.timeout(400)
def test_random_numbers_of_4_ranks_are_not_guessed_for_2(folder: Path, twin: Twin) -> None:
    """Refuse by name what has no meaning on another number of ranks, and leave the slots as they were."""
    job = with_size(NBODY, "--bodies", "101", "--steps", "150")
    directory = folder / "by-4"
    saved = run_and_kill(4, job, directory, 0)
    with mpi_job(2, job.checkpointed(directory, folder / "out.npy"), folder / "log") as run:
        assert run.wait(150) != 0
    assert "'rng'" in run.output(), run.output()
    assert "remap" in run.output(), run.output()
    untouched = newest_complete(read_all(directory))
    assert untouched is not None and untouched.epoch == saved.epoch
    result, _ = resume(job, 4, directory, folder)
    assert result.tobytes() == twin(job, 4).tobytes()
