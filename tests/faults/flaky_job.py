"""The program of test_transient.py, under a preloaded library that makes reads fail: it saves, restarts and reads."""

import ctypes
import errno
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

import mpickpt
from mpickpt import retry
from mpickpt.cli.main import main

ROWS, COLUMNS = 400, 1000


def declare(ckpt: mpickpt.Session) -> np.ndarray:
    """Give this rank's rows of the array."""
    size, rank = MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank
    start, stop = ROWS * rank // size, ROWS * (rank + 1) // size
    return ckpt.array("u", (stop - start, COLUMNS), part=mpickpt.Part((ROWS, COLUMNS), (start, 0)))


def save(directory: str, kind: str = "") -> None:
    """Save epochs 1 to 4 at the steps 10 to 40; the slots hold 3 and 4. The objects may outgrow their room."""
    with mpickpt.open(directory, every=10) as ckpt:
        u = declare(ckpt)
        log = ckpt.object("log", ["x"], replicated=True)
        for step in ckpt.range(45):
            u += 1
            if kind == "spilled" and step == 5:
                log.append("y" * 200_000)


def restart(directory: str, *, steps: bool = True, **options: object) -> tuple[int, int, float]:
    """Go on from what is there, and leave at the first step, or before: epoch, step, sum of the array."""
    with mpickpt.open(directory, every=10, **options) as ckpt:
        u = declare(ckpt)
        ckpt.object("log", [], replicated=True)
        if steps:
            next(iter(ckpt.range(46)))
        assert ckpt.restored is not None
        return ckpt.restored.epoch, ckpt.restored.step, float(u.sum())


def read(directory: str) -> tuple[int, int, float]:
    """Read all as a notebook does."""
    ck = mpickpt.Checkpoint(directory)
    assert ck.verify() == []
    ck.objects(0)
    return ck.epoch, ck.step, float(np.asarray(ck["u"]).sum())


def sweep(how: str, directory: str) -> None:
    """Let each call that reads the newest epoch fail in turn, twice, and see that nothing is lost."""
    retry.PAUSES = (0.001, 0.002)
    flaky = ctypes.CDLL(None)
    name = {"archive": "epoch-4.h5", "spilled": "slot-1.objects-00000"}.get(how, "slot-1.h5")
    if how == "archive":
        assert main(["archive", directory, "--compress"]) == 0
        Path(directory, "slot-1.h5").unlink()

    def once() -> tuple[int, int, float]:
        if how in ("reader", "archive"):
            return read(directory)
        return restart(directory, lazy=how == "lazy")

    flaky.flaky_plan(name.encode(), 10**6, 0, 0)
    expected = once()
    assert expected[:2] == (4, 40)
    calls = flaky.flaky_seen()
    print(f"{calls} calls", flush=True)
    for at in range(calls):
        flaky.flaky_plan(name.encode(), at, 2, (errno.EIO, errno.ESTALE)[at % 2])
        if (got := once()) != expected:
            print(f"lost when call {at} failed: {got}", flush=True)


def stay(path: str) -> None:
    """Let each call that opens a checkpoint fail, and all after it, without a second try; say what is said then."""
    retry.PAUSES = ()
    flaky = ctypes.CDLL(None)
    flaky.flaky_plan(Path(path).name.encode(), 10**6, 0, 0)
    mpickpt.Checkpoint(path)
    for at in range(flaky.flaky_seen()):
        flaky.flaky_plan(Path(path).name.encode(), at, 10**6, errno.EIO)
        try:
            mpickpt.Checkpoint(path)
        except mpickpt.MpickptError as error:
            print("said:", error, flush=True)


def count(directory: str) -> None:
    """Print how many calls read the newest slot until all is restored."""
    flaky = ctypes.CDLL(None)
    flaky.flaky_plan(b"slot-1.h5", 10**6, 0, 0)
    restart(directory, steps=False)
    print(flaky.flaky_seen(), "calls")


if __name__ == "__main__":
    _, action, *rest = sys.argv
    if action in ("restart", "open"):
        print("restored", *restart(rest[0], steps=action == "restart"), flush=True)
    else:
        {"save": save, "sweep": sweep, "stay": stay, "count": count}[action](*rest)
