"""Transient errors of the storage: a read is repeated, and no epoch is lost to one of them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpijob import mpi_job

from mpickpt.store.preface import QUIET_SECONDS

LIBRARY_SOURCE = Path(__file__).with_name("flaky_reads.c")
JOB = Path(__file__).with_name("flaky_job.py")
LIMIT = 120

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile what makes reads fail."""
    path = tmp_path_factory.mktemp("flaky") / "libflaky.so"
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", path, LIBRARY_SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True, timeout=150)
    return path


def faults(library: Path, **plan: object) -> dict[str, str]:
    """Give the environment of a program whose reads fail."""
    return {"LD_PRELOAD": str(library)} | {f"FLAKY_{name.upper()}": str(value) for name, value in plan.items()}


def act(library: Path, verb: str, *arguments: object, code: int = 0, **plan: object) -> str:
    """Run the job under a plan; give what it printed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    command = [sys.executable, JOB, verb, *map(str, arguments)]
    done = subprocess.run(
        command, env=plain | faults(library, **plan), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.parametrize("how", ["restart", "lazy", "archive", "spilled", "reader"])
def test_any_call_that_reads_the_newest_epoch_may_fail_twice(how: str, library: Path, tmp_path: Path) -> None:
    """Each of them in turn: open, reads of structure, records, objects, checksums and arrays."""
    act(library, "save", tmp_path / "c", *["spilled"] * (how == "spilled"))
    told = act(library, "sweep", how, tmp_path / "c")
    count = re.search(r"^(\d+) calls$", told, re.MULTILINE)
    assert count and int(count[1]) > (1 if how == "spilled" else 8), told
    assert "lost" not in told, told
    assert "is read again, as it failed once: Input/output error" in told
    assert "is read again, as it failed once: Stale file handle" in told


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_error_that_stays_costs_the_epoch_in_one_line(number: int, library: Path, tmp_path: Path) -> None:
    act(library, "save", tmp_path)
    told = act(library, "open", tmp_path, name="slot-1.h5", skip=0, times=10**6, errno=number)
    lines = told.splitlines()
    reason = os.strerror(number)
    assert f"mpickpt: {tmp_path / 'slot-1.h5'} is read again, as it failed once: {reason}" in lines
    assert told.count("is read again") == 1
    assert re.search(r"^restored 3 30 ", told, re.MULTILINE)
    assert f"slot-1.h5 cannot be read as a slot: {reason}. Look into the storage." in told
    assert len(lines) == 3 and max(map(len, lines)) < 600, told


def test_what_hdf5_says_of_an_error_is_said_in_a_line(library: Path, tmp_path: Path) -> None:
    """Wherever it meets it: its own messages have many lines, with the time and the addresses of buffers."""
    act(library, "save", tmp_path)
    said = act(library, "stay", tmp_path / "slot-1.h5").splitlines()
    assert len(said) > 20
    for line in said:
        assert re.fullmatch(rf"said: .*{tmp_path}/slot-1.h5 (cannot be read|was overwritten|are).*", line), line
        assert "errno =" not in line and len(line) < 400, line
    assert any(line.endswith("cannot be read as a slot: Input/output error. Look into the storage.") for line in said)


def test_arrays_that_stay_unreadable_cost_the_epoch_in_one_line(library: Path, tmp_path: Path) -> None:
    """The structure can be read, the arrays cannot."""
    act(library, "save", tmp_path)
    time.sleep(QUIET_SECONDS + 0.5)  # from now on a start makes the same calls each time
    calls = int(act(library, "count", tmp_path).split()[-2])
    plan = {"name": "slot-1.h5", "times": 10**6, "errno": errno.EIO}
    told = act(library, "open", tmp_path, skip=calls - 4, **plan)  # the last two read the objects that are asked for
    assert "slot-1.h5: epoch 4 is corrupt: rank 0: Input/output error\n" in told
    assert re.search(r"^restored 3 30 ", told, re.MULTILINE)
    assert max(map(len, told.splitlines())) < 600, told
    told = act(library, "open", tmp_path, code=1, skip=calls - 2, **plan)
    assert told.endswith(f"StoreError: {tmp_path / 'slot-1.h5'} cannot be read: Input/output error.\n")


def test_a_directory_that_cannot_be_listed_is_no_empty_one(library: Path, tmp_path: Path) -> None:
    """Else the program would begin from the start, and overwrite what is there."""
    directory = tmp_path / "saved.ckpt"
    act(library, "save", directory)
    told = act(library, "restart", directory, name="saved.ckpt", skip=2, times=2, errno=errno.EIO)
    assert f"mpickpt: {directory} is read again" in told
    assert re.search(r"^restored 4 40 ", told, re.MULTILINE)
    told = act(library, "restart", directory, name="saved.ckpt", skip=2, times=10**6, errno=errno.EIO, code=1)
    assert f"The checkpoint directory {directory} cannot be read: Input/output error" in told


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_read_again(ranks: int, library: Path, folder: Path) -> None:
    """With as many ranks as wrote the epoch, and with others; each rank meets two errors."""
    with mpi_job(2, [JOB, "save", folder / "c"], folder / "log") as job:
        assert job.wait(LIMIT) == 0, job.output()
    added = faults(library, name="slot-1.h5", skip=3, times=2, errno=errno.EIO)
    with mpi_job(ranks, [JOB, "restart", folder / "c"], folder / "log", added) as job:
        assert job.wait(LIMIT) == 0, job.output()
        told = job.output()
    assert len(re.findall(r"^restored 4 40 ", told, re.MULTILINE)) == ranks, told
    assert "is read again, as it failed once: Input/output error" in told
