"""One rank dies by SIGKILL at a random instant; the restart ends with the bits of the uninterrupted twin."""

from pathlib import Path

import pytest
from kill_jobs import CG, HEAT, NBODY, Job
from kills import check_result, kill_time_and_again
from mpijob import mpi_job
from slots import h5dump, read_all

from conftest import Twin

# One test is a chain: kill, start again, kill, …; the last start is left alone. 5 kills in a chain, 5 chains on each of
# 2 numbers of ranks: 50 instants for each job.
CHAINS = range(5)
JOBS = pytest.mark.parametrize("job", [HEAT, CG, NBODY], ids=lambda job: job.name)


@pytest.mark.sampled
@pytest.mark.timeout(400)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("ranks", [2, 4])
@JOBS
def test_restart_after_sigkill_ends_with_the_twins_bits(
    job: Job, ranks: int, chain: int, folder: Path, twin: Twin
) -> None:
    kill_time_and_again(f"{job.name}-{ranks}-{chain}", job, ranks, folder, twin)


@pytest.mark.timeout(400)
@JOBS
def test_slots_open_at_any_instant(job: Job, folder: Path, twin: Twin) -> None:
    """Read both slots over and over, with h5py and h5dump, while the job writes them."""
    expected = twin(job, 2)
    looks = in_progress = 0
    for attempt in range(3):  # on a slow host one run of the job leaves time for few looks
        directory, out = folder / f"ckpt-{attempt}", folder / f"out-{attempt}.npy"
        with mpi_job(2, job.checkpointed(directory, out), folder / f"log-{attempt}") as run:
            while run.running():
                for slot in read_all(directory):
                    looks += 1
                    in_progress += not slot.complete
                    h5dump(slot.path)
            check_result(run, out, expected)
        if looks > 20 and in_progress:
            break
    assert looks > 20, f"only {looks} looks at a slot\n{run.output()}"
    assert in_progress, "no look met a checkpoint in progress"
    slots = read_all(directory)
    assert [slot.complete for slot in slots] == [True, True]
    for slot in slots:
        job.holds(slot, expected)
