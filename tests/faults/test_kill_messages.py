"""As test_kill.py, with jobs whose messages cross safe points: messages in flight at a cut are so after a restart."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from kill_jobs import FARM, PIPELINE, Job
from kills import check_result, kill_time_and_again
from mpijob import mpi_job
from slots import read_all

from conftest import Twin

JOBS = pytest.mark.parametrize("job", [FARM, PIPELINE], ids=lambda job: job.name)
SERVED = re.compile(r"mpickpt: (\d+) late messages are replayed, (\d+) early")
INTERVAL = "0.1s"


@pytest.mark.parametrize("interval", [None, INTERVAL])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@JOBS
def test_checkpoints_do_not_change_the_result(
    job: Job, ranks: int, interval: str | None, folder: Path, twin: Twin
) -> None:
    """Leave the job alone; each epoch that it leaves is complete and holds what its step had come to."""
    directory, out = folder / "ckpt", folder / "out.npy"
    expected = twin(job, ranks)
    with mpi_job(ranks, replace(job, interval=interval).checkpointed(directory, out), folder / "log") as run:
        check_result(run, out, expected)
    assert "Warning" not in run.output()
    slots = read_all(directory)
    assert [slot.complete for slot in slots] == [True, True]
    for slot in slots:
        job.holds(slot, expected)


# 5 kills in each of 4 chains on each of 3 numbers of ranks: 60 instants for each job. In the chains with an interval
# the ranks agree on each cut by messages.
@pytest.mark.sampled
@pytest.mark.timeout(400)
@pytest.mark.parametrize("chain", range(4))
@pytest.mark.parametrize("ranks", [2, 3, 4])
@JOBS
def test_restart_after_sigkill_ends_with_the_twins_bits(
    job: Job, ranks: int, chain: int, folder: Path, twin: Twin
) -> None:
    cut = replace(job, interval=INTERVAL) if chain % 2 else job
    printed = kill_time_and_again(f"{job.name}-{ranks}-{chain}", cut, ranks, folder, twin)
    restored = sum("mpickpt: restored epoch" in text for text in printed)
    served = [(int(found[1]), int(found[2])) for text in printed if (found := SERVED.search(text))]
    print(f"{restored} restored epochs, messages in flight (late, early): {served}")
    assert 3 * len(served) >= restored, "too few of the restored epochs held messages, so that this run proves little"
