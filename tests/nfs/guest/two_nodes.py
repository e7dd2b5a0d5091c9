"""Runs in the machine: ranks on two nodes, with the checkpoint directory on NFS."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SERVED = Path("/disk/export")  # what the nodes have as /nfs
LIMIT = 240  # seconds for one command
NODES = ("node1", "node2")

PROGRAM = """
import hashlib, os, signal, sys, time
import numpy as np
from mpi4py import MPI
import mpickpt

steps, pause, dies, grows = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
comm = MPI.COMM_WORLD
with mpickpt.open("/nfs/c.ckpt", comm, every=10) as ckpt:
    u = ckpt.array("u", (4, 301, 211), fill=0.0)
    rng = ckpt.object("rng", np.random.default_rng(comm.rank))
    for step in ckpt.range(steps):
        u[step % 4] += rng.standard_normal(u[0].shape)
        comm.Barrier()
        time.sleep(pause)
        if step == dies and comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == grows:
            more = ckpt.array("more", (1000, 33 + comm.rank), fill=1.0)
    stats = ckpt.stats()
digest = hashlib.sha256(u).hexdigest()
print(f"rank {comm.rank} on {MPI.Get_processor_name()}: {digest} {stats.failed} failed", flush=True)
"""


@pytest.fixture(autouse=True)
def _no_leaks() -> None:
    """The check of the other folders is not for a machine that ends with the tests."""


@pytest.fixture(autouse=True)
def _afresh() -> None:
    _remove()
    (SERVED / "program.py").write_text(PROGRAM)


def on(node: str, *command: str | Path) -> list[str]:
    """Give the command line of a command on a node."""
    return ["/run/launch", node, *map(str, command)]


def mpirun(nodes: tuple[str, ...], *command: str | Path) -> list[str]:
    """Give the command line for a rank on each of the nodes."""
    launcher = ["-launcher", "rsh", "-launcher-exec", "/run/launch", "-iface", "eth0", "-hosts", ",".join(nodes)]
    return on(nodes[0], "FI_PROVIDER=tcp", "OPENBLAS_NUM_THREADS=1", BIN / "mpiexec", *launcher, "-n", "2", *command)


def program(steps: int, *, pause: float = 0.0, dies: int = -1, grows: int = -1, options: str = "") -> list[str | Path]:
    """Give the command line of a rank."""
    return [BIN / "mpickpt", "run", *options.split(), "/nfs/program.py", str(steps), str(pause), str(dies), str(grows)]


def told(command: list[str], code: int | None = 0) -> str:
    """Run a command; what it wrote."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    assert code is None or done.returncode == code, done.stdout
    return done.stdout


def results(output: str) -> dict[str, str]:
    """Give the ranks' digests."""
    found = dict(re.findall(r"rank (\d) on \S+: (\w{64})", output))
    assert len(found) == 2, output
    return found


def ls(node: str) -> str:
    """List the slots, as a node sees them."""
    return told(on(node, BIN / "mpickpt", "ls", "/nfs/c.ckpt"), None)


@contextmanager
def running(command: list[str], until: str) -> Iterator[subprocess.Popen[str]]:
    """Run a job beside the test, from when `ls` tells what is waited for; its processes are gone at the end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, start_new_session=True, **streams) as job:
        try:
            end = time.monotonic() + LIMIT
            while not re.search(until, ls("node2")):
                assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
                time.sleep(0.5)
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def sound(node: str) -> None:
    """Read all slots on a node, and compare them with their checksums."""
    assert "is valid" in told(on(node, BIN / "mpickpt", "verify", "/nfs/c.ckpt"))


def test_killed_and_started_again_with_the_ranks_on_each_others_nodes() -> None:
    expected = results(told(mpirun(NODES, *program(60))))
    _remove()
    assert "EXIT CODE: 9" in told(mpirun(NODES, *program(60, dies=37)), None)
    assert "step" in ls("node2")
    output = told(mpirun(("node2", "node1"), *program(60)))
    assert re.search(r"restored epoch \d \(step [23]0\)", output), output
    assert "rank 0 on node2" in output
    assert results(output) == expected
    sound("node1")
    sound("node2")


def test_a_request_from_another_node_is_heard_at_once() -> None:
    """Node 1 believes for a minute that there is none."""
    with running(mpirun(NODES, *program(100_000, pause=0.02, options="--every 1000000")), "in use by") as job:
        time.sleep(15)  # long enough for rank 0 to have looked for it
        began = time.monotonic()
        assert "asked" in told(on("node2", BIN / "mpickpt", "trigger", "--stop", "/nfs/c.ckpt"))
        assert job.wait(LIMIT) == 75
        assert time.monotonic() - began < 30  # most of it is Python's end
    assert re.search(r"slot-0.h5\s+1 .*complete", ls("node2"))
    sound("node1")


def test_slots_are_made_anew_while_somebody_reads_the_old_ones() -> None:
    """Their files live on, and both nodes know them by the name that the new ones have."""
    command = mpirun(NODES, *program(120, pause=0.2, grows=45))
    with running(command, r"(?s)slot-0.h5.*complete.*slot-1.h5.*complete") as job:
        held = [path.open("rb") for path in SERVED.glob("c.ckpt/slot-*.h5")]
        output = job.communicate(timeout=LIMIT)[0]
        assert job.returncode == 0, output
        for file in held:
            assert os.fstat(file.fileno()).st_nlink == 0  # they were made again
            file.close()
    assert re.findall(r"(\d+) failed", output) == ["0", "0"], output
    sound("node1")
    sound("node2")


def test_a_node_dies_and_its_lock_is_waited_for() -> None:
    """The server keeps it for some time; the program goes on on the other node."""
    command = mpirun(NODES, *program(1_000_000, pause=0.05))
    with running(command, r"(?s)slot-0.h5.*complete.*slot-1.h5.*complete"):
        subprocess.run(["ip", "link", "set", "node1", "down"], check=True)
    for pid in _processes("program.py"):
        os.kill(pid, signal.SIGKILL)
    output = told(mpirun(("node2",), *program(10)), None)
    assert "is in use by process" in output and "on node1. If that machine died" in output, output
    assert "restored epoch" in output, output
    sound("node2")


def _remove() -> None:
    subprocess.run(["rm", "-rf", SERVED / "c.ckpt"], check=True)


def _processes(word: str) -> list[int]:
    """Find the processes with a word in their command line: in this machine they are all the test's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            if word in path.read_text():
                found.append(int(path.parent.name))
    return found
