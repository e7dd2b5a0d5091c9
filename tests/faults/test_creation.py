"""A rank dies while slots are being created, or soon afterwards: what was complete stays, and the result is right."""

import random
import re
import time
from pathlib import Path

import pytest
from mpijob import mpi_job
from slots import newest_complete, read_all

HERE = Path(__file__).parent
JOB = HERE / "many_job.py"
RANKS, STEPS, KILLS = 2, 60, 3
FIRST_SECONDS = 2.0  # of a start: in these it is killed

pytestmark = pytest.mark.timeout(400)


def sums(folder: Path) -> str:
    """Let the job go to its end, and give what it printed."""
    with mpi_job(RANKS, [JOB, str(STEPS)], folder / "log") as run:
        assert run.wait(150) == 0, run.output()
        found = re.findall(r"^sums (.+)$", run.output(), re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.sampled
@pytest.mark.parametrize("chain", range(6))
def test_the_result_after_kills_while_slots_are_created(chain: int, folder: Path) -> None:
    straight, killed = folder / "straight", folder / "killed"
    for path in (straight, killed):
        path.mkdir()
    expected = sums(straight)
    dice = random.Random(f"creation {chain}")
    newest = 0
    for _ in range(KILLS):
        with mpi_job(RANKS, [JOB, str(STEPS)], killed / "log") as run:
            time.sleep(dice.uniform(0.3, FIRST_SECONDS))
            run.kill_rank(dice.randrange(RANKS))
            run.wait(150)
        found = newest_complete(read_all(killed / "ckpt")) if (killed / "ckpt").exists() else None
        assert (found.epoch if found else 0) >= newest
        newest = found.epoch if found else 0
    assert sums(killed) == expected
