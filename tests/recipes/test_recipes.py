"""The programs of docs/recipes.md, run with the libraries that they are for, killed or stopped, and started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mpijob import MpiJob, mpi_job  # noqa: E402  (found by the line above)

PAGE = (ROOT / "docs" / "recipes.md").read_text()
PROGRAMS = re.findall(r"runs these lines -->\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CHAIN, WAVE = PROGRAMS


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {missing}: make test-recipes installs what is needed")


def run_chain(folder: Path, every: int, ranks: int = 2) -> AbstractContextManager[MpiJob]:
    return mpi_job(ranks, ["-m", "mpickpt", "run", "--every", str(every), folder / "chain.py"], folder / "log")


def wait_for_epoch(folder: Path, job: MpiJob) -> None:
    limit = time.monotonic() + 100
    while not is_complete(folder / "chain.ckpt"):
        assert job.running() and time.monotonic() < limit, job.output()
        time.sleep(0.1)


def is_complete(directory: Path) -> bool:
    import mpickpt

    try:
        return mpickpt.Checkpoint(directory).epoch > 0
    except mpickpt.MpickptError:
        return False


@needs("emcee", "schwimmbad")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_pool_of_workers(end: str, tmp_path: Path) -> None:
    """The master is killed, or all ranks get SIGTERM; the chain is then that of an uninterrupted run."""
    straight, folder = tmp_path / "straight", tmp_path / "ended"
    for place in (straight, folder):
        place.mkdir()
        (place / "chain.py").write_text(CHAIN.replace("steps, walkers = 600", "steps, walkers = 150"))
    with run_chain(straight, 1000) as job:
        assert job.wait(100) == 0, job.output()
    with run_chain(folder, 15) as job:
        wait_for_epoch(folder, job)
        ranks = job.rank_pids()
        for rank in [0] if end == "kill" else ranks:
            os.kill(ranks[rank], signal.SIGKILL if end == "kill" else signal.SIGTERM)
        code = job.wait(100)
        assert not (folder / "chain.npy").exists(), "it was done before"
        assert code == 75 if end == "stop" else code != 0, job.output()
        assert end == "kill" or "stopped as asked, after epoch" in job.output()
    with run_chain(folder, 15, ranks=3) as job:  # another number of workers
        assert job.wait(100) == 0, job.output()
        assert "mpickpt: restored epoch" in job.output()
    assert np.load(folder / "chain.npy").tobytes() == np.load(straight / "chain.npy").tobytes()


def run_wave(folder: Path, program: str, **settings: str) -> bytes:
    """Run the program in `folder`; give the bits of its result."""
    (folder / "wave.py").write_text(program)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    done = subprocess.run(
        [sys.executable, "wave.py"], cwd=folder, env=environment | settings, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "wave.npy").tobytes()


@needs("pyfftw")
@pytest.mark.timeout(300)
def test_measured_plans(tmp_path: Path) -> None:
    """Restarts from step 10 end with the bits of the run that they go on with; without its wisdom some do not."""
    (tmp_path / "first").mkdir()
    straight = run_wave(tmp_path / "first", WAVE)
    assert np.abs(np.frombuffer(straight, "complex128")).max() > 0.5
    without = WAVE.replace("    if wisdom:\n", "    if False:\n")
    assert without != WAVE
    results: dict[str, set[bytes]] = {}
    for program in (WAVE, without):
        for attempt in range(4):
            folder = tmp_path / f"again-{attempt}"
            shutil.copytree(tmp_path / "first", folder)
            results.setdefault(program, set()).add(run_wave(folder, program, MPICKPT_RESTART="2"))
            shutil.rmtree(folder)
    assert results[WAVE] == {straight}
    print(f"without its wisdom {len(results[without])} results of 4 restarts")
    assert results[without] != {straight}, "FFTW has measured the same every time, so that this shows nothing"
