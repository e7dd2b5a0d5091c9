"""The life of a job on a real Slurm. The scenarios run side by side, each on nodes of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

import mpickpt

from cluster import Cluster
from conftest import Scenario
from job import SCRIPTS, SURROUNDINGS, Job, provide, resumed_at, steps_done, submit, twin

pytestmark = pytest.mark.slurm

PLATE = ("--rows", "101", "--cols", "100")


def _mpickpt(folder: Path, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command outside any job."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = [sys.executable, "-m", "mpickpt", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env={**environment, **settings}, capture_output=True, text=True, timeout=60
    )


def _claim(cluster: Cluster, folder: Path, nodes: str) -> Job:
    """Submit a short job of higher priority that needs all of `nodes`."""
    count = str(len(nodes.split(",")))
    options = ("--partition=high", f"--nodelist={nodes}", f"--nodes={count}", "--exclusive", "--time=1")
    return submit(cluster, folder, *options, "--wrap=sleep 2")


def time_limit(cluster: Cluster, folder: Path) -> None:
    """A job that needs five times what its time limit leaves it; nobody helps it."""
    options = ("--nodes=2", "--ntasks=2", "--nodelist=n1,n2", "--time=1", "--signal=TERM@1")
    arguments = (*PLATE, "--steps", "4300")
    command = (*options, SCRIPTS / "simple.sbatch", *arguments, "--out", "u.npy")
    job = submit(cluster, folder, *command, MPICKPT_MARGIN="48s")
    expected = twin(folder, *arguments)
    shown = job.wait()
    output = job.output()
    assert shown["JobState"] == "COMPLETED", output
    assert (folder / "u.npy").read_bytes() == expected
    assert int(shown["Restarts"]) >= 4, output
    assert len(resumed_at(output)) == int(shown["Restarts"])
    assert output.count("taking a final checkpoint, then exiting") == int(shown["Restarts"])
    assert steps_done(folder / "heat.ckpt") == 4300, "a job that stops in time does no step twice"


def slurms_signal(cluster: Cluster, folder: Path) -> None:
    """A script of `mpickpt sbatch`, as a user submits it; Slurm's own signal comes before the job knows of its end."""
    # It is signalled after 1,900 steps where the machine is busy, and 2,800 where it is not: the second start must
    # neither be needless nor end just when its own signal comes, which would find no session any more.
    arguments = (*PLATE, "--steps", "3300", "--out", "u.npy")
    provide(folder)
    options = ("-n", "2", "--time", "2min", "--partition", "apart", "--interval", "2s", "--submit")
    settings = {**cluster.environment, **SURROUNDINGS, "SBATCH_SIGNAL": "TERM@85", "MPICKPT_MARGIN": "1s"}
    said = _mpickpt(folder, "sbatch", *options, "jobs/heat/checkpointed.py", *arguments, **settings)
    assert said.stdout.startswith("Submitted batch job"), said.stderr
    job = Job(cluster, folder, said.stdout.split()[-1])
    shown = job.wait()
    assert shown["JobState"] == "COMPLETED", job.output()
    assert "received SIGTERM" in job.output()
    assert int(shown["Restarts"]) >= 1
    assert (folder / "u.npy").read_bytes() == twin(folder, *arguments)


def preemption(cluster: Cluster, folder: Path) -> None:
    """A job of higher priority claims the nodes: checkpoint in the grace time, and on when they are free again."""
    nodes = "n3,n4"
    arguments = (*PLATE, "--steps", "1000")
    options = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", f"--nodelist={nodes}", "--time=10")
    job = submit(cluster, folder, *options, SCRIPTS / "preemptible.sbatch", *arguments, "--out", "u.npy")
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 100, "steps")
    asked = time.time()
    other = _claim(cluster, folder, nodes)
    expected = twin(folder, *arguments)
    shown, claimed = job.wait(), other.wait()
    output = job.output()
    assert shown["JobState"] == "COMPLETED", output
    assert claimed["JobState"] == "COMPLETED"
    assert int(claimed["StartTime"]) - asked < 15, "Slurm had to wait for the end of the grace time"
    assert "PREEMPTION" not in output, "Slurm had to end the job"
    assert int(shown["StartTime"]) >= int(claimed["StartTime"])
    assert shown["Restarts"] == "1"
    assert (folder / "u.npy").read_bytes() == expected
    assert steps_done(folder / "heat.ckpt") == 1000


