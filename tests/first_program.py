"""Run the first program of README.md as it is printed there: on 4 ranks, one of which is killed, then on 3.

`python tests/first_program.py` uses the mpickpt that this Python has installed. It needs no pytest, so that it can test
a built wheel where nothing else is installed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mpijob import MpiJob, mpi_job

import mpickpt

README = Path(__file__).resolve().parents[1] / "README.md"
PATIENCE = 120.0  # seconds until the ranks have started and an epoch is complete, on a machine that is busy
ROWS, COLS = 600, 400


def printed() -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the program, and for each of its two starts the ranks and the arguments of ``mpickpt run``."""
    text = README.read_text()
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    starts = re.findall(r"^    mpirun -n (\d+) mpickpt run (.*?heat\.py)\s", text, re.MULTILINE)
    assert program, f"{README} has no program"
    return program[1], [(int(ranks), shlex.split(arguments)) for ranks, arguments in starts]


def newest(directory: Path) -> mpickpt.Checkpoint | None:
    """Return the newest complete epoch, if there is one yet."""
    try:
        return mpickpt.Checkpoint(directory)
    except mpickpt.MpickptError:
        return None


def wait_until(condition: Callable[[], bool], job: MpiJob) -> None:
    """Wait while the job runs; fail with its output if it ends early or takes too long."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert job.running(), f"the program has ended\n{job.output()}"
        assert time.monotonic() < limit, f"not done in {PATIENCE:.0f} s\n{job.output()}"
        time.sleep(0.05)


def plain(steps: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Compute the same on one array, without ranks, halo and checkpoints."""
    u = np.zeros((ROWS, COLS))
    for _ in range(steps):
        u[0] = 1.0
        around = np.roll(u, 1, 0) + np.roll(u, -1, 0) + np.roll(u, 1, 1) + np.roll(u, -1, 1)
        u += 0.2 * (around - 4 * u)
    return u


def run(place: Path) -> str:
    """Run the program in a folder, kill it, restart it with fewer ranks, and compare what is saved with `plain`.

    Returns
    -------
    str
        A sentence on what was shown.
    """
    program, [first, second] = printed()
    (place / "heat.py").write_text(program)
    saved = place / "heat.ckpt"
    (ranks, arguments), (fewer, again) = first, second

    with mpi_job(ranks, ["-m", "mpickpt", "run", *arguments], place / "first.log") as job:
        wait_until(lambda: newest(saved) is not None, job)
        assert job.kill_rank(ranks - 1)
        assert job.wait(PATIENCE) != 0
    killed = newest(saved)
    assert killed is not None and killed.world_size == ranks, (place / "first.log").read_text()

    with mpi_job(fewer, ["-m", "mpickpt", "run", *again], place / "second.log") as job:
        wait_until(lambda: (epoch := newest(saved)) is not None and epoch.world_size == fewer, job)
        stop = [sys.executable, "-m", "mpickpt", "trigger", "--stop", str(saved)]
        subprocess.run(stop, cwd=place, check=True, timeout=PATIENCE, capture_output=True)
        assert job.wait(PATIENCE) == 75, job.output()
    assert f"(step {killed.step}) of" in (place / "second.log").read_text()
    stopped = mpickpt.Checkpoint(saved)
    assert stopped.world_size == fewer and stopped.step > killed.step
    np.testing.assert_array_equal(stopped["u"][:], plain(stopped.step))
    return (
        f"{ranks} ranks until one was killed, {fewer} from step {killed.step} to {stopped.step}:"
        f" the same bits as without checkpoints; mpickpt of {Path(mpickpt.__file__).parent}"
    )


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        print(run(Path(folder)))
