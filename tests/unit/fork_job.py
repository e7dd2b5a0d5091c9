"""A program that makes child processes inside its session; `test_forks.py` runs it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mpickpt

SIZE = 50_000
CLONE = {"x86_64": 56, "aarch64": 220}[platform.machine()]
C = ctypes.PyDLL(None)  # which keeps the interpreter lock, so that a child of its fork() can go on
shared: NDArray[np.float64]
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which a process inherits as ignored from one whose session was stopped


def load(index: int) -> float:
    """Read and write a share of the array of the parent, as a loader of data does; in a child of fork alone."""
    share = shared[index::4]
    share *= 2
    return float(share.sum())


def square(index: int) -> int:
    """Do what a worker does that knows nothing of the session."""
    return index * index


def pools(method: str) -> None:
    """Work with pools, which end their workers by SIGTERM, and with workers that are ended as soon as they begin."""
    global shared
    context: Any = multiprocessing.get_context(method)
    with mpickpt.open(sys.argv[2], every=2) as ckpt:
        shared = u = ckpt.array("u", SIZE, fill=1.0)
        for step in ckpt.range(3):
            with context.Pool(2) as pool:
                assert pool.map(square, range(8)) == [i * i for i in range(8)]
                if method == "fork":
                    assert sum(pool.map(load, range(4))) == 2 * u.sum() == 2 * SIZE
            for delay in (0, 0, 0, 0, 0.2) if method == "fork" else (0.2,):
                worker: BaseProcess = context.Process(target=time.sleep, args=(60,))
                worker.start()
                time.sleep(delay)
                worker.terminate()
                worker.join()
                assert worker.exitcode == -signal.SIGTERM, worker.exitcode
            for early in (lambda: None, None):  # with a function to call first Python cannot but fork
                sleeper = subprocess.Popen(["sleep", "60"], preexec_fn=early)
                sleeper.terminate()
                assert sleeper.wait() == -signal.SIGTERM
            print("step", step, flush=True)
    print("end", float(u.sum()) == SIZE, flush=True)


def _sleep_in_fork() -> int:
    child: BaseProcess = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    assert child.pid
    return child.pid


def _sleep_in_fork_of_c() -> int:
    child: int = C.fork()  # of which Python does not know
    if child == 0:
        C.sleep(60)
        os._exit(0)
    return child


def _sleep_in_clone() -> int:
    child: int = C.syscall(CLONE, int(signal.SIGCHLD), 0, 0, 0, 0)  # of which the C library does not know
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child


def _sleep_elsewhere() -> int:
    return subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid


SLEEPERS: dict[str, Callable[[], int]] = {
    "fork": _sleep_in_fork,
    "fork of C": _sleep_in_fork_of_c,
    "clone": _sleep_in_clone,
    "exec": _sleep_elsewhere,
}


def orphan(kind: str) -> None:
    """Leave a child behind: by being killed, or, where a child keeps the lock, by closing the session."""
    with mpickpt.open(sys.argv[2], every=1) as ckpt:
        u = ckpt.array("u", SIZE, fill=0.0)
        for step in ckpt.range(4):
            u += 1
            if step == 2:
                child = SLEEPERS[kind]()
                print(child, flush=True)
            if step == 3 and "closes" not in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
    with mpickpt.open(sys.argv[2]) as ckpt:
        assert ckpt.restored
        os.kill(child, 0)  # it lives
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]  # one has the number that the lock's had
    child = os.fork()
    if child == 0:
        for file in files:
            os.fstat(file)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def again() -> None:
    """Go on."""
    with mpickpt.open(sys.argv[2]) as ckpt:
        ckpt.array("u", SIZE)
        for _ in ckpt.range(6):
            pass


def _status_of(kind: str, number: int) -> int:
    child = SLEEPERS[kind]()
    time.sleep(0.2)  # as long as a function of Python's takes at most to be run: only its absence is waited for
    os.kill(child, number)
    deadline = time.monotonic() + 0.5
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])


def _leave(number: int, frame: object) -> None:
    os._exit(50 + number)


def signals(kind: str) -> None:
    """Print what signals do in a child, for what they did before the session and within it."""
    term, usr1 = signal.SIGTERM, signal.SIGUSR1
    signal.signal(usr1, signal.SIG_IGN)
    with mpickpt.open(sys.argv[2]) as ckpt:
        next(ckpt.range(1))
        print("default", _status_of(kind, term), "ignored", _status_of(kind, usr1))
        signal.signal(term, _leave)
        if kind == "fork":
            print("taken since", _status_of(kind, term))
    signal.signal(term, _leave)
    with mpickpt.open(sys.argv[2]) as ckpt:
        next(ckpt.range(1))
        if kind != "fork of C":  # where no code of Python runs
            print("taken before", _status_of(kind, term))
        signal.signal(term, signal.SIG_DFL)
    try:
        with mpickpt.open(sys.argv[2], every=100) as ckpt:
            for _ in ckpt.range(10**6):
                ckpt.request(stop=True)
    except mpickpt.Stopped:
        assert signal.getsignal(term) == signal.SIG_IGN
        if kind == "fork":
            print("stopped", _status_of(kind, term))


if __name__ == "__main__":
    jobs: dict[str, Callable[[], None]] = {"again": again}
    for method in ("fork", "forkserver", "spawn"):
        jobs[method] = lambda method=method: pools(method)  # type: ignore[misc]
    for kind in SLEEPERS:
        jobs[f"orphan of {kind}"] = lambda kind=kind: orphan(kind)  # type: ignore[misc]
        jobs[f"signals in {kind}"] = lambda kind=kind: signals(kind)  # type: ignore[misc]
    jobs[sys.argv[1]]()
