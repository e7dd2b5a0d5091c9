"""Who started this process, and how many like it: what a launcher says in the environment.

An MPI library that was started by another library's launcher does not find its ranks: each process takes itself for the
only one, and all of them would save to the same directory. The launcher's own variables tell how many there are. They
are inherited, though, so they count only where this process is the one that they were made for:

- Of several launchers, one inside the other, the innermost counts: its variables are new to the fewest ancestors.
- A process that a rank has started is no rank. It is told by an ancestor that has the same variables and uses MPI; a
  shell or a wrapper between launcher and program does not use it.

A batch job has variables of its size as well, which say nothing of one process: only those of a step are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SPECIAL_STEPS = 0xFFFFFFF0  # Slurm's numbers of batch scripts and interactive shells begin there
_LIBRARY = re.compile(rb"/lib(?:p?mpi|mpich)[\w.-]*\.so")
_GENERATIONS = 64  # of ancestors, at the most


@dataclass(frozen=True)
class Launch:
    """A start by a launcher.

    Attributes
    ----------
    launcher : str
        What it is, in words.
    variable : str
        The environment variable that tells the number.
    ranks : int
        How many processes it started, at the least.
    """

    launcher: str
    variable: str
    ranks: int


# In words; the variable of a process's number; that of their number, where there is one; others that tell starts apart.
# Of those that one start sets the first counts.
_FAMILIES = (
    ("mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
    ("a launcher that speaks PMI, such as MPICH's mpiexec", "PMI_RANK", "PMI_SIZE", ("PMI_FD", "PMI_PORT")),
    ("srun of Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("a launcher that speaks PMIx", "PMIX_RANK", None, ("PMIX_NAMESPACE",)),
)


def find_launch(environment: Mapping[str, str], process: int, folder: Path = Path("/proc")) -> Launch | None:
    """Find the launcher that started a process, and not another one that this one descends from.

    Parameters
    ----------
    environment : mapping
        The process's environment.
    process : int
        Its number.
    folder : pathlib.Path
        Where the system tells of processes.

    Returns
    -------
    Launch or None
        None if there is no launcher, or the process was started by one of its ranks.
    """
    ancestors = list(_ancestors(process, folder))
    found = []
    for launcher, rank, size, others in _FAMILIES:
        told = _number(environment.get(rank if size is None else size))
        if rank not in environment or told is None:
            continue
        if rank == "SLURM_PROCID" and (_number(environment.get("SLURM_STEP_ID")) or 0) >= _SPECIAL_STEPS:
            continue
        marks = {name: environment[name] for name in (rank, size, *others) if name is not None and name in environment}
        heirs = 0
        for _, inherited in ancestors:
            if any(inherited.get(name) != value for name, value in marks.items()):
                break
            heirs += 1
        ranks = told + 1 if size is None else told
        found.append((heirs, Launch(launcher, rank if size is None else size, ranks)))
    if not found:
        return None
    heirs, launch = min(found, key=lambda entry: entry[0])  # the first of equals
    return None if any(_uses_mpi(folder / str(number)) for number, _ in ancestors[:heirs]) else launch


def _ancestors(process: int, folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Return the processes above one with their environments, from its parent on, as far as they may be read."""
    for _ in range(_GENERATIONS):
        try:
            status = (folder / str(process) / "status").read_text(errors="replace")
            process = int(status.partition("\nPPid:")[2].split(maxsplit=1)[0])
            raw = (folder / str(process) / "environ").read_bytes()
        except (OSError, ValueError, IndexError):  # another user's, or it has ended
            return
        entries = raw.decode(errors="replace").split("\0")
        yield process, dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _uses_mpi(process: Path) -> bool:
    try:
        return _LIBRARY.search((process / "maps").read_bytes()) is not None
    except OSError:
        return False


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
