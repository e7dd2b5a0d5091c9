"""How long a program stands still when a rank is killed: with the survivors going on, and ended and started again.

``make bench-survive`` kills one of four ranks of jobs/survivors at random instants, 20 times with each
``--survive``, and ends and starts the same job again for comparison. It compares each result with that of an
uninterrupted run, bit for bit, and checks that the survivors are the same processes as before. It needs Open MPI, and
takes ten minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from mpijob import MpiJob, mpi_job, mpiexec  # noqa: E402  (found by the line above)

JOB = ROOT / "jobs" / "survivors"
RANKS, EVERY = 4, 20
LAUNCHING = ("--with-ft", "ulfm", "--prtemca", "state_base_recoverable", "1")
STEP = re.compile(r"rank (\d+) of (\d+) is process (\d+): step (\d+) at ([\d.]+)")
SHORTEST_CHANCE, LONGEST_CHANCE = 2.5, 4.0  # seconds between the first step of all ranks and a kill
PATIENCE = 120.0
AIM = 1 / 3  # of what ending and starting again takes

Ranks = dict[int, int]  # their processes


def program(folder: Path, out: Path, steps: int, *options: str) -> list[str | Path]:
    """Return what follows the interpreter on the command line of each rank."""
    run: list[str | Path] = ["-m", "mpickpt", "run", *options, "--dir", folder / "ckpt", "--every", str(EVERY)]
    return [*run, JOB / "checkpointed.py", *sizes(steps), "--pause", "0.01", "--out", out]


def sizes(steps: int) -> list[str]:
    """Return the options of the job that decide its result."""
    return ["--rows", "401", "--cols", "400", "--steps", str(steps)]


def uninterrupted(folder: Path, steps: int) -> bytes:
    """Return the result of the plain twin."""
    out = folder / "plain.npy"
    with mpi_job(RANKS, [JOB / "plain.py", *sizes(steps), "--out", out], folder / "log") as job:
        if job.wait(PATIENCE) != 0:
            sys.exit(job.output())
    return out.read_bytes()


def wait_for_ranks(job: MpiJob, before: int, count: int) -> tuple[Ranks, int, float]:
    """Wait for the first step of `count` ranks, after `before` such lines; processes, step, and when the last came."""
    limit = time.monotonic() + PATIENCE
    while len(found := STEP.findall(job.output())[before:]) < count:
        if not job.running() or time.monotonic() > limit:
            sys.exit(f"{count} ranks were to go on:\n{job.output()}")
        time.sleep(0.01)
    ranks = {int(rank): int(process) for rank, _, process, _, _ in found}
    if len(ranks) != count or {int(size) for _, size, *_ in found} != {count}:
        sys.exit(f"these are not {count} ranks:\n{job.output()}")
    return ranks, int(found[0][3]), max(float(at) for *_, at in found)


def kill(ranks: Ranks, victim: int, dice: random.Random) -> float:
    """Kill a rank at a random instant; return when."""
    time.sleep(dice.uniform(SHORTEST_CHANCE, LONGEST_CHANCE))
    at = time.time()
    with suppress(ProcessLookupError):
        os.kill(ranks[victim], signal.SIGKILL)
    return at


def check_processes(mode: str, before: Ranks, victim: int, after: Ranks) -> str:
    """Return a text that names the survivors' processes; exit if they are others than before."""
    stay = {rank: process for rank, process in before.items() if rank != victim}
    if mode == "shrink":
        same = [after[rank] for rank in sorted(after)] == [stay[rank] for rank in sorted(stay)]
    else:
        same = {rank: after[rank] for rank in stay} == stay and after[victim] not in before.values()
    if not same:
        sys.exit(f"the survivors changed: {before} without rank {victim} became {after}")
    joined = f" and the new {after[victim]}" if mode == "respawn" else ""
    return f"{' '.join(str(stay[rank]) for rank in sorted(stay))} stay{joined}"


