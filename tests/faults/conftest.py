"""Fixtures of the crash tests: a folder that is removed afterwards, and the results of the uninterrupted twins."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from kill_jobs import Job  # noqa: E402  (found by the line above under every import mode of pytest)
from mpijob import mpi_job  # noqa: E402

Twin = Callable[[Job, int], NDArray[np.float64]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder on disk; slots are large, so it does not stay for a later look."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """Give the result of a job's plain twin on a number of ranks; each is run once."""
    results: dict[tuple[str, tuple[str, ...], int], NDArray[np.float64]] = {}

    def result(job: Job, ranks: int) -> NDArray[np.float64]:
        key = job.name, job.size, ranks
        if key not in results:
            place = tmp_path_factory.mktemp("twin")
            with mpi_job(ranks, job.plain(place / "out.npy"), place / "log") as run:
                assert run.wait(150) == 0, run.output()
            results[key] = np.load(place / "out.npy")
            shutil.rmtree(place)
        return results[key]

    return result
