"""While the survivors of a lost rank find together again, more goes wrong: another death, a stop, the end of a job.

Each case is one of a program that goes on, with the right result, or that ends with a sentence and a nonzero status,
and goes on from a complete epoch when it is started again.
"""

import signal
from pathlib import Path

import numpy as np
import pytest
from mpijob import mpi_job
from test_survive import WITH_OPEN_MPI, survive

JOB = Path(__file__).parent / "survive_mishaps_job.py"
RANKS, STEPS, LONG = 4, 60, 400
PATIENCE = 100.0

pytestmark = WITH_OPEN_MPI


def run(folder: Path, mode: str, dead: str, *mishaps: str, steps: int = STEPS) -> tuple[int, str]:
    """Run the job; return its status and what it said."""
    command = ["-m", "mpickpt", "run", f"--survive={mode}", JOB, str(steps), dead, *mishaps]
    with mpi_job(RANKS, command, folder / "log", launching=survive.LAUNCHING) as job:
        status = job.wait(PATIENCE)
        if status == -signal.SIGSEGV and (folder / "out").exists():
            status = 0  # of a program that has ended: the launcher of Open MPI 5.0.11 crashes at its own end, rarely
        return status, job.output()


def check_result(folder: Path, steps: int = STEPS) -> None:
    """Compare the result with that of an uninterrupted run."""
    cells = np.zeros(1001, np.uint64)
    for step in range(steps):
        cells = cells * np.uint64(3) + np.arange(1001, dtype=np.uint64) + np.uint64(step)
    assert (folder / "out").read_bytes() == cells.tobytes()


@pytest.mark.parametrize(
    ("dead", "mishap"),
    [
        ("0,1", ""),
        ("0", "1:SIGKILL:start:mpickpt.session.main/leave_all"),
        ("2", "0:SIGKILL:end:mpickpt.mpi.revoking/SafeIntracomm.Shrink"),
        ("2", "1:SIGKILL:end:mpickpt.mpi.survival/Survival._attempt"),
        ("0", "2:SIGKILL:start:mpickpt.mpi.survival/Survival.meet"),
        ("2", "1:SIGKILL:start:mpickpt.mpi.coordinator/enter"),
        ("2", "1:SIGKILL:end:mpickpt.restart.choose/begin"),
        ("2", "1:SIGKILL:start:mpickpt.session.driver/Driver.close"),
        ("2", "0:SIGKILL:end:mpickpt.session.ending/Ending.together"),
    ],
)
def test_another_survivor_dies(dead: str, mishap: str, tmp_path: Path) -> None:
    """It may be the one that holds the lock, or the second one that died may be taken for the first."""
    status, said = run(tmp_path, "shrink", dead, *mishap.split())
    assert status == 0, said
    check_result(tmp_path)
    assert "going on on 2 ranks after" in said or "Ending.together" in mishap or "Driver.close" in mishap, said


@pytest.mark.parametrize(
    ("dead", "mishap"),
    [
        ("0,1", ""),
        ("2", "3:SIGKILL:end:mpickpt.mpi.survival/Survival.rebuild"),
        ("2", "3:SIGKILL:start:mpickpt.mpi.survival/Survival._accept"),
        ("2", "3:SIGKILL:end:mpickpt.mpi.survival/Survival._accept"),
        ("2", "first:SIGKILL:end:mpickpt.mpi.survival/Survival._join"),
        ("2", "first:SIGKILL:start:mpickpt.mpi.coordinator/meet"),
    ],
)
def test_a_replacement_or_another_survivor_dies(dead: str, mishap: str, tmp_path: Path) -> None:
    status, said = run(tmp_path, "respawn", dead, *mishap.split())
    assert status == 0, said
    check_result(tmp_path)
    assert "going on on 4 ranks again after" in said, said


def test_no_replacement_lives_long_enough(tmp_path: Path) -> None:
    """After some that die as soon as they are called, the survivors go on without."""
    status, said = run(tmp_path, "respawn", "2", "new:SIGKILL:end:mpickpt.mpi.standby/Kept.hear")
    assert status == 0, said
    check_result(tmp_path)
    assert said.count("mpickpt: no process can be started for a dead rank: it has died") == 1, said
    assert "going on on 3 ranks after" in said


def test_replacements_that_die_at_once_again_and_again_end_all(tmp_path: Path) -> None:
    """Otherwise the program would not end, and not get on."""
    limits = (f"{who}:quick:now:mpickpt.mpi.survival/_MOST_FRUITLESS" for who in "013")
    status, said = run(tmp_path, "respawn", "2", "new:SIGKILL:end:mpickpt.mpi.survival/Survival._join", *limits)
    assert status == 1, said
    assert said.count("mpickpt: Ranks were lost 3 times, and no epoch became complete between") == 1, said
    status, said = run(tmp_path, "respawn", "none")
    assert status == 0, said
    check_result(tmp_path)


def test_a_process_that_is_called_and_does_not_connect_is_not_waited_for(tmp_path: Path) -> None:
    """MPI would wait for ever. The rank that has called it dies by its limit, and both get others in their places."""
    status, said = run(
        tmp_path,
        "respawn",
        "2",
        "first:late:end:mpickpt.mpi.standby/Kept.answer",
        "new:quick:now:mpickpt.mpi.survival/_REBUILD_SECONDS",
        *(f"{who}:quick:now:mpickpt.mpi.survival/_CONNECT_SECONDS" for who in "01"),
    )
    assert status == 0, said
    check_result(tmp_path)
    assert said.count("in 2 s no process connected to take the place of a dead rank") == 1, said
    assert "going on on 4 ranks again after" in said, said


def test_survivors_that_do_not_meet_end(tmp_path: Path) -> None:
    """All have a limit; the same command goes on."""
    status, said = run(
        tmp_path,
        "shrink",
        "2",
        "0:SIGSTOP:start:mpickpt.mpi.survival/end_process",
        *(f"{who}:quick:now:mpickpt.mpi.survival/_REBUILD_SECONDS" for who in "13"),
    )
    assert "in 2 s the survivors of a lost rank did not find together again" in said
    assert status != 0, said
    status, said = run(tmp_path, "shrink", "none")
    assert status == 0, said
    check_result(tmp_path)


@pytest.mark.parametrize(
    ("mode", "mishap"),
    [
        ("shrink", "1:SIGTERM:start:mpickpt.session.main/leave_all"),
        ("shrink", "1:SIGTERM:start:mpickpt.restart.choose/begin"),
        ("shrink", "0:limit:start:mpickpt.mpi.survival/Survival.rebuild"),
        ("respawn", "3:SIGTERM:end:mpickpt.mpi.survival/Survival._attempt"),
    ],
)
def test_the_program_is_to_stop(mode: str, mishap: str, tmp_path: Path) -> None:
    """It goes on, saves a last epoch, and ends with the status of a program that was stopped."""
    status, said = run(tmp_path, mode, "2", mishap, steps=LONG)
    assert status == 75, said
    assert "going on on" in said
    assert said.count("stopped as asked, after epoch") == 1
    status, said = run(tmp_path, mode, "none", steps=LONG)
    assert status == 0, said
    assert "begins at step 30" not in said
    check_result(tmp_path, LONG)