def survive(
    mode: str, victims: list[int], folder: Path, steps: int, expected: bytes, dice: random.Random
) -> list[float]:
    """Kill ranks of one job, one after the other; return the seconds from each kill to the next step of all ranks."""
    out, seconds, seen = folder / "out.npy", [], 0
    with mpi_job(RANKS, program(folder, out, steps, f"--survive={mode}"), folder / "log", launching=LAUNCHING) as job:
        ranks, _, _ = wait_for_ranks(job, seen, RANKS)
        for victim in victims:
            seen += len(ranks)
            at = kill(ranks, victim, dice)
            after, step, next_step = wait_for_ranks(job, seen, len(ranks) - (mode == "shrink"))
            seconds.append(next_step - at)
            stay = check_processes(mode, ranks, victim, after)
            print(f"{mode:>7}: killed rank {victim} ({ranks[victim]}); {stay}; step {step} after {seconds[-1]:.2f} s")
            ranks = after
        code = job.wait(PATIENCE)
        if code != 0 or out.read_bytes() != expected:
            sys.exit(f"status {code}, or the result is not that of the uninterrupted run:\n{job.output()}")
    clear(folder)
    return seconds


def start_again(folder: Path, steps: int, expected: bytes, dice: random.Random) -> float:
    """Kill a rank without ``--survive``, and start the job again when it has ended; return the seconds as above."""
    out = folder / "out.npy"
    with mpi_job(RANKS, program(folder, out, steps), folder / "log") as job:
        ranks, _, _ = wait_for_ranks(job, 0, RANKS)
        at = kill(ranks, dice.randrange(RANKS), dice)
        job.wait(PATIENCE)
        ended = time.time() - at
    with mpi_job(RANKS, program(folder, out, steps), folder / "log") as job:
        _, step, next_step = wait_for_ranks(job, 0, RANKS)
        code = job.wait(PATIENCE)
        if code != 0 or out.read_bytes() != expected:
            sys.exit(f"status {code}, or the result is not that of the uninterrupted run:\n{job.output()}")
    print(f"  again: ended after {ended:.2f} s; step {step} after {next_step - at:.2f} s")
    clear(folder)
    return next_step - at


def clear(folder: Path) -> None:
    """Remove the files of one job."""
    shutil.rmtree(folder / "ckpt")
    (folder / "out.npy").unlink()


def main() -> int:
    """Measure, and print medians; return 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="with each --survive")
    parser.add_argument("--again", type=int, default=5, help="how often the job is ended and started again")
    parser.add_argument("--steps", type=int, default=500, help="of a job in which one rank is killed")
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--dir", type=Path, help="for the files of the jobs")
    args = parser.parse_args()
    if "Open MPI" not in subprocess.run([mpiexec(), "--version"], capture_output=True, text=True, check=True).stdout:
        sys.exit("bench-survive needs Open MPI: make bench-survive MPI=openmpi")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print("seed", args.seed)
    dice = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="mpickpt-survive-", dir=args.dir) as name:
        folder = Path(name)
        expected = uninterrupted(folder, args.steps)
        again, shrink, respawn = [], [], []
        for number in range(max(args.kills, args.again)):  # in turn, as the machine may be busier at times
            if number < args.again:
                again.append(start_again(folder, args.steps, expected, dice))
            if number < args.kills:
                victim = [dice.randrange(RANKS)]
                shrink += survive("shrink", victim, folder, args.steps, expected, dice)
                respawn += survive("respawn", victim, folder, args.steps, expected, dice)
    usual = statistics.median(again)
    print(f"ended and started again: {usual:.2f} s ({min(again):.2f} to {max(again):.2f})")
    missed = False
    for mode, seconds in (("shrink", shrink), ("respawn", respawn)):
        middle = statistics.median(seconds)
        missed |= middle > AIM * usual
        print(
            f"--survive={mode}: {len(seconds)} kills, {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{middle / usual:.2f} of that; aim {AIM:.2f}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
