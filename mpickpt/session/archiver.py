"""Archives made beside the program, on rank 0: when one is due, which slot it pins, and what becomes of it.

A thread clones or copies the slot of a complete epoch. Until that is done the slot is pinned: all ranks hear of it with
the result of the next epoch, and write to the other slots. Nothing waits for the thread. If it is late, the next
archive is skipped; with two slots there is no other one to write to, so that the late one is given up.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mpickpt.errors import EpochError, MpickptError, StoreError, UsageError, warn
from mpickpt.mpi import Coordinator
from mpickpt.options import Options
from mpickpt.protocol import Epoch
from mpickpt.retry import reason_of
from mpickpt.signals.forks import disinherit_descriptor, inherit_descriptor
from mpickpt.snapshot import Copier, crc32c
from mpickpt.store import (
    Retention,
    SlotInfo,
    Store,
    clones,
    copy_slot,
    free_bytes,
    is_unchanged,
    os_errors,
    reserve,
    spill_paths,
)
from mpickpt.units import human_bytes, human_seconds

EARLY = 0.9  # an epoch that comes after this share of the time between two archives is archived: the next may come late
END_SECONDS = 10.0  # that the end of a session waits for a call to the storage
FEW_SLOTS = 3  # fewer than these, and none is left while one is pinned


@dataclass
class _Work:
    """An archive in progress."""

    epoch: Epoch
    slot: Path
    began: float
    copier: Copier = field(default_factory=Copier)
    problem: str = ""  # why it was not made; set before the thread ends, as is the next one
    was_stopped: bool = False
    is_late: bool = False  # which was told


class Archiver:
    """Archives epochs beside the program, and deletes old archives.

    Parameters
    ----------
    store : Store
        The directory of the archives, which exists.
    options : Options
        How often, and how many stay.
    """

    def __init__(self, store: Store, options: Options) -> None:
        assert options.archive_every is not None
        self._store = store
        self._every = options.archive_every
        self._keep = options.keep
        self._retention = Retention(store, options.keep_archives)
        self._work: _Work | None = None
        self._thread: threading.Thread | None = None
        newest = self._retention.newest_time()
        self._last = None if newest is None else time.monotonic() - max(0.0, time.time() - newest)

    def complete(self, epoch: Epoch, slot: Path) -> None:
        """Take in that an epoch is complete on all ranks in the file `slot`: it is archived if an archive is due."""
        self._tell()
        now = time.monotonic()
        if self._last is not None and now - self._last < EARLY * self._every:
            return
        if self._work is not None:
            self._tell_late(self._work, epoch, now)
            return
        self._last = now
        self._work = work = _Work(epoch, slot, now)
        self._thread = threading.Thread(target=self._run, args=(work,), name="archiver", daemon=True)
        self._thread.start()

    def pinned(self) -> int | None:
        """Return the slot that no epoch may overwrite; an archive that needs the only other one is given up."""
        self._tell()
        if self._work is None:
            return None
        if self._keep >= FEW_SLOTS:
            return self._work.epoch.slot
        self._work.copier.stop()
        return None

    def close(self) -> None:
        """Give up the archive in progress, and release the directory."""
        self._tell()
        if self._work is not None and self._thread is not None:
            self._work.copier.stop()
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                self._store.keep_lock()
            if self._thread.is_alive() or self._work.was_stopped:
                text = f"the archive of epoch {self._work.epoch.number} was not finished before the session ended"
                print(f"mpickpt: {self._store.directory}: {text}", file=sys.stderr, flush=True)
            else:
                self._tell()
        _release(self._store)

    # -- what is told --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Say why the archive whose thread has ended was not made, if it was not."""
        work = self._work
        if work is None or self._thread is None or self._thread.is_alive():
            return
        self._thread.join()
        self._work = self._thread = None
        if work.was_stopped:
            self._skipped(
                work.epoch, f"its copy was late, and with keep={self._keep} its slot is needed for the next epoch"
            )
        elif work.problem:
            self._skipped(work.epoch, work.problem)

    def _tell_late(self, work: _Work, epoch: Epoch, now: float) -> None:
        if not work.is_late:
            work.is_late = True
            self._skipped(
                epoch,
                f"epoch {work.epoch.number} is still being copied to {self._store.directory}, since "
                f"{human_seconds(now - work.began)} ({human_bytes(work.copier.copied())} so far); archive less often",
            )

    def _skipped(self, epoch: Epoch, why: str) -> None:
        warn(f"Epoch {epoch.number} (step {epoch.step}) is not archived: {why.rstrip('.')}. The program goes on.")

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self, work: _Work) -> None:
        try:
            self._make(work)
        except OSError as error:
            work.problem = f"{self._store.directory}: {reason_of(error)}"
        except MpickptError as error:
            work.was_stopped = isinstance(error, StoreError) and error.errno == errno.ECANCELED
            work.problem = str(error)

    def _make(self, work: _Work) -> None:
        number = work.epoch.number
        slot = self._store.inspect(work.slot)
        if slot.epoch != number:
            raise EpochError(f"{work.slot}: {slot.why_not or f'epoch {slot.epoch} is there'}")
        target = self._retention.expect(number)
        if target.exists():
            self._check_same(slot, self._store.inspect(target))
        else:
            self._check_room(work.slot)
            copy_slot(work.slot, target, lambda: _check_unchanged(slot), partial(_copy, work.copier))
        self._retention.prune()

    def _check_same(self, slot: SlotInfo, there: SlotInfo) -> None:
        """Accept an archive of this epoch that somebody else has made; refuse to replace any other file."""
        if not there.complete or there.records["run"][0] != slot.records["run"][0]:
            raise UsageError(f"{there.path} exists, and is of another run: give each program an archive_to of its own")

    def _check_room(self, slot: Path) -> None:
        """Refuse to fill the disk: a clone takes no room at once, but all of it while the slot is overwritten."""
        need = sum(path.stat().st_size for path in (slot, *spill_paths(slot)))
        free = free_bytes(self._store.directory)
        if free < need:
            raise EpochError(
                f"{self._store.directory} has room for {human_bytes(free)}, and {human_bytes(need)} are needed. Make "
                f"room, or keep fewer archives."
            )


