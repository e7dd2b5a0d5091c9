"""The jobs, run to their end on one rank, and the README's program: checkpoints do not change a single bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import first_program
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "heat": ["--rows", "67", "--cols", "50", "--steps", "40"],
    "cg": ["--grid", "31", "--tolerance", "1e-6"],
    "nbody": ["--bodies", "21", "--steps", "40"],
    "farm": ["--steps", "40"],
    "pipeline": ["--channels", "16", "--steps", "40"],
    "survivors": ["--rows", "67", "--cols", "50", "--steps", "40"],
}
JOBS = pytest.mark.parametrize("job", SIZES)


def run(place: Path, *command: str | Path) -> str:
    """Run a program on one rank in a folder and give what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=place,
        env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@JOBS
def test_checkpoints_do_not_change_the_result(job: str, tmp_path: Path) -> None:
    """Compare both twins; then start the finished job again, which repeats its last steps only."""
    run(tmp_path, ROOT / "jobs" / job / "plain.py", *SIZES[job], "--out", "plain.npy")
    program = [ROOT / "jobs" / job / "checkpointed.py", *SIZES[job], "--out", "saved.npy"]
    expected = np.load(tmp_path / "plain.npy").tobytes()
    saved = tmp_path / "saved.npy"

    first = run(tmp_path, "-m", "mpickpt", "run", "--dir", "ckpt", "--every", "7", *program)
    assert "restored" not in first
    assert saved.read_bytes() == (tmp_path / "plain.npy").read_bytes()
    saved.unlink()

    second = run(tmp_path, "-m", "mpickpt", "run", "--dir", "ckpt", "--every", "7", *program)
    step = re.search(r"restored epoch \d+ \(step (\d+)\)", second)
    assert step and int(step[1]) >= 28
    assert np.load(saved).tobytes() == expected


@JOBS
def test_the_job_runs_without_mpickpt_run(job: str, tmp_path: Path) -> None:
    """Start the checkpointed twin as a program like any other; it chooses its own directory."""
    run(tmp_path, ROOT / "jobs" / job / "plain.py", *SIZES[job], "--out", "plain.npy")
    run(tmp_path, ROOT / "jobs" / job / "checkpointed.py", *SIZES[job], "--out", "saved.npy")
    assert (tmp_path / "saved.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()
    assert (tmp_path / f"{job}.ckpt").is_dir()


def test_the_first_program_of_the_readme_runs(tmp_path: Path) -> None:
    """Run it as it is printed, on 4 ranks and then on 3, and compare with the same computation without either."""
    program, starts = first_program.printed()
    assert [ranks for ranks, _ in starts] == [4, 3]
    assert len([line for line in program.splitlines() if line.strip()]) <= 17
    assert max(map(len, program.splitlines())) <= 100
    assert first_program.run(tmp_path).startswith("4 ranks until one was killed, 3 from step ")
