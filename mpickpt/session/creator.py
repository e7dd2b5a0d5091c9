"""The process that creates slots beside the program; `mpickpt.session.creation` starts it on rank 0.

It is a process because HDF5 would otherwise keep the program from running: h5py has one lock, and a thread that creates
datasets has the interpreter's lock nearly all the time. It imports no MPI, and ends with the process that started it.

It reads the indices of slots from its standard input, a line each. On its standard output it says what it does, in
lines of JSON: ``share`` of a slot's structure that is done, ``warning``, ``made``, ``failed``.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

from mpickpt.errors import StoreError
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

NICENESS = 10  # a program that wants all processors gets nearly all of them
SAY_SECONDS = 0.2  # between two lines about the progress
_PR_SET_PDEATHSIG = 1


def serve(parent: int, description: int) -> None:
    """Create the slots that standard input names, until it ends.

    Parameters
    ----------
    parent : int
        The process that started this one.
    description : int
        Descriptor of a file with a pickled pair: the path of the directory, and the layout.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.nice(NICENESS)
    with suppress(OSError):  # rank 0 may be bound to one processor, which is busy
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints
    with open(description, "rb") as file:  # noqa: PTH123  (a descriptor)
        directory, layout = pickle.load(file)
    store = Store(Path(directory), crc32c)
    count = sum(len(rank.arrays) for rank in layout.ranks)
    for line in sys.stdin:
        index = int(line)
        progress = _Progress(out, count)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                store.create(index, layout, progress)
                assert store.made is not None
                answer = {"made": index, "start": store.made.start, "preface": store.made.preface.hex()}
            except StoreError as error:
                answer = {"failed": index, "why": str(error)}
        for warning in told:
            _say(out, {"warning": str(warning.message)})
        _say(out, answer)


class _Progress:
    """Says how far a slot is, but not each time."""

    def __init__(self, out: int, count: int) -> None:
        self._out, self._count = out, count
        self._done = 0
        self._said = time.monotonic()

    def __call__(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said > SAY_SECONDS:
            self._said = now
            _say(self._out, {"share": self._done / self._count})


def _say(out: int, what: dict[str, object]) -> None:
    os.write(out, json.dumps(what).encode() + b"\n")