def cancelled(cluster: Cluster, folder: Path) -> None:
    """No requeue, and the last epoch complete."""
    options = ("--nodes=1", "--ntasks=2", "--nodelist=n5", "--time=10", "--signal=TERM@1")
    job = submit(cluster, folder, *options, SCRIPTS / "simple.sbatch", *PLATE, "--steps", "100000")
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 100, "steps")
    cluster.run("scancel", job.id)
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0"), output
    assert f"job {job.id} is not queued again: it was cancelled" in output
    checkpoint = mpickpt.Checkpoint(folder / "heat.ckpt")
    assert checkpoint.verify() == []
    assert checkpoint.step == steps_done(folder / "heat.ckpt")


def ended_by_hand(cluster: Cluster, folder: Path) -> None:
    """`trigger --stop` ends the ranks: a held job then waits in the queue, one that may not be requeued has ended."""
    options = ("--nodes=1", "--ntasks=2", "--nodelist=n5", "--time=10", "--signal=TERM@1")
    job = submit(cluster, folder, *options, SCRIPTS / "simple.sbatch", *PLATE, "--steps", "100000")
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 100, "steps")
    cluster.run("scontrol", "hold", job.id)
    assert _mpickpt(folder, "trigger", "heat.ckpt", "--stop").returncode == 0
    job.wait_until(lambda: job.shown()["JobState"] == "PENDING", "requeue")
    done = steps_done(folder / "heat.ckpt")
    assert mpickpt.Checkpoint(folder / "heat.ckpt").step == done
    assert f"job {job.id} was stopped in time and is queued again, restart 1" in job.output()
    shown = job.shown()
    assert (shown["Restarts"], shown["Priority"]) == ("1", "0"), "it is held"
    cluster.run("scontrol", "release", job.id)
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > done + 100, "steps after the release")
    assert resumed_at(job.output()) == [done]
    cluster.run("scontrol", "update", f"jobid={job.id}", "requeue=0")
    assert _mpickpt(folder, "trigger", "heat.ckpt", "--stop").returncode == 0
    shown = job.wait()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "75:0", "1"), job.output()
    assert f"job {job.id} is not queued again: scontrol requeue says: " in job.output()
    assert mpickpt.Checkpoint(folder / "heat.ckpt").step == steps_done(folder / "heat.ckpt")


def crash_loop(cluster: Cluster, folder: Path) -> None:
    """A program that crashes in the same step each time is given up after three restarts."""
    options = ("--nodes=1", "--ntasks=1", "--nodelist=n6", "--time=10", "--signal=TERM@1")
    job = submit(cluster, folder, *options, SCRIPTS / "simple.sbatch", program="crashing_job.py")
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "10:0", "3"), output
    assert output.count("ended by an uncaught FloatingPointError") == 4
    assert f"job {job.id} is given up: 3 restarts in a row saved no newer step" in output
    assert re.search(r"epoch 1 \(step 1\d\d\) of heat.ckpt is complete", output)


def node_failure(cluster: Cluster, folder: Path) -> None:
    """A node dies; the job goes on at once from the last complete epoch, on the one that is left."""
    arguments = (*PLATE, "--steps", "1500")
    options = ("--nodelist=n7,n8", "--time=10")
    command = (*options, SCRIPTS / "node-failure.sbatch", *arguments, "--out", "u.npy")
    job = submit(cluster, folder, *command, MPICKPT_INTERVAL="1s")
    expected = twin(folder, *arguments)
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 500, "steps")
    cluster.kill_node("n8")
    killed_at = steps_done(folder / "heat.ckpt")
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "0"), output
    assert "on 2 ranks (written by 4)" in output
    assert (folder / "u.npy").read_bytes() == expected
    assert "n8" in cluster.run("sinfo", "-h", "-N", "-t", "down", "-o", "%N")
    (resumed,) = resumed_at(output)
    assert killed_at - resumed < 150, "more is lost than an interval of 1 s and its drain"


