"""A file system without fallocate: slots are created at once, without a write to each block, which is reported once.

The process makes the kernel refuse the system call (seccomp), so the test would also detect posix_fallocate of the C
library, which then writes to each block.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FALLOCATE = {"x86_64": 285, "aarch64": 47}
PROGRAM = """
import ctypes, errno, struct, sys
from pathlib import Path
import mpickpt
from mpi4py import MPI

MIB, refused, number = int(sys.argv[2]), sys.argv[3] == "refused", int(sys.argv[4])
if refused:  # load the call's number; is it fallocate? fail with EOPNOTSUPP, or else allow it
    fail, allow = 0x00050000 | errno.EOPNOTSUPP, 0x7FFF0000
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, fail), (0x06, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        sys.exit("no seccomp here")
calls = lambda: int(Path("/proc/self/io").read_text().split("syscw: ")[1].split()[0])
with mpickpt.open(sys.argv[1], every=1) as ckpt:
    u = ckpt.array("u", MIB << 17, fill=1.0)
    before = calls()
    ckpt.step()  # makes the slots
    print(calls() - before, sum(path.stat().st_blocks for path in Path(sys.argv[1]).glob("slot-*.h5")) // 2048)
    for step in range(3):
        u += 1
        ckpt.step()
    print(ckpt.stats().failed)
with mpickpt.open(sys.argv[1]) as ckpt:
    assert (ckpt.array("u", MIB << 17) == 4).all()
"""


@pytest.mark.parametrize("refused", [False, True])
def test_room_is_reserved_where_that_is_possible(tmp_path: Path, refused: bool) -> None:
    mib = 32
    arguments = (tmp_path / "c", mib, "refused" if refused else "", FALLOCATE[platform.machine()])
    command = [sys.executable, "-W", "always", "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    if "no seccomp here" in done.stderr:
        pytest.skip("the kernel filters no system calls here")
    assert done.returncode == 0, done.stderr
    (calls, reserved), (failed,) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert failed == 0
    assert calls < 2000  # two slots: writing to each block of them would take 16,384
    assert reserved >= 2 * mib or refused
    told = f"The file system of {tmp_path / 'c'} cannot reserve room for a slot: a full disk shows when an epoch is"
    assert done.stderr.count(told) == refused
