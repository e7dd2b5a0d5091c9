"""Programs that break a rule of ckpt.comm: the epoch fails by name, the last one stays, the program continues."""

from pathlib import Path

import pytest
from mpijob import mpi_job
from slots import newest_complete, read_all

JOB = Path(__file__).parent / "rules_job.py"


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("broken", "reasons"),
    [
        ("collective", ["the collective Barrier", "straddles the cut: rank 1 had called it, rank 0 not yet"]),
        ("receive", ["rank 1 has a pending Irecv", "at the cut. Wait for it before the safe point"]),
    ],
)
def test_the_epoch_fails_by_name_and_the_last_complete_one_stays(
    broken: str, reasons: list[str], ranks: int, tmp_path: Path
) -> None:
    """And a restart goes on from that one."""
    with mpi_job(ranks, [JOB, "--broken", broken], tmp_path / "log") as job:
        assert job.wait(150) == 0, job.output()
    output = job.output()
    assert "RuntimeWarning: Epoch 2 (step 20) failed on rank 1" in output
    assert "Epoch 1 stays, and the program goes on" in output
    for reason in reasons:
        assert reason in output, output
    assert output.count("went on to its end") == ranks
    kept = newest_complete(read_all(tmp_path / "c"))
    assert kept is not None
    assert (kept.epoch, kept.step) == (1, 10)

    with mpi_job(ranks, [JOB], tmp_path / "log") as again:
        assert again.wait(150) == 0, again.output()
    assert kept.announcement in again.output(), again.output()
