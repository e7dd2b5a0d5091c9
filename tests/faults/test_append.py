"""A program dies at any instant, or its files cannot be synced: what it appended is that of an uninterrupted run."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from kills import KINDS, wait_for_first
from mpijob import mpi_job

HERE = Path(__file__).parent
JOB = HERE / "append_job.py"
STEPS, RANKS = 600, 2

pytestmark = pytest.mark.timeout(400)


def command(steps: int, every: int, pause: float = 0.0) -> list[str | Path]:
    return ["-m", "mpickpt", "run", "--every", str(every), JOB, str(steps), str(pause)]


def alone(folder: Path, settings: Mapping[str, str], *what: str | Path) -> tuple[int, str]:
    """Run the job as one process; give its exit code, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    done = subprocess.run(
        [sys.executable, *what], env=environment | settings, cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout


def appended(folder: Path) -> dict[str, bytes]:
    """Give what is in the files that the job appends to."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".txt", ".bin")}


def make(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.sampled
@pytest.mark.parametrize("chain", range(2))
def test_files_after_random_kills_are_those_of_an_uninterrupted_run(chain: int, folder: Path) -> None:
    """Five kills in each of two chains. Also what a start left that died before its first epoch is cut off."""
    straight, killed = make(folder / "straight"), make(folder / "killed")
    what = command(STEPS, 15, pause=0.002)
    with mpi_job(RANKS, what, straight / "log") as run:
        assert run.wait(150) == 0, run.output()
    expected = appended(straight)
    assert {name: len(data) > 1000 for name, data in expected.items()} == dict.fromkeys(
        ["log.txt", "data-0.bin", "data-1.bin"], True
    )

    dice = random.Random(f"append-{chain}")
    printed, kills = "", 0
    for kind, longest in dice.sample(KINDS, len(KINDS)):
        with mpi_job(RANKS, what, killed / "log") as run:
            wait_for_first(kind, run, killed / "ckpt")
            time.sleep(dice.uniform(0, longest))
            kills += run.kill_rank(dice.randrange(RANKS))
            run.wait(150)
        printed += run.output()
    with mpi_job(RANKS, what, killed / "log") as run:
        assert run.wait(150) == 0, run.output()
    printed += run.output()
    resumed, cut = len(re.findall("restored epoch", printed)), len(re.findall("bytes behind the cut", printed))
    print(f"{kills} kills, {resumed} starts resumed from an epoch, {cut} files cut back")
    assert kills > 2 and resumed > 1 and cut > 1, printed
    assert appended(killed) == expected


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that is preloaded."""
    library = tmp_path_factory.mktemp("faults") / "libfaults.so"
    source = HERE / "append_faults.c"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", library, source, "-ldl"], check=True)
    return library


def test_dies_at_each_call_of_a_restart(folder: Path, faults: Path) -> None:
    """What is cut off is on the disk beside the file before it is gone from there, whatever call is the last."""
    steps, count = 6, folder / "count"
    straight, killed = make(folder / "straight"), make(folder / "killed")
    assert alone(straight, {}, *command(steps, 4))[0] == 0
    settings = {"LD_PRELOAD": str(faults), "FILES": str(killed / "log.txt"), "COUNT_TO": str(count)}
    assert alone(killed, settings, *command(8, 4))[0] == 0
    assert int(count.read_text()) > 8
    shutil.copytree(killed, folder / "before")
    before, expected = appended(killed)["log.txt"], appended(straight)["log.txt"]
    tail = before[before.index(b"step 4") :]  # written behind the cut of the epoch that is restored
    for call in range(1, 100):
        shutil.rmtree(killed)
        shutil.copytree(folder / "before", killed)
        code, said = alone(killed, settings | {"DIE_AT": str(call)}, *command(steps, 100))
        kept, left = [path.read_bytes() for path in killed.glob("log.txt.cut-1*")], appended(killed)["log.txt"]
        assert left == before or (expected.startswith(left) and tail in kept), f"call {call}: {said}"
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
    print(f"{call - 1} starts died")
    assert call > 10
    assert appended(killed) == appended(straight)


def test_a_file_that_cannot_be_synced_fails_the_epochs(folder: Path, faults: Path) -> None:
    """The next sync of such a file succeeds, with bytes missing on the disk: a restart alone brings them back."""
    straight, failed = make(folder / "straight"), make(folder / "failed")
    assert alone(straight, {}, *command(60, 10))[0] == 0
    assert alone(failed, {}, *command(15, 10))[0] == 0
    settings = {"LD_PRELOAD": str(faults), "FAIL_SYNC": "data-0.bin"}
    code, said = alone(failed, settings, *command(60, 10))
    assert code == 0, said
    assert said.count("data-0.bin cannot be synced (Input/output error), so that bytes may be missing in it") >= 4, said
    assert "Epoch 2 (step 20) failed on rank 0" in said and "Epoch 1 stays" in said
    assert "the last epoch of this session" in said
    code, said = alone(failed, {}, *command(60, 10))
    assert code == 0, said
    assert "restored epoch 1 (step 10)" in said
    assert appended(failed) == appended(straight)
