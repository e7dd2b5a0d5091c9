"""Kill a job repeatedly, check what it left, restart it, and compare the result with the twin's."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
from kill_jobs import Job
from mpijob import MpiJob, mpi_job
from slots import Seen, h5dump, is_complete, newest_complete, read_all, read_records

from conftest import Twin

# Kinds of instants: a random time after the start, after the first cut of this start, or after its first
# complete epoch; and the longest time.
START, CUT, COMPLETE = ("start", 1.0), ("cut", 0.1), ("complete", 0.25)
KINDS = [START, CUT, COMPLETE, COMPLETE, COMPLETE]


def runs(directory: Path, *, complete: bool) -> set[int]:
    """Give the runs that have left a record in the directory, or a complete epoch."""
    found = [records for records in read_records(directory) if is_complete(records) or not complete]
    return {int(run) for records in found for run in records["run"]}


def wait_for_first(kind: str, job: MpiJob, directory: Path) -> None:
    """Wait until this start of the job has got as far as `kind` says, or the job ended."""
    if kind == "start":
        return
    before = runs(directory, complete=False)
    limit = time.monotonic() + 60
    while job.running() and runs(directory, complete=kind == "complete") <= before:
        assert time.monotonic() < limit, f"no checkpoint in 60 s\n{job.output()}"
        time.sleep(0.01)


def check_slots(job: Job, directory: Path, twin_result: np.ndarray, before: Seen | None) -> Seen | None:
    """Read all slots; compare the complete ones with the truth; give the newest complete one.

    What was complete before must not have been lost, and a start that went on from step s must not cut before s.
    """
    slots = read_all(directory)
    for slot in slots:
        shapes = {name: field.shape for name, field in slot.fields.items()}
        assert shapes and all(shapes.values()), f"{slot.path} has no global arrays: {shapes}"
        if slot.complete:
            job.holds(slot, twin_result)
        h5dump(slot.path)
    newest = newest_complete(slots)
    if before is not None:
        assert newest is not None, f"epoch {before.epoch} was complete and is lost: {slots}"
        assert newest.epoch >= before.epoch
        known = set(before.records["run"].tolist())
        for slot in slots:
            later = slot.records[(slot.records["epoch"] > before.epoch) & ~np.isin(slot.records["run"], list(known))]
            assert (later["step"] > before.step).all(), f"a start did not resume at step {before.step}: {later}"
    return newest


def check_result(job: MpiJob, out: Path, expected: np.ndarray) -> None:
    """Compare the result of a run that was left alone with the twin's, bit for bit."""
    assert job.wait(150) == 0, job.output()
    assert np.load(out).tobytes() == expected.tobytes(), job.output()


def kill_time_and_again(seed: str, job: Job, ranks: int, folder: Path, twin: Twin) -> list[str]:
    """Kill a rank, look at the slots, start again, five times over; then compare the result with the twin's.

    Gives what the starts printed.
    """
    print("seed", seed)
    dice = random.Random(seed)
    directory, out, log = folder / "ckpt", folder / "out.npy", folder / "log"
    expected = twin(job, ranks)
    newest: Seen | None = None
    resumed = 0
    printed = []
    for kind, longest in dice.sample(KINDS, len(KINDS)):
        while True:
            with mpi_job(ranks, job.checkpointed(directory, out), log) as run:
                wait_for_first(kind, run, directory)
                time.sleep(dice.uniform(0, longest))
                killed = run.kill_rank(dice.randrange(ranks))
                if killed:
                    run.wait(150)
            resumed += newest is not None
            if killed:
                break
            check_result(run, out, expected)  # the job was quicker than the dice: that was no instant; try again
            shutil.rmtree(directory)
            newest = None
        printed.append(run.output())
        newest = check_slots(job, directory, expected, newest)

    with mpi_job(ranks, job.checkpointed(directory, out), log) as run:
        check_result(run, out, expected)
    printed.append(run.output())
    if newest is not None:
        resumed += 1
        assert newest.announcement in run.output()
    check_slots(job, directory, expected, newest)
    print(f"{len(KINDS)} kills, {resumed} starts resumed from an epoch")
    assert resumed > len(KINDS) // 2, "most starts began from nothing, so that this run proves little"
    return printed
