"""A program that receives by every call is killed and goes on, with each MPI library, and from each to the next.

The program is smoke.py. A missing library is skipped by name; with MPICKPT_TEST_LIBRARIES=all that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from libraries import HERE, LIBRARIES, NEW_IN_MPI_4, Library
from mpi_cases import CASES
from mpijob import mpi_job

import mpickpt

RANKS = 2
STEPS = len(CASES) + 15  # each call once, some of them twice
PATIENCE = 200
ASKED = r"alltoallw|on_a_grid|Win_attach"  # calls in which handles, or numbers of the library, decide what is received


def _present(library: Library) -> Library:
    absent = library.absent()
    if absent and os.environ.get("MPICKPT_TEST_LIBRARIES") == "all":
        pytest.fail(f"no {absent}")
    if absent:
        pytest.skip(f"no {absent}")
    return library


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    """Each library that is there."""
    return _present(request.param)


def _command(folder: Path, avoid: str | None) -> list[str | Path]:
    return [HERE / "smoke.py", folder / "ckpt", str(STEPS), folder / "report", *([avoid] if avoid else [])]


def _finish(library: Library, folder: Path, avoid: str | None) -> dict[str, Any]:
    """Run the program to its end, and give what it reports."""
    with mpi_job(RANKS, _command(folder, avoid), folder / "log", library.settings, launcher=library.launcher) as job:
        assert job.wait(PATIENCE) == 0, job.output()
    report: dict[str, Any] = json.loads((folder / "report").read_text())
    assert report["library"].startswith(library.says)
    assert report["files"] == [str(library.file.resolve())]
    return report


def _kill(library: Library, folder: Path, avoid: str | None, rank: int, step: int) -> int:
    """Run the program, kill a rank after an epoch of that step is complete, and give the step that is saved."""
    limit = time.monotonic() + PATIENCE
    with mpi_job(RANKS, _command(folder, avoid), folder / "log", library.settings, launcher=library.launcher) as job:
        while _saved(folder) < step:
            assert job.running(), job.output()
            assert time.monotonic() < limit, job.output()
            time.sleep(0.02)
        assert job.kill_rank(rank), f"the program was faster than the kill\n{job.output()}"
        assert job.wait(PATIENCE) != 0
    assert not (folder / "report").exists()
    assert mpickpt.Checkpoint(folder / "ckpt").verify() == []
    return _saved(folder)


def _saved(folder: Path) -> int:
    try:
        return mpickpt.Checkpoint(folder / "ckpt").step
    except mpickpt.MpickptError:
        return -1


@pytest.mark.timeout(4 * PATIENCE)
def test_killed_and_restarted(library: Library, tmp_path: Path) -> None:
    """Right data from every call, no torn image, and the bits of the uninterrupted run after two kills."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    report = _finish(library, whole, library.avoid)
    expected = {name for name in CASES if library.avoid is None or not re.search(library.avoid, name)}
    missing = {name for name in expected if not library.has_mpi_4 and re.search(NEW_IN_MPI_4, name)}
    assert set(report["missing"]) == missing
    assert set(report["calls"]) == expected - missing
    first = _kill(library, torn, library.avoid, 1, STEPS // 4)
    assert _kill(library, torn, library.avoid, 0, STEPS // 2) >= first
    resumed = _finish(library, torn, library.avoid)
    assert resumed["restored"]
    assert resumed["digests"] == report["digests"]


@pytest.mark.timeout(PATIENCE)
def test_what_the_guard_asks_the_library(library: Library, tmp_path: Path) -> None:
    """Arrays of handles, the neighbours of a grid and windows: exactly the buffers that stay in use stay writable."""
    avoid = [pattern for pattern in (library.avoid, None if library.has_mpi_4 else NEW_IN_MPI_4) if pattern]
    calls = [name for name in CASES if re.search(ASKED, name) and not any(re.search(one, name) for one in avoid)]
    command = [HERE.parent / "guard" / "receive.py", tmp_path, *calls]
    with mpi_job(RANKS, command, tmp_path / "log", library.settings, launcher=library.launcher) as job:
        assert job.wait(PATIENCE) == 0, job.output()
    report = json.loads(next(line for line in job.output().splitlines() if line.startswith("{")))
    assert report["wrong"] == []
    assert report["missing"] == {}
    assert set(report["done"]) == set(calls)


@pytest.mark.timeout((len(LIBRARIES) + 2) * PATIENCE)
def test_one_library_goes_on_from_anothers_checkpoint(tmp_path: Path) -> None:
    """Each library is killed, and the next one restores its checkpoint; with the calls that all of them have."""
    chain = [_present(library) for library in LIBRARIES if not library.absent()]
    avoid = "|".join({NEW_IN_MPI_4, *(library.avoid for library in chain if library.avoid)})
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    for number, library in enumerate(chain, 1):
        _kill(library, torn, avoid, number % RANKS, STEPS * number // (len(chain) + 1))
    resumed = _finish(chain[0], torn, avoid)
    assert resumed["restored"]
    assert resumed["digests"] == _finish(chain[0], whole, avoid)["digests"]
