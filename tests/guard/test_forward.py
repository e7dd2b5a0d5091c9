"""A SIGSEGV handler of another library that comes within a session and hands on: a crash ends in a report."""

from __future__ import annotations

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
    assert errors.count("Fatal Python error: Segmentation fault") == 1 and "in <module>" in errors