def array(cluster: Cluster, folder: Path) -> None:
    """Four tasks, each preempted once: four right results, and no directory shared."""
    nodes = "n9,n10"
    arguments = ("--rows", "40", "--steps", "2500")
    options = ("--partition=low", "--exclude=n[1-8,11-14]", "--time=10")
    (folder / "sweep.ckpt").mkdir()
    job = submit(cluster, folder, *options, SCRIPTS / "array.sbatch", *arguments)
    directories = [folder / "sweep.ckpt" / str(task) for task in range(1, 5)]
    job.wait_until(lambda: all(steps_done(directory) > 50 for directory in directories), "steps")
    program = ("jobs/heat/checkpointed.py", *arguments)
    second = _mpickpt(folder, "run", "--dir", directories[0], *program, **SURROUNDINGS, MPICKPT_DIR="marks")
    assert second.returncode == 4
    assert f"is in use by job {job.id}_1 (process" in second.stderr
    other = _claim(cluster, folder, nodes)
    expected = [twin(folder, *arguments, "--cols", str(250 * task)) for task in range(1, 5)]
    for task, directory in enumerate(directories, 1):
        shown = job.wait(f"_{task}")
        output = job.output(f"sweep-{job.id}_{task}.out")
        assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "1"), output
        assert directory.with_suffix(".npy").read_bytes() == expected[task - 1]
        assert len(resumed_at(output)) == 1
        assert steps_done(directory) == 2500
    other.wait()


def no_scontrol(cluster: Cluster, folder: Path) -> None:
    """Without scontrol in the path the job is told, and the checkpoint kept."""
    tools = Path(sys.executable).parent
    script = folder / "hidden.sbatch"
    text = (SCRIPTS / "simple.sbatch").read_text()
    script.write_text(text.replace("trap :", f"PATH={tools}\ntrap :").replace("srun ", "/usr/bin/srun "))
    options = ("--nodes=1", "--ntasks=2", "--nodelist=n11", "--time=10", "--signal=TERM@1")
    job = submit(cluster, folder, *options, script, *PLATE, "--steps", "100000")
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 100, "steps")
    cluster.run("scancel", "--signal=TERM", job.id)
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "75:0", "0"), output
    assert "its end is not known, so that only SIGTERM stops it in time: there is no scontrol in PATH" in output
    assert f"job {job.id} is not queued again: there is no scontrol in PATH. To go on, submit it again: epoch" in output
    assert mpickpt.Checkpoint(folder / "heat.ckpt").step == steps_done(folder / "heat.ckpt")


def no_right(cluster: Cluster, folder: Path) -> None:
    """A job that may not be requeued says so, and keeps its checkpoint."""
    options = ("--nodes=1", "--ntasks=2", "--nodelist=n12", "--time=10", "--signal=TERM@1", "--no-requeue")
    job = submit(cluster, folder, *options, SCRIPTS / "simple.sbatch", *PLATE, "--steps", "100000")
    job.wait_until(lambda: steps_done(folder / "heat.ckpt") > 100, "steps")
    cluster.run("scancel", "--signal=TERM", job.id)
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "75:0", "0"), output
    assert f"job {job.id} is not queued again: scontrol requeue says: " in output
    assert mpickpt.Checkpoint(folder / "heat.ckpt").step == steps_done(folder / "heat.ckpt")


def clock_jump(cluster: Cluster, folder: Path) -> None:
    """The clock of the node is set forward by an hour: the job does not take its ten minutes for over."""
    options = ("--nodes=1", "--ntasks=2", "--nodelist=n13", "--time=10", "--signal=TERM@1")
    command = (*options, SCRIPTS / "simple.sbatch", *PLATE, "--steps", "400")
    job = submit(cluster, folder, *command, CLOCK_JUMP="3600")
    shown = job.wait()
    output = job.output()
    assert (shown["JobState"], shown["Restarts"]) == ("COMPLETED", "0"), output
    assert f"job {job.id}: the clock of this node jumped by +3600 s" in output
    assert "a final checkpoint" not in output


SCENARIOS = [
    preemption, cancelled, ended_by_hand, crash_loop, node_failure, array, slurms_signal, no_scontrol, no_right,
    clock_jump, time_limit,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_slurm(scenario: Scenario, outcomes: dict[Scenario, Future[None]]) -> None:
    outcomes[scenario].result()
