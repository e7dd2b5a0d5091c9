"""Slots that are created beside the program, on rank 0: a process of its own does it (`mpickpt.session.creator`)."""

from __future__ import annotations

import errno
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpickpt.errors import warn
from mpickpt.layout.arrays import Layout
from mpickpt.store import Made, Store, slot_path
from mpickpt.units import human_seconds
from mpickpt.waiting import Stopwatch

KILL_SECONDS = 5.0  # that the process may take to end when it is killed
SAY_AFTER, SAY_EVERY = 5.0, 60.0  # seconds until it is told that slots are being created, and between two such lines
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mpickpt.session.creator import serve; serve("
_START += "int(sys.argv[2]), int(sys.argv[3]))"
# It must not take for its own what is meant for the program; a fault of its own may end it.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT}
# mpi4py, which a parallel h5py imports, is not to start MPI; and one thread is enough.
_ENVIRONMENT = {
    "MPI4PY_RC_INITIALIZE": "0",
    "MPI4PY_RC_FINALIZE": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Created:
    """What became of a slot.

    Attributes
    ----------
    index : int
        Which one.
    start : int or None
        Where its raw data begin, in bytes; None if it was not created.
    why : str
        Why it was not.
    """

    index: int
    start: int | None
    why: str = ""


class Creation:
    """Slots of one layout that are being created.

    Parameters
    ----------
    store : Store
        The directory, which is locked; it learns which slots there are to copy from.
    layout : Layout
        What they are for.
    limit : float
        Seconds after which the storage hangs in which the process says nothing and takes no processor time.

    Attributes
    ----------
    pending : list of int
        The slots that are still to come.
    share : float
        How much of the structure of the first of them is described, 0 to 1.

    Raises
    ------
    OSError
        If the process cannot be started.
    """

    def __init__(self, store: Store, layout: Layout, limit: float) -> None:
        self.pending: list[int] = []
        self.share = 0.0
        self._store = store
        self._layout = layout
        self._limit = limit
        self._began = time.monotonic()
        self._say_at = self._began + SAY_AFTER
        self._silent = Stopwatch()
        self._ticks = 0  # of processor time that the process had taken, as last asked
        self._text = b""
        self._process = _start(store, layout)
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        self._readable = select.poll()
        self._readable.register(self._out, select.POLLIN)

    def order(self, index: int) -> None:
        """Have slot `index` created, after those that were ordered before."""
        assert self._process.stdin is not None
        self.pending.append(index)
        with suppress(BrokenPipeError):  # it has ended, which is noticed when it is polled
            self._process.stdin.write(f"{index}\n".encode())

    def has_news(self) -> bool:
        """Whether `poll` should be called."""
        return bool(self._readable.poll(0))

    def poll(self) -> Sequence[Created]:
        """Take in what the process said, without waiting, and return what became of slots meanwhile."""
        found: list[Created] = []
        has_ended = False
        while self.pending and not has_ended:
            try:
                text = os.read(self._out, 1 << 16)
            except BlockingIOError:
                break
            self._silent.restart()
            has_ended = not text
            *lines, self._text = (self._text + text).split(b"\n")
            for line in lines:
                found += self._heard(json.loads(line))
        if self.pending and not has_ended and self._silent.seconds() > self._limit and not self._computes():
            found += self._fail_all(f"the storage hangs, nothing has been written for {self._limit:g} s")
        if has_ended:
            found += self._fail_all("the process that was to create it has ended")
        self._tell()
        return found

    def close(self) -> bool:
        """End the process; what is pending is not created. May be called again.

        Returns
        -------
        bool
            False if it does not end, because it hangs in a call to the storage.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pending.clear()
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _heard(self, what: dict[str, Any]) -> list[Created]:
        """Take in a line of the process."""
        if "share" in what:
            self.share = what["share"]
        elif "warning" in what:
            warn(what["warning"])
        elif "failed" in what:
            return [self._failed(what["failed"], what["why"])]
        else:
            index, start = what["made"], what["start"]
            path = slot_path(self._store.directory, index)
            self._store.made = Made(self._layout, path, start, bytes.fromhex(what["preface"]))
            self.pending.remove(index)
            self.share = 0.0
            return [Created(index, start)]
        return []

    def _computes(self) -> bool:
        """Whether the process has taken processor time since the last call; then it may be silent once more."""
        last = self._ticks
        with suppress(OSError):  # the program itself has waited for it, and it is gone
            *_, user, system = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[:13]
            self._ticks = int(user) + int(system)
        if self._ticks > last:
            self._silent.restart()
        return self._ticks > last

    def _fail_all(self, why: str) -> list[Created]:
        return [self._failed(index, why) for index in list(self.pending)]

    def _failed(self, index: int, why: str) -> Created:
        self.pending.remove(index)
        return Created(index, None, why)

    def _tell(self) -> None:
        """Say at times that slots are being created, and at the end how long that took."""
        now = time.monotonic()
        if self.pending and now >= self._say_at:
            self._say_at = now + SAY_EVERY
            text = f"slot {self.pending[0]} is being created beside the program: {100 * self.share:.0f} % of its arrays"
        elif not self.pending and now >= self._began + SAY_AFTER and self._say_at < float("inf"):
            self._say_at = float("inf")
            text = f"the slots were created beside the program in {human_seconds(now - self._began)}"
        else:
            return
        print(f"mpickpt: {text}", file=sys.stderr, flush=True)


def _start(store: Store, layout: Layout) -> subprocess.Popen[bytes]:
    """Start the process, and give it the layout."""
    if not sys.executable:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "python")
    description = os.memfd_create("mpickpt-layout")
    try:
        with open(description, "wb", closefd=False) as file:  # noqa: PTH123  (a descriptor)
            pickle.dump((str(store.directory.absolute()), layout), file, protocol=5)
        os.lseek(description, 0, os.SEEK_SET)
        kept = [description, *([] if store.lock_descriptor is None else [store.lock_descriptor])]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)  # which it inherits
        try:
            return subprocess.Popen(  # with the lock, as it may live a moment longer than this process
                [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(os.getpid()), str(description)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=kept,
                env={**os.environ, **_ENVIRONMENT},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        os.close(description)