def _copy(copier: Copier, source: Path, target: Path) -> None:
    with target.open("r+b", buffering=0) as file:
        reserve(file.fileno(), source.stat().st_size)
    copier.copy(source, target)


def _check_unchanged(slot: SlotInfo) -> None:
    if not is_unchanged(slot, crc32c):
        raise EpochError(f"{slot.path} was overwritten while it was copied")


def open_archiver(coordinator: Coordinator, options: Options, undo: ExitStack) -> Archiver | None:
    """Make the archiver of rank 0 if archives are wanted; `undo` closes it after an error; collective.

    Raises
    ------
    UsageError
        On all ranks, if a slot could not be pinned for as long as it is copied.
    StoreError
        If the directory of the archives cannot be used; `InUseError` if another program does.
    """
    if options.archive_every is None:
        return None
    made: list[Archiver] = []
    coordinator.on_root(lambda: made.append(_prepare(options)), "rank 0 to prepare the directory of the archives")
    for archiver in made:
        undo.callback(archiver.close)
    return made[0] if made else None


def _prepare(options: Options) -> Archiver:
    directory = options.archive_to or options.directory
    store = Store(directory, crc32c)
    if not _is_same(directory, options.directory):
        disinherit_descriptor(store.lock(f"archives of {options.directory.absolute()}"))
    try:
        with os_errors(f"Epochs cannot be archived in {directory}", directory):
            if options.keep < FEW_SLOTS and not clones(options.directory, directory):
                raise UsageError(
                    f"archive_every needs at least {FEW_SLOTS} slots here, and keep is {options.keep}: files of "
                    f"{options.directory} cannot be cloned to {directory}. A slot that is copied must not be "
                    f"overwritten meanwhile. Give keep={FEW_SLOTS} (--keep {FEW_SLOTS}), which is the default."
                )
            return Archiver(store, options)
    except BaseException:
        _release(store)
        raise


def _release(store: Store) -> None:
    if store.lock_descriptor is not None:
        inherit_descriptor(store.lock_descriptor)
    store.unlock()


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)
