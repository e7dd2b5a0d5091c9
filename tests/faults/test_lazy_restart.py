"""Lazy restarts of several ranks: killed while they load, or from a corrupt slot."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lazy_job import expected
from mpijob import MpiJob, mpi_job
from slots import is_complete, newest_complete, read_all, read_records
from test_damage import BLOCK, flip, offsets

import mpickpt

JOB = Path(__file__).parent / "lazy_job.py"
RANKS, SAVED, LATER = 2, 450, 700  # cuts at 200, 400 and at 600: epochs 1, 2 and 3
LIMIT = 90  # seconds for one run

pytestmark = pytest.mark.timeout(400)


def command(directory: Path, stop: int, *options: str) -> list[str | Path]:
    """Give the command line of the job."""
    return ["-m", "mpickpt", "run", *options, JOB, directory, str(stop)]


def ends_well(job: MpiJob, stop: int) -> None:
    """Compare the result of a run with what no checkpoint had a hand in."""
    assert job.wait(LIMIT) == 0, job.output()
    for rank in range(RANKS):
        assert f"rank {rank} result {expected(rank, stop)}" in job.output()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Leave the epochs 1 and 2 in a directory, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    directory = folder / "ckpt"
    with mpi_job(RANKS, command(directory, SAVED), folder / "log") as job:
        ends_well(job, SAVED)
    assert epochs(directory) == [1, 2]
    yield directory
    shutil.rmtree(folder)


@pytest.fixture
def directory(saved: Path, folder: Path) -> Path:
    """Give a copy of that directory."""
    return Path(shutil.copytree(saved, folder / "ckpt"))


def epochs(directory: Path) -> list[int]:
    """Give the complete epochs, the oldest first."""
    return sorted(int(records["epoch"][0]) for records in read_records(directory) if is_complete(records))


@pytest.mark.sampled
@pytest.mark.parametrize("chain", range(3))
def test_sigkill_while_loading(chain: int, directory: Path, folder: Path) -> None:
    """Kill lazy starts soon after they are restored; the epoch that they mapped is never lost."""
    dice = random.Random(f"lazy-{chain}")
    for _ in range(4):
        with mpi_job(RANKS, command(directory, LATER, "--lazy"), folder / "log") as job:
            limit = time.monotonic() + LIMIT
            while "to be read and checked while it runs" not in job.output():
                assert job.running() and time.monotonic() < limit, job.output()
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.2))
            assert job.kill_rank(dice.randrange(RANKS)), job.output()
            job.wait(LIMIT)
        assert epochs(directory)[-1] == 2
        newest = newest_complete(read_all(directory))
        assert newest is not None and newest.step == 400
    with mpi_job(RANKS, command(directory, LATER, "--lazy"), folder / "log") as job:
        ends_well(job, LATER)
        assert "restored epoch 2 (step 400)" in job.output()
    assert epochs(directory) == [2, 3]
    with mpi_job(RANKS, command(directory, LATER + 1), folder / "log") as job:
        ends_well(job, LATER + 1)
        assert "restored epoch 3 (step 600)" in job.output()


# To SAVED there is no cut, to LATER there is one.
@pytest.mark.parametrize(("rank", "block", "stop"), [(0, 0, SAVED), (1, 255, SAVED), (0, 255, LATER), (1, 0, LATER)])
def test_damage_ends_all_ranks(rank: int, block: int, stop: int, directory: Path, folder: Path) -> None:
    """Name rank, array and block, save nothing, and leave the older epoch for a start that is not lazy."""
    flip(directory / "slot-1.h5", offsets(directory, 1, rank).arrays[0] + block * BLOCK + 4321)
    with mpi_job(RANKS, command(directory, stop, "--lazy"), folder / "log") as job:
        assert job.wait(LIMIT) == mpickpt.CorruptionError.exit_code, job.output()
        told = job.output()
    assert f"Epoch 2 in {directory}/slot-1.h5 is corrupt: rank {rank}, array 'u', block {block}: wrong checksum" in told
    assert told.count("is corrupt") == 1
    assert "Start again without --lazy" in told
    assert "result" not in told
    assert epochs(directory) == [1, 2]
    with mpi_job(RANKS, command(directory, LATER), folder / "log") as job:
        ends_well(job, LATER)
        assert f"slot-1.h5: epoch 2 is corrupt: rank {rank}, array 'u', block {block}" in job.output()
        assert "restored epoch 1 (step 200)" in job.output()
