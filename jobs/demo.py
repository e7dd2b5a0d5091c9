"""Kill a rank of jobs/heat while it writes a checkpoint, start the job again, compare with an uninterrupted run.

``make demo`` installs what this script needs into ``.build/`` and runs it. All files go to a temporary folder.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.rule import Rule

from mpickpt.layout.arrays import RECORD, RecordState

RANKS, VICTIM = 2, 1
EVERY = 10
ROWS, COLS, STEPS = 3001, 3000, 60  # 34 MiB a rank
SIZE = ["--rows", str(ROWS), "--cols", str(COLS), "--steps", str(STEPS)]
KILL_AFTER_EPOCH = 2  # so that there is a complete epoch when the next one is torn
TRIES = 5  # a drain is short, and the kill can come too late
HEAT = Path(__file__).resolve().parent / "heat"
SURROUNDINGS = {  # more ranks than cores, also as root in a container
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1",
}
say = Console(highlight=False, width=100)


def mpiexec() -> str:
    """Return the mpiexec that belongs to this Python, or the machine's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=path)
    if found is None:
        sys.exit("demo: no mpiexec found. Install one, for instance by: pip install 'mpickpt[mpich]'")
    return found


def start(log: Path, *command: str | Path) -> subprocess.Popen[bytes]:
    """Start a program on all ranks, with a log of their output, outside the sources, which have no native core."""
    words = [mpiexec(), "-n", str(RANKS), sys.executable, *map(str, command)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    with log.open("wb") as out:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**SURROUNDINGS, **own},
        )


def descendants(pid: int) -> list[int]:
    """Return the PIDs of all children of a process, their children, and so on."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ended while we looked
            for child in children.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def stop(job: subprocess.Popen[bytes]) -> None:
    """Kill a job and all its processes, if it still runs."""
    for pid in [*descendants(job.pid), job.pid] if job.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.wait(timeout=20)


def finish(job: subprocess.Popen[bytes], log: Path) -> float:
    """Wait for a job that must succeed; return the seconds that it took from now."""
    begin = time.monotonic()
    try:
        code = job.wait(timeout=120)
    finally:
        stop(job)
    if code != 0:
        sys.exit(f"demo: the job ended with code {code}:\n{log.read_text(errors='replace')}")
    return time.monotonic() - begin


def pid_of_rank(job: subprocess.Popen[bytes], rank: int) -> int | None:
    """Find a rank among the descendants of this job's mpiexec."""
    marks = {f"PMI_RANK={rank}", f"OMPI_COMM_WORLD_RANK={rank}"}
    for pid in descendants(job.pid):
        with suppress(OSError):
            if marks & set(Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")):
                return pid
    return None


def shared_memory(pid: int) -> set[Path]:
    """Return the shared memory files of a rank; MPI does not remove those of a rank that was killed."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {
        Path(line.split(maxsplit=5)[5]) for line in lines if " /dev/shm/" in line and not line.endswith("(deleted)")
    }


def record(slot: Path, rank: int) -> tuple[int, int]:
    """Return state and epoch of a rank's record in a slot."""
    with h5py.File(slot, "r", locking=False) as file:
        row = np.frombuffer(file["records"][rank], RECORD)[0]
    return int(row["state"]), int(row["epoch"])


def kill_in_mid_drain(job: subprocess.Popen[bytes], log: Path, directory: Path) -> tuple[Path, int] | None:
    """Kill the victim while its record says WRITING; return slot and epoch, or None if the drain ended first."""
    victim = None
    while job.poll() is None:
        victim = victim or pid_of_rank(job, VICTIM)
        for slot in directory.glob("slot-*.h5"):
            state, epoch = record(slot, VICTIM)
            if victim and state == RecordState.WRITING and epoch > KILL_AFTER_EPOCH:
                left = shared_memory(victim)
                os.kill(victim, signal.SIGKILL)
                job.wait(timeout=60)
                for path in left:
                    path.unlink(missing_ok=True)
                return (slot, epoch) if record(slot, VICTIM) == (state, epoch) else None
        time.sleep(0.001)
    sys.exit(f"demo: the job ended before it could be killed:\n{log.read_text(errors='replace')}")


def demonstrate(folder: Path) -> None:
    """Run the demonstration in the given folder."""
    directory, log = folder / "heat.ckpt", folder / "log"
    twin, result = folder / "twin.npy", folder / "result.npy"
    saved: list[str | Path] = ["-m", "mpickpt", "run", "--dir", directory, "--every", str(EVERY)]
    line = f"mpirun -n {RANKS} mpickpt run --dir heat.ckpt --every {EVERY} heat/checkpointed.py"

    say.print(Rule("1  The uninterrupted twin, without mpickpt"))
    say.print(f"[bold]$ mpirun -n {RANKS} python heat/plain.py")
    seconds = finish(start(log, HEAT / "plain.py", *SIZE, "--out", twin), log)
    say.print(f"A plate of {ROWS} x {COLS} cells, {STEPS} steps on {RANKS} ranks: {seconds:.1f} s")

    say.print(Rule(f"2  The same job with checkpoints; rank {VICTIM} dies while one is being written"))
    say.print(f"[bold]$ {line}")
    for attempt in range(TRIES):
        job = start(log, *saved, HEAT / "checkpointed.py", *SIZE, "--out", result)
        try:
            hit = kill_in_mid_drain(job, log, directory)
        finally:
            stop(job)
        if hit:
            break
        say.print(f"The drain was over before the signal arrived; try {attempt + 2}")
        shutil.rmtree(directory)
    else:
        sys.exit(f"demo: {TRIES} times the drain was over before the signal arrived")
    slot, epoch = hit
    say.print(
        f"[red]SIGKILL[/] hit rank {VICTIM} while it saved epoch {epoch}; its record in {slot.name} says WRITING."
    )
    say.print(f"mpirun ended with code {job.returncode}. What is on disk:")
    say.print(f"[bold]$ mpickpt ls {directory.name}")
    subprocess.run([sys.executable, "-m", "mpickpt", "ls", directory], check=True, cwd=directory)

    say.print(Rule("3  The same line again"))
    say.print(f"[bold]$ {line}")
    seconds = finish(start(log, *saved, HEAT / "checkpointed.py", *SIZE, "--out", result), log)
    say.print(log.read_text().strip(), markup=False)
    say.print(f"It went on from there and ended after {seconds:.1f} s.")

    say.print(Rule("4  Are the results equal?"))
    ours, theirs = np.load(result), np.load(twin)
    differ = int((ours.view(np.uint64) != theirs.view(np.uint64)).sum())
    for name, field in (("twin", theirs), ("killed and resumed", ours)):
        say.print(f"{name:>20}: SHA-256 {hashlib.sha256(field).hexdigest()}")
    say.print(f"{ours.size:,} numbers compared bit for bit, {differ} differ")
    if differ:
        sys.exit("demo: the results differ")
    say.print("[green]Equal to the last bit.")


def main() -> None:
    """Run the demonstration in a temporary folder, which is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="mpickpt-demo-") as folder:
        demonstrate(Path(folder))


if __name__ == "__main__":
    main()
