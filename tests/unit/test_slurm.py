"""The code for the batch system without Slurm; tests/slurm has a real one."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest

from mpickpt.cli import main, requeue
from mpickpt.errors import BatchError, InUseError, NoProgress, UsageError
from mpickpt.protocol.policy import Clock
from mpickpt.session.triggers import Triggers
from mpickpt.slurm import Environment, Slurm, find
from mpickpt.snapshot import crc32c
from mpickpt.store import Store


class Ending(Environment):
    """A job whose end is known."""

    job = "job 17"
    left = 100.0
    requeued = 0

    def seconds_left(self, now: float) -> float:
        return self.left

    def requeue(self) -> None:
        self.requeued += 1


def test_outside_a_job() -> None:
    environment = find({"PATH": "/bin"})
    assert (environment.job, environment.restarts, environment.seconds_left(0.0)) == ("", 0, math.inf)
    with pytest.raises(BatchError, match="no batch job"):
        environment.requeue()


def test_a_task_is_named_by_its_index() -> None:
    job = find({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"})
    assert (job.job, job.restarts) == ("job 12", 2)
    task = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert find(task).job == "job 12_3"


def test_without_scontrol_the_end_in_the_environment_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = Slurm({"SLURM_JOB_ID": "12", "SLURM_JOB_END_TIME": "1000"})
    assert job.seconds_left(10.0) == 1000 - (10.0 + job._offset)
    assert "its end is as told before: there is no scontrol in PATH" in capsys.readouterr().err
    with pytest.raises(BatchError, match="job 12 is not queued again: there is no scontrol in PATH"):
        job.requeue()


def test_a_stop_is_asked_for_once_when_drain_and_margin_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment, clock = Ending(), Clock(1e9, 1e9)
    clock.measured(30.0, 1.0, 1.0)
    triggers = Triggers(tmp_path, clock, environment, margin=60.0, signals=False)
    environment.left = 90.5
    assert triggers.take(0.0) is None
    environment.left = 89.5
    assert triggers.take(10.0) is True
    assert "job 17 reaches its time limit in 90 s, a drain took 30.0 s: taking a final" in capsys.readouterr().err
    assert triggers.take(20.0) is None
    triggers.close()


@pytest.mark.parametrize("stopped", [True, False])
def test_a_late_sigterm_does_not_kill_what_is_on_its_way_out(stopped: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        triggers = Triggers(None, None, signals=True)
        triggers.close(stopped=stopped)
        assert signal.getsignal(signal.SIGTERM) == (signal.SIG_IGN if stopped else before)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_lock_names_the_job(tmp_path: Path) -> None:
    first = Store(tmp_path, crc32c)
    first.lock("job 17_3")
    with pytest.raises(InUseError, match=r"is in use by job 17_3 \(process \d+ on "):
        Store(tmp_path, crc32c).lock()
    first.unlock()


def test_restarts_without_progress_are_counted(tmp_path: Path) -> None:
    environment = Ending()
    for times in range(3):
        requeue._requeue(environment, tmp_path, 1, 3)
        assert json.loads((tmp_path / "requeued").read_text())["times"] == times
    requeue._requeue(environment, tmp_path, 1, 4)
    with pytest.raises(NoProgress, match="job 17 is given up: 4 restarts in a row saved no newer step"):
        requeue._requeue(environment, tmp_path, 1, 4)
    assert environment.requeued == 4
    environment.job = "job 18"
    requeue._requeue(environment, tmp_path, 1, 1)
    assert environment.requeued == 5


def test_requeue_outside_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main.main(["requeue", "75"]) == UsageError.exit_code
    assert "SLURM_JOB_ID is not set" in capsys.readouterr().err


@pytest.mark.parametrize("status", [2, 4, 6])
def test_what_a_person_has_to_see_to_is_not_queued_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.main(["requeue", str(status), "--dir", str(tmp_path)]) == status
    assert f"job 17 is not queued again: it ended with status {status}" in capsys.readouterr().err


def test_sbatch_writes_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", "4", "--time", "90s", "--partition", "low", "--interval", "auto"]
    assert main.main(["sbatch", *options, "jobs/my heat.py", "--out", "u v.npy"]) == 0
    assert capsys.readouterr().out == (
        "#!/bin/bash\n"
        "#SBATCH --job-name='my heat' --ntasks=4 --time=2 --partition=low\n"
        "#SBATCH --requeue --open-mode=append\n"
        "export MPICKPT_DIR=${MPICKPT_DIR:-'my heat.ckpt'}\n"
        "trap : TERM  # the ranks answer it; this shell waits for them\n"
        "srun mpickpt run --interval=auto 'jobs/my heat.py' --out 'u v.npy'\n"
        "mpickpt requeue $?\n"
    )


def test_sbatch_names_the_directory_that_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["sbatch", "--dir", "/scratch/run 7", "app.py"]) == 0
    assert "export MPICKPT_DIR=${MPICKPT_DIR:-'/scratch/run 7'}\n" in capsys.readouterr().out


def test_sbatch_passes_on_what_is_archived(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--archive-every", "1h", "--keep-archives", "3", "--archive-to", "/my archive"]
    assert main.main(["sbatch", *options, "app.py"]) == 0
    command = "srun mpickpt run --archive-every=1h --keep-archives=3 --archive-to='/my archive' app.py\n"
    assert command in capsys.readouterr().out


def test_sbatch_without_sbatch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.main(["sbatch", "--submit", "app.py"]) == BatchError.exit_code
    assert "The script cannot be submitted: there is no sbatch in PATH." in capsys.readouterr().err
