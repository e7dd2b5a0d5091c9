"""Storage that hangs: for one rank, by a library that delays its writes, and for all, by a frozen file system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpijob import MpiJob, mpi_job

HERE = Path(__file__).parent
JOB = HERE / "hang_job.py"
HUNG = 1  # the rank
HANG = ("--seconds", "3", "--steps", "330")  # of ten milliseconds and a little more: some are left behind the hang
LIMIT = 2.5  # seconds that a step may take: the job gives an epoch up after one


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings under which the writes of one rank hang as long as a file is there."""
    library = tmp_path_factory.mktemp("hang") / "hang.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "hang.c"], check=True)
    return {"LD_PRELOAD": str(library), "HANG_RANK": str(HUNG), "HANG_FILE": "hang"}


def _told(job: MpiJob, what: str) -> float:
    """Give the greatest of what the ranks measured."""
    found = re.findall(rf"{what} ([\d.]+)", job.output())
    assert len(found) == job.ranks, job.output()
    return max(map(float, found))


def _restored(folder: Path, *more: str) -> str:
    """Start the program again, for some steps, and give what it says of its restart."""
    with mpi_job(2, [JOB, "every=100000", "--more", "3", *more], folder / "log") as again:
        assert again.wait(150) == 0, again.output()
    return again.output()


@pytest.mark.parametrize("schedule", ["every=10", "interval=0.2"])
def test_one_rank_that_hangs_stops_nobody(tmp_path: Path, preloaded: dict[str, str], schedule: str) -> None:
    with mpi_job(2, [JOB, schedule, *HANG], tmp_path / "log", preloaded) as job:
        assert job.wait(150) == 0, job.output()
    assert _told(job, "longest step") < LIMIT, job.output()
    told = job.output()
    failed = re.findall(rf"Epoch (\d+) \(step \d+\) failed on rank {HUNG}: \S+slot-\d.h5: the storage hangs", told)
    skipped = re.findall(rf"Epoch (\d+) \(step \d+\) is skipped, as rank {HUNG} could not be cut for it", told)
    again = re.findall(rf"rank {HUNG}: \S+: the storage answers again after (\d+) skipped epochs?", told)
    assert len(skipped) == len(again) == 1, "once a hang"
    assert str(int(skipped[0]) - 1) in failed, told
    if schedule != "every=10":
        return
    newest = re.search(r"restored epoch (\d+) ", _restored(tmp_path))
    assert newest
    assert int(newest[1]) >= int(skipped[0]) + int(again[0]), "epochs are made again"


def test_a_hang_that_holds_up_nobody_is_told(tmp_path: Path, preloaded: dict[str, str]) -> None:
    command = [JOB, "interval=0.2", "--seconds", "1.8", "--steps", "230", "--still"]
    with mpi_job(2, command, tmp_path / "log", preloaded) as job:
        assert job.wait(150) == 0, job.output()
    assert len(re.findall(rf"Rank {HUNG}: .* no other epoch is begun before the storage answers", job.output())) == 1
    assert "failed" not in job.output(), "the epoch is complete in the end"
    assert _told(job, "longest step") < LIMIT


def test_the_end_has_a_limit(tmp_path: Path, preloaded: dict[str, str]) -> None:
    """Five times that of others. The process ends with its writes, and the next one finds the last complete epoch."""
    command = [JOB, "every=25", "--seconds", "100", "--steps", "51", "--limit", "400ms", "--still", "--abrupt"]
    with mpi_job(2, command, tmp_path / "log", preloaded) as job:
        assert job.wait(150) == 0, job.output()
    assert 1.8 < _told(job, "close") < 12.0
    said = re.search(rf"rank {HUNG} has waited 1 s for the storage, which saves epoch 2 .*slot-\d.h5", job.output())
    assert said, job.output()
    assert job.output().count("The checkpoint directory stays locked until the process ends") == 1
    assert "directory is locked" in job.output()
    assert "restored epoch 1 (step 25)" in _restored(tmp_path, "--still")


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be frozen: all its writes then hang in the kernel."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mkfs.ext4", "mount", "umount", "fsfreeze"))):
        pytest.skip("needs root, ext4 and fsfreeze")
    image, folder = tmp_path / "image", tmp_path / "frozen"
    with image.open("wb") as file:
        file.truncate(200 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["fsfreeze", "-u", folder], capture_output=True)
        subprocess.run(["umount", folder], check=True)
        image.unlink()


def test_a_file_system_that_hangs_in_the_kernel(tmp_path: Path, freezable: Path) -> None:
    settings = {"MPICKPT_DIR": str(freezable / "c"), "MPICKPT_RECORD": "no"}  # a note might be written just then
    with mpi_job(2, [JOB, "every=10", *HANG], tmp_path / "log", settings) as job:
        hang = tmp_path / "hang"
        try:
            while not hang.exists():
                assert job.running(), job.output()
                time.sleep(0.01)
            subprocess.run(["fsfreeze", "-f", freezable], check=True)
            while hang.exists():
                time.sleep(0.01)
        finally:
            subprocess.run(["fsfreeze", "-u", freezable], capture_output=True)
        assert job.wait(150) == 0, job.output()
    assert _told(job, "longest step") < LIMIT, job.output()
    assert "the storage hangs" in job.output()
    assert "the storage answers again" in job.output()
    assert _told(job, "complete") > 3
