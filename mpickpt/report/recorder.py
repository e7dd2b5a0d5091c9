"""Notes what a run did and what it cost, for ``mpickpt report``: one file per rank.

Notes are taken at cuts, when safe points are blocked, and when a drain has ended; then a line is written, into the page
cache. A failed write harms neither the program nor an epoch: no more notes are taken, which is reported once.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mpickpt.options import Options
from mpickpt.protocol import Epoch
from mpickpt.report.files import forget_old_runs, notes_path, run_name
from mpickpt.report.notes import FORMAT, EndNote, EpochNote, Header, Note, Sums, fold, line_of
from mpickpt.snapshot import Progress
from mpickpt.stats import Stats

LIMIT_BYTES = 128 * 1024  # of a rank's file; at that size the older half of its epochs become sums
MOST_WAITS = 16  # that one note lists


class _Draining(NamedTuple):
    """What is known of an epoch at its cut; its note is made when its drain has ended."""

    epoch: int
    step: int
    slot: int
    cut: float
    blocked: float
    late_faults: int
    late_fault_seconds: float


class Recorder:
    """One rank's notes.

    Parameters
    ----------
    options : Options
        The directory, the options to note, and whether to take notes at all.
    rank, ranks : int
        The rank, and how many there are.
    run, started_ns : int
        The run's number and when it began, the same on all ranks. Times are counted from now on.
    limit : int
        Largest size of the file in bytes.
    """

    def __init__(
        self, options: Options, rank: int, ranks: int, run: int, started_ns: int, *, limit: int = LIMIT_BYTES
    ) -> None:
        self._options = options
        self._path = notes_path(options.directory, run_name(run, started_ns), rank)
        self._header = Header(
            format=FORMAT,
            rank=rank,
            ranks=ranks,
            host=socket.gethostname(),
            started_ns=started_ns,
            every=options.every,
            interval="" if options.interval is None else str(options.interval),
            mtbf=options.mtbf,
        )
        self._limit = limit
        self._zero = time.perf_counter()
        self._file: int | None = None
        self._size = 0
        self._sums = Sums()
        self._epochs: list[tuple[EpochNote, bytes]] = []  # with their lines, which need not be formatted again
        self._draining: _Draining | None = None
        self._waits: list[tuple[float, float]] = []
        self._waited = 0.0
        self._later: list[EpochNote] = []  # while the storage hangs
        self._hung = False
        self._noted = (0, 0.0)  # faults between the last cut and the end of its drain, and their seconds

    def begin(self, restored: int | None, restart_seconds: float, state_bytes: int, block_bytes: int) -> None:
        """Open the file at the first safe point, and note what is known of the run."""
        if not self._options.record:
            return
        self._header = replace(
            self._header,
            restored=restored,
            restart_seconds=restart_seconds,
            state_bytes=state_bytes,
            block_bytes=block_bytes,
        )
        folder = self._path.parent
        try:
            if self._header.rank == 0:
                forget_old_runs(self._options.directory)
            for part in (folder.parent, folder):
                part.mkdir(mode=0o700, exist_ok=True)
            self._file = self._create(self._path)
        except OSError as error:
            self._give_up(error)
        self._write(self._header)

    def waited(self, since: float, seconds: float) -> None:
        """Note that a safe point was blocked, from `since` of `time.perf_counter` on."""
        if self._file is None:
            return
        self._waited += seconds
        if len(self._waits) < MOST_WAITS:
            self._waits.append((since - self._zero, seconds))
        else:
            start, sum_of_rest = self._waits[-1]
            self._waits[-1] = (start, sum_of_rest + seconds)

    def cut(self, epoch: Epoch, began: float, blocked: float, before: Progress) -> None:
        """Note a cut that was made at `began`; `before` is the snapshotter's progress just before it."""
        if self._file is None:
            return
        at = began - self._zero
        self._draining = _Draining(epoch.number, epoch.step, epoch.slot, at, blocked, *self._late(before))

    def drained(self, progress: Progress, *, hung: bool = False) -> None:
        """Note the result of the drain, and write the line; later, if the storage has `hung`."""
        self._hung = hung
        cut, self._draining = self._draining, None
        if self._file is None or cut is None:
            return
        self._noted = (progress.faults, progress.fault_seconds)
        drained = cut.cut + cut.blocked - progress.blocked_seconds + progress.drain_seconds
        note = EpochNote(
            **cut._asdict(),
            drained=min(drained, time.perf_counter() - self._zero),
            errno=progress.errno,
            drain=progress.drain_seconds,
            stall=progress.stall_seconds,
            faults=progress.faults,
            fault_seconds=progress.fault_seconds,
            bytes_written=progress.bytes_written,
            bytes_waiting=progress.bytes_waiting,
            bytes_urgent=progress.bytes_urgent,
            blocks_due=progress.blocks_dirty,
            blocks_copied=progress.blocks_copied,
            waited=self._waited,
            waits=tuple(self._waits),
        )
        self._waits, self._waited = [], 0.0
        self._later.append(note)
        if not hung:
            self._write_later()

    def _write_later(self) -> None:
        notes, self._later = self._later, []
        for note in notes:
            self._write(note)

    def end(self, closing: float, stats: Stats, progress: Progress, *, by_itself: bool) -> None:
        """Note the end, which began at `closing`, and close the file; do neither if the storage hangs."""
        if self._hung:
            self._file = None
        if self._file is None:
            return
        self._write_later()
        late, late_seconds = self._late(progress)
        self._write(
            EndNote(
                closing=closing - self._zero,
                closed=time.perf_counter() - self._zero,
                by_itself=by_itself,
                complete=stats.complete,
                failed=stats.failed,
                waited=self._waited,
                waits=tuple(self._waits),
                late_faults=late,
                late_fault_seconds=late_seconds,
            )
        )
        self._close()

    def _late(self, progress: Progress) -> tuple[int, float]:
        """Return the write faults, and their seconds, that no note has yet."""
        faults, seconds = self._noted
        return progress.faults - faults, max(0.0, progress.fault_seconds - seconds)

    # -- the file ------------------------------------------------------------------------------------------------

    def _write(self, note: Note) -> None:
        line = line_of(note).encode()
        try:
            if self._size + len(line) > self._limit and len(self._epochs) > 1:
                self._thin()
            if self._file is not None:
                self._put(self._file, line)
                self._size += len(line)
        except OSError as error:
            self._give_up(error)
        if isinstance(note, EpochNote):
            self._epochs.append((note, line))

    def _thin(self) -> None:
        """Sum up the older half of the epochs, in a new file that replaces the old one."""
        half = len(self._epochs) // 2
        self._sums = fold(self._sums, [epoch for epoch, _ in self._epochs[:half]])
        self._epochs = self._epochs[half:]
        head = line_of(self._header) + line_of(self._sums)
        data = b"".join([head.encode(), *(line for _, line in self._epochs)])
        new = self._path.with_suffix(".new")
        file = self._create(new)
        try:
            self._put(file, data)
            new.rename(self._path)
        except OSError:
            os.close(file)
            with suppress(OSError):
                new.unlink()
            raise
        self._close()
        self._file, self._size = file, len(data)

    @staticmethod
    def _create(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @staticmethod
    def _put(file: int, data: bytes) -> None:
        while data:
            data = data[os.write(file, data) :]

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def _give_up(self, error: OSError) -> None:
        self._close()
        where = error.filename or self._path
        text = (
            f"mpickpt: rank {self._header.rank} takes no more notes for mpickpt report: {where}: "
            f"{error.strerror or error}. Checkpoints do not need them.\n"
        )
        with suppress(OSError, ValueError, AttributeError):  # no stderr, or a closed one
            sys.stderr.write(text)
            sys.stderr.flush()
