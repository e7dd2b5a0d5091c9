"""A launcher that does not belong to the MPI library: nothing is written. Also starts that only look like that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpi4py import MPI
from mpijob import mpi_job

import mpickpt
from mpickpt.session.launcher import Launch, find_launch

OPEN_MPI = "Open MPI" in MPI.Get_library_version()
# What the other library's launcher gives to one of four processes.
FOREIGN = {"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_FD": "9"}
if not OPEN_MPI:
    FOREIGN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}  # with PMIx's own, MPICH 5 refuses by itself
PROGRAM = """
import sys
import mpickpt
with mpickpt.open(sys.argv[1], every=1) as ckpt:
    u = ckpt.array("u", 10)
    for _ in ckpt.range(3):
        u += 1
"""


def started(arguments: list[str | Path], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Start a program as a launcher would, with these variables."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("MPICKPT_")}
    return subprocess.run(
        [str(argument) for argument in arguments], env=plain | variables, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in a shell"])
def test_a_launcher_of_another_library(tmp_path: Path, wrapped: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command: list[str | Path] = [sys.executable, tmp_path / "program.py", tmp_path / "c"]
    if wrapped:
        command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    ended = started(command, FOREIGN)
    assert ended.returncode == 1
    assert "UsageError: The launcher started 4 processes" in ended.stderr
    assert "but MPI sees 1 rank" in ended.stderr
    assert not (tmp_path / "c").exists()
    assert started(command, FOREIGN | {"MPICKPT_ALONE": "yes"}).returncode == 0
    assert mpickpt.Checkpoint(tmp_path / "c").step == 2


def test_run_says_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    run: list[str | Path] = [sys.executable, "-m", "mpickpt", "run"]
    program: list[str | Path] = [tmp_path / "program.py", tmp_path / "c"]
    ended = started([*run, *program], FOREIGN)
    assert ended.returncode == 2
    assert "\nmpickpt: The launcher started 4 processes" in "\n" + ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "c").exists()
    assert started([*run, "--alone", *program], FOREIGN).returncode == 0


FROM_A_RANK = """
import os, subprocess, sys
from mpi4py import MPI
ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ["PMI_SIZE"])
assert MPI.COMM_WORLD.size == ranks == 2
# What connects a process to its launcher is taken away, as another library would not look at it.
left = {k: v for k, v in os.environ.items() if not k.startswith(("PMI_FD", "PMI_PORT", "PMIX_", "HYDI_", "PRTE_"))}
command = [sys.executable, sys.argv[1], sys.argv[2] + str(MPI.COMM_WORLD.rank)]
sys.exit(subprocess.run(command, env=left).returncode)
"""


def test_what_a_rank_starts_is_no_rank(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "rank.py").write_text(FROM_A_RANK)
    with mpi_job(2, [tmp_path / "rank.py", tmp_path / "program.py", tmp_path / "c"], tmp_path / "log") as job:
        assert job.wait(60) == 0, job.output()
    assert [mpickpt.Checkpoint(tmp_path / f"c{rank}").world_size for rank in range(2)] == [1, 1]


SPAWNING = """
import sys
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 0:
    child = MPI.COMM_SELF.Spawn(sys.executable, [sys.argv[1], sys.argv[2]], maxprocs=1)
    child.Barrier()
    child.Disconnect()
MPI.COMM_WORLD.Barrier()
"""
SPAWNED = (
    PROGRAM
    + """
from mpi4py import MPI
MPI.Comm.Get_parent().Barrier()
MPI.Comm.Get_parent().Disconnect()
"""
)


def test_what_is_spawned_is_alone(tmp_path: Path) -> None:
    (tmp_path / "spawned.py").write_text(SPAWNED)
    (tmp_path / "rank.py").write_text(SPAWNING)
    with mpi_job(2, [tmp_path / "rank.py", tmp_path / "spawned.py", tmp_path / "c"], tmp_path / "log") as job:
        assert job.wait(60) == 0, job.output()
    assert mpickpt.Checkpoint(tmp_path / "c").world_size == 1


# -- starts that cannot be had here, told by the environments of a process and its ancestors --------------------------

MPI_MAPS = "7f00-7f01 r-xp 00000000 00:00 0  /opt/mpi/lib/libmpi.so.12.1.8\n"
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
INTERACTIVE = BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "4"}
HYDRA_1 = {"PMI_RANK": "0", "PMI_SIZE": "1", "PMI_FD": "5"}
HYDRA_4 = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "5"}
OPEN_4 = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "3", "PMIX_NAMESPACE": "n"}
PMIX_3 = {"PMIX_RANK": "2", "PMIX_NAMESPACE": "n"}
Generations = list[tuple[dict[str, str], str]]  # from the process upwards: environment, maps


@pytest.mark.parametrize(
    ("generations", "ranks"),
    [
        ([({}, ""), ({}, "")], None),
        ([(BATCH, ""), (BATCH, "")], None),  # python in a batch script
        ([(BATCH | HYDRA_1, MPI_MAPS), (BATCH, "")], 1),  # mpiexec -n 1 there
        ([(STEP, MPI_MAPS), ({}, "")], 4),  # srun -n 4
        ([(STEP, MPI_MAPS), (STEP, ""), ({}, "")], 4),  # srun -n 4 sh -c
        ([(INTERACTIVE, ""), (INTERACTIVE, "")], None),  # salloc
        ([(STEP | HYDRA_1, MPI_MAPS), (STEP, ""), (STEP, "")], 1),  # mpiexec in a step
        ([(STEP | HYDRA_4, MPI_MAPS), (STEP, ""), ({}, "")], 4),
        ([(STEP | PMIX_3, MPI_MAPS), ({}, "")], 4),  # srun --mpi=pmix
        ([(PMIX_3, MPI_MAPS), ({}, "")], 3),  # at the least
        ([(OPEN_4 | HYDRA_1, MPI_MAPS), (OPEN_4, ""), ({}, "")], 1),  # one launcher in another
        ([(OPEN_4 | HYDRA_4, MPI_MAPS), (HYDRA_4, ""), ({}, "")], 4),
        ([(HYDRA_4, MPI_MAPS), (HYDRA_4, MPI_MAPS), ({}, "")], None),  # a child of a rank
        ([(HYDRA_4, MPI_MAPS), (HYDRA_4, ""), (HYDRA_4, MPI_MAPS), ({}, "")], None),  # in a shell
        ([(HYDRA_4, MPI_MAPS), (HYDRA_4 | {"PMI_RANK": "1"}, MPI_MAPS), ({}, "")], 4),  # another start
        ([(HYDRA_4 | {"PMI_FD": "9"}, MPI_MAPS), (HYDRA_4, MPI_MAPS), ({}, "")], 4),  # of as many, with the same rank
        ([(HYDRA_4 | {"PMI_SIZE": "many"}, MPI_MAPS), ({}, "")], None),
    ],
)
def test_which_launcher_counts(tmp_path: Path, generations: Generations, ranks: int | None) -> None:
    for number, (variables, maps) in enumerate(generations):
        folder = tmp_path / str(100 - number)
        folder.mkdir()
        (folder / "status").write_text(f"Name:\tx\nPPid:\t{99 - number}\nUid:\t0\n")
        (folder / "environ").write_text("".join(f"{name}={value}\0" for name, value in variables.items()))
        (folder / "maps").write_text(maps)
    found = find_launch(generations[0][0], 100, tmp_path)
    assert (found.ranks if found else None) == ranks
    assert isinstance(found, Launch | None)
