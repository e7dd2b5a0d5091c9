"""Child processes of a program with a session: they behave as without it.

Each program runs in a process group of its own, so that children which outlive it on purpose end with the test.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mpickpt.errors import InUseError
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

JOB = Path(__file__).with_name("fork_job.py")


@pytest.fixture(autouse=True)
def _no_child_stays() -> object:
    groups: list[int] = []
    yield groups
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _run(groups: list[int], folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(JOB), *arguments]  # of fork beside threads
    with (folder / "output").open("w") as out:  # a pipe would stay open as long as a child does
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True)
        groups.append(job.pid)
        try:
            status = job.wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs: {(folder / 'output').read_text()}")
    return status, (folder / "output").read_text()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_use_arrays_and_can_be_terminated(_no_child_stays: list[int], tmp_path: Path, method: str) -> None:
    status, output = _run(_no_child_stays, tmp_path, method, "c")
    assert (status, output.splitlines()) == (0, ["step 0", "step 1", "step 2", "end True"])


@pytest.mark.parametrize("kind", ["fork", "fork of C", "exec"])
def test_a_child_that_outlives_its_killed_parent_keeps_no_lock(
    _no_child_stays: list[int], tmp_path: Path, kind: str
) -> None:
    status, output = _run(_no_child_stays, tmp_path, f"orphan of {kind}", "c")
    assert status == -signal.SIGKILL, output
    child = int(output)
    status, output = _run(_no_child_stays, tmp_path, "again", "c")
    assert status == 0 and "restored epoch" in output, output
    os.kill(child, 0)  # it lives


@pytest.mark.parametrize("kind", ["fork", "clone"])
def test_a_child_that_outlives_the_session_keeps_no_lock(_no_child_stays: list[int], tmp_path: Path, kind: str) -> None:
    """Not even one of which the C library does not know."""
    status, output = _run(_no_child_stays, tmp_path, f"orphan of {kind}", "c", "closes")
    assert status == 0 and "restored epoch" in output, output


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("fork", "default -15 ignored -9 taken since 65 taken before 65 stopped -15"),
        ("fork of C", "default -15 ignored -9"),
        ("clone", "default -15 ignored -9 taken before 65"),
    ],
)
def test_signals_do_in_a_child_what_they_did_before(
    _no_child_stays: list[int], tmp_path: Path, kind: str, found: str
) -> None:
    status, output = _run(_no_child_stays, tmp_path, f"signals in {kind}", "c")
    assert " ".join(re.sub("mpickpt: .*", "", output).split()) == found
    assert status == 0


def test_the_lock_is_given_back_where_a_copy_of_its_descriptor_stays(tmp_path: Path) -> None:
    store, other = Store(tmp_path, crc32c), Store(tmp_path, crc32c)
    copy = os.dup(store.lock())
    try:
        with pytest.raises(InUseError):
            other.lock()
        store.unlock()
        other.lock()
        other.unlock()
    finally:
        os.close(copy)
