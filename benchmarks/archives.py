"""Whether epochs come later, and drains take longer, while a program's epochs are archived beside it.

``mpiexec -n 2 python archives.py``. The same run is made without archives, with archives in the checkpoint directory,
and with archives in another folder, in turn. Ranks change all of their state in each step, and are cut every second.
Rank 0 notes when each epoch is complete. Each archive that is kept is verified; an error ends the benchmark with status
1, as does a run that made no archive, or in which an epoch failed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from folder import shared_folder
from mpi4py import MPI
from rich.table import Table

import mpickpt

import machine
from launch import console

COMM = MPI.COMM_WORLD
KINDS = ("without archives", "archives beside the slots", "archives in another folder")
KEEP_SLOTS, KEEP_ARCHIVES = 3, 3  # as many slots without archives as with them
TOLERANCE = 0.1  # of the interval: what an epoch may take longer than any one without archives


@dataclass
class Run:
    """What rank 0 noted of one run."""

    complete: int = 0
    failed: int = 0
    mean_drain: float = 0.0  # seconds, of all ranks and epochs
    gaps: list[float] = field(default_factory=list)  # seconds from one complete epoch to the next
    made: set[str] = field(default_factory=set)  # archives
    verified: int = 0
    skipped: list[str] = field(default_factory=list)  # what was warned of
    wrong: list[str] = field(default_factory=list)


@contextmanager
def warned(run: Run) -> Iterator[None]:
    """Note the warnings of a run instead of printing them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    run.skipped += [str(one.message) for one in found]


def measure(kind: str, folder: Path, args: argparse.Namespace) -> Run:
    """Make one run in an empty folder, verify its archives, and return what was noted; on the other ranks, nothing."""
    run = Run()
    slots = folder / "slots"
    archives = (args.to or folder) / f"archives-{folder.name}" if kind == KINDS[2] else slots
    options: dict[str, Any] = {"interval": args.interval, "keep": KEEP_SLOTS}
    if kind != KINDS[0]:
        options |= {"archive_every": args.archive_every, "keep_archives": KEEP_ARCHIVES, "archive_to": archives}
    try:
        with warned(run), mpickpt.open(slots, COMM, **options) as ckpt:
            go_through_steps(ckpt, run, archives, args)
        stats = ckpt.stats()
        drained = COMM.reduce(stats.drain_seconds)
        if drained is not None:
            run.complete, run.failed = stats.complete, stats.failed
            run.mean_drain = drained / COMM.size / max(1, stats.complete)
            if kind != KINDS[0]:
                verify(run, archives)
    finally:
        COMM.Barrier()
        if COMM.rank == 0 and kind == KINDS[2]:  # which may be outside the benchmark's own folder
            shutil.rmtree(archives, ignore_errors=True)
    return run


def go_through_steps(ckpt: mpickpt.Session, run: Run, archives: Path, args: argparse.Namespace) -> None:
    """Change everything in each step until the time is over; rank 0 notes when an epoch is complete."""
    state = ckpt.array("state", args.mib << 17, fill=1.0)
    begin = last = time.perf_counter()
    known = 0
    for _ in ckpt.range(1 << 60):
        state += 1.0
        now = time.perf_counter()
        if COMM.bcast(now - begin > args.seconds):
            break
        if COMM.rank == 0 and ckpt.stats().last_complete != known:
            if known:  # the first one comes an interval after the start, and has to allocate the pool
                run.gaps.append(now - last)
            known, last = ckpt.stats().last_complete, now
            run.made |= {path.name for path in archives.glob("epoch-*.h5")}


def verify(run: Run, archives: Path) -> None:
    """Read each archive that is left, and compare it with its checksums."""
    for path in sorted(archives.glob("epoch-*.h5")):
        run.made.add(path.name)
        run.verified += 1
        try:
            run.wrong += [f"{path.name}: {found}" for found in mpickpt.Checkpoint(path).verify()]
        except mpickpt.MpickptError as error:
            run.wrong.append(str(error))
    if not run.verified:
        run.wrong.append("no archive was made")
    elif run.verified > KEEP_ARCHIVES:
        run.wrong.append(f"{run.verified} archives were kept instead of {KEEP_ARCHIVES}")


def show(runs: dict[str, list[Run]], args: argparse.Namespace) -> None:
    """Print a row for each kind of run, and whether an epoch came later with archives."""
    state = f"{COMM.size} ranks of {args.mib} MiB that change everything"
    table = Table(title=f"{state}, cut every {args.interval:g} s, archived every {args.archive_every:g} s")
    headings = (
        "drain, median ms",
        "from epoch to epoch, median s",
        "longest s",
        "complete",
        "failed",
        "archives",
        "verified",
    )
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    for kind, made in runs.items():
        gaps = [gap for run in made for gap in run.gaps]
        table.add_row(
            kind,
            f"{statistics.median(run.mean_drain for run in made) * 1000:.0f}",
            f"{statistics.median(gaps):.3f}" if gaps else "",
            f"{max(gaps):.3f}" if gaps else "",
            str(sum(run.complete for run in made)),
            str(sum(run.failed for run in made)),
            str(sum(len(run.made) for run in made)),
            str(sum(run.verified for run in made)),
        )
    console().print(table)
    longest = max((gap for run in runs[KINDS[0]] for gap in run.gaps), default=args.interval)
    limit = longest + TOLERANCE * args.interval
    for kind in KINDS[1:]:
        gaps = [gap for run in runs[kind] for gap in run.gaps]
        late = sorted(gap for gap in gaps if gap > limit)
        verdict = f"{len(late)} of {len(gaps)} epochs came later" if late else f"none of {len(gaps)} epochs came later"
        worst = f", the latest after {late[-1]:.3f} s" if late else ""
        print(
            f"{kind}: {verdict} than any without archives ({longest:.3f} s and {TOLERANCE:.0%} of the interval){worst}"
        )
        for text in (text for run in runs[kind] for text in run.skipped):
            print(f"  warned: {text}")


def main() -> int:
    """Measure in turn, and print; return 1 if an archive is missing or corrupt, or an epoch failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(), help="where the checkpoints are written")
    parser.add_argument(
        "--to", type=Path, help="where the other folder of archives is made; by default beside the slots"
    )
    parser.add_argument("--mib", type=int, default=64, help="state of each rank")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two cuts")
    parser.add_argument("--archive-every", type=float, default=2.0, help="seconds between two archives")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a run takes")
    parser.add_argument("--rounds", type=int, default=5, help="of all three kinds of runs")
    args = parser.parse_args()
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for number in range(args.rounds):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            with shared_folder(COMM, "archives-", args.dir) as folder:
                runs[kind].append(measure(kind, folder, args))
    if COMM.rank > 0:
        return 0
    here = machine.describe(args.dir)
    print(f"{here['processor']}, {here['cores']} cores, {here['file_system']}, MPI {MPI.get_vendor()[0]}")
    show(runs, args)
    wrong = [f"{kind}: {text}" for kind, made in runs.items() for run in made for text in run.wrong]
    wrong += [f"{kind}: {run.failed} epochs failed" for kind, made in runs.items() for run in made if run.failed]
    print("\n".join(wrong) or "Each archive that was kept is valid.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
