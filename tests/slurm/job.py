"""One job of the test cluster: submitting, inspecting, waiting."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = ROOT / "slurm"
HEAT = ROOT / "jobs" / "heat"
SURROUNDINGS = {"HEAT": str(HEAT), "OMP_NUM_THREADS": "1"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
PATIENCE = 165.0


class Job:
    """A job.

    Parameters
    ----------
    cluster
        Where it runs.
    folder
        Where it was submitted: its output and its checkpoints are there.
    number
        Its number, as sbatch gave it.
    """

    def __init__(self, cluster: Cluster, folder: Path, number: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.id = number

    def shown(self, task: str = "") -> dict[str, str]:
        """Give what Slurm says of the job."""
        text = self.cluster.run("scontrol", "show", "job", self.id + task, SLURM_TIME_FORMAT="%s")
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def output(self, name: str = "") -> str:
        """Give what the job printed so far."""
        path = self.folder / (name or f"slurm-{self.id}.out")
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that the job does."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < limit, f"no {what} in {PATIENCE} s\n{self.shown()}\n{self.output()}"
            assert not self.cluster.stopped.wait(0.2), "the tests were ended"

    def wait(self, task: str = "") -> dict[str, str]:
        """Wait for the end; what Slurm says of the job then."""
        self.wait_until(lambda: self.shown(task)["JobState"] in ENDED, "end of the job")
        return self.shown(task)


def submit(cluster: Cluster, folder: Path, *command: str | Path, program: str = "slow_heat.py", **settings: str) -> Job:
    """Submit a job from `folder`: `command` is what follows sbatch, `settings` are environment variables."""
    provide(folder, program)
    said = cluster.run("sbatch", "--parsable", *command, cwd=folder, **SURROUNDINGS, **settings)
    return Job(cluster, folder, said.strip())


def provide(folder: Path, program: str = "slow_heat.py") -> None:
    """Put a program of this folder where the batch scripts look for one."""
    path = folder / "jobs" / "heat" / "checkpointed.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / program, path)


def steps_done(directory: Path) -> int:
    """Give how many steps rank 0 of slow_heat.py did so far, over all starts."""
    marks = directory.with_name(f"{directory.name}.steps")
    return marks.stat().st_size if marks.exists() else 0


def resumed_at(output: str) -> list[int]:
    """Give the steps at which the starts of a job went on."""
    return [int(step) for step in re.findall(r"restored epoch \d+ \(step (\d+)\)", output)]


def twin(folder: Path, *arguments: str) -> bytes:
    """Run the plain twin of heat on one rank, and give its result."""
    out = folder / "twin.npy"
    command = [sys.executable, str(HEAT / "plain.py"), *arguments, "--out", str(out)]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out.read_bytes()
