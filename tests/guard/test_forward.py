"""A SIGSEGV handler that another library installs in a session, and that forwards faults: a crash ends in a report."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("forward.c")
JOB = """
import ctypes, faulthandler, resource, sys
import mpickpt

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
faulthandler.enable()
lib = ctypes.CDLL(sys.argv[1])
with mpickpt.open("c", every=1) as ckpt:
    u = ckpt.array("u", 100_000, fill=0.0)
    for step in ckpt.range(6):
        u += 1
        if step == 2:
            assert lib.take_signal() == 0
        if step == 4 and sys.argv[2] == "within":
            lib.crash()
lib.crash()
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("when", ["within", "after"])
def test_a_crash_is_reported(tmp_path: Path, when: str) -> None:
    library = tmp_path / "libforward.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=150)
    command = [sys.executable, "-c", JOB, str(library), when]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as job:
        try:
            _, errors = job.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            job.kill()  # it would not end by itself: the signals that ask for it come to Python, which is never reached
            pytest.fail("it loops")
    assert job.returncode == -signal.SIGSEGV, errors
    told = rf"Rank 0: the handler of SIGSEGV was replaced since the last cut, by code of {re.escape(str(library))}\."
    assert len(re.findall(told, errors)) == 1
    assert "SIGSEGV was raised by this process itself" not in errors
    assert errors.count("Fatal Python error: Segmentation fault") == 1 and "in <module>" in errors


LATE = """
import faulthandler, resource, signal, sys
import mpickpt

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with mpickpt.open("c", every=1) as ckpt:
    u = ckpt.array("u", 100_000, fill=0.0)
    for step in ckpt.range(6):
        if step == 2:
            faulthandler.enable()
        u += 1
"""


def test_a_handler_that_raises_in_the_place_of_ours(tmp_path: Path) -> None:
    """It got a write to protected memory: the report of the crash has a sentence that says what to do."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "install it before the first safe point" in done.stderr
    early = LATE.replace("with mpickpt", "faulthandler.enable()\nwith mpickpt")
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert (done.returncode, "SIGSEGV" in done.stderr) == (0, False), done.stderr
