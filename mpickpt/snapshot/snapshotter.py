"""Fixing a rank's image, and saving it in the background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpickpt import _native
from mpickpt.layout.arrays import SlotOffsets
from mpickpt.snapshot.plan import CutPlan


class DrainState(IntEnum):
    """What became of the last cut."""

    IDLE = 0  # there was none
    DRAINING = 1
    COMPLETE = 2
    FAILED = 3
    HUNG = 4  # it was given up, and a call to the storage has not returned yet: no cut before that


_STATES = tuple(DrainState)


class Mapping(IntEnum):
    """How memory is mapped: what `native/src/mapping.c` tells of a region."""

    UNKNOWN = 0
    PRIVATE = 1
    SHARED = 2  # others may have it mapped too
    HUGE = 3  # of hugetlbfs
    WINDOW = 4  # of an MPI window that MPI allocated


_MAPPINGS = tuple(Mapping)


class Memory(NamedTuple):
    """What was found out about the memory of a region.

    Attributes
    ----------
    mapping : Mapping
        How it is mapped.
    pinned : bool
        Whether it is copied at each cut and never protected; the pool has to hold all of that.
    path : str
        The file or the segment, for messages; empty if there is none.
    errno : int
        Why it cannot be saved; 0 otherwise.
    absent : int
        Bytes of its pages that take no memory yet.
    """

    mapping: Mapping
    pinned: bool
    path: str
    errno: int
    absent: int


@dataclass
class Progress:
    """The drain of the last cut, as it stands.

    Attributes
    ----------
    epoch : int
        The epoch that is, or was last, drained; 0 before the first cut.
    state : DrainState
        Whether it is under way, complete on this rank, failed, or was given up.
    errno : int
        Why it failed, or was given up (ETIMEDOUT); 0 otherwise.
    blocks, blocks_dirty, blocks_saved, blocks_copied : int
        Blocks of all regions; those that the slot lacked; those of them that are saved; those that the program copied
        because it wrote to them first.
    bytes_written, bytes_waiting, bytes_urgent : int
        Bytes handed to the storage; those of them that were drained while the program waited in a call; and of the
        others those that the urgent threads drained. The rest is the idle threads'.
    blocked_seconds, drain_seconds, stall_seconds, fault_seconds : float
        How long the program was blocked at the cut, how long the drain took (or has taken), for how long writes of the
        program waited for room in the pool, and for how long they were held up by the protection in all, summed over
        its threads.
    faults : int
        Writes that the protection held up. Like `fault_seconds` it counts until the next cut, also when the drain has
        ended: a block's first write is one, saved or not.
    direct : bool
        Whether the storage is written past the page cache.
    channels_pending : bool
        Whether the epoch waits for `Snapshotter.add_channels`; for nothing else, once all blocks are saved.
    torn : int or None
        The region, in the order of `Snapshotter.add`, that others wrote to while this cut copied it, so that it failed.
    untracked : tuple of int or None
        The region, in the order of `Snapshotter.add`, and the byte in it, of a block that was written to without being
        noticed since it was saved; found by looking at some of the unchanged blocks. The next cut saves everything.
    unsynced : int or None
        The first of the plan's `files` that could not be synced, so that the epoch failed.
    """

    epoch: int
    state: DrainState
    errno: int
    blocks: int
    blocks_dirty: int
    blocks_saved: int
    blocks_copied: int
    bytes_written: int
    bytes_waiting: int
    bytes_urgent: int
    blocked_seconds: float
    drain_seconds: float
    stall_seconds: float
    fault_seconds: float
    faults: int
    direct: bool
    channels_pending: bool
    torn: int | None
    untracked: tuple[int, int] | None
    unsynced: int | None


class Snapshotter:
    """Fixes the image of a rank's regions at a cut and saves it in the background.

    Regions are added, then sealed, then cut any number of times. One snapshotter of a process may be sealed at a
    time. No thread may write to regions during `cut`, `unseal` and `close`.

    Parameters
    ----------
    direct : bool
        Write past the page cache (O_DIRECT) where the file system can.
    predict : bool
        Drain first what the program wrote to first in the last interval; otherwise in the order of addresses.
    """

    def __init__(self, *, direct: bool = True, predict: bool = True) -> None:
        self._session = _native.Session(direct, predict)

    @staticmethod
    def allocate(nbytes: int, *, huge: bool = True) -> NDArray[np.uint8]:
        """Return `nbytes` zeroed bytes on pages of their own; they live as long as the array or a view of it.

        Parameters
        ----------
        nbytes : int
            Size in bytes.
        huge : bool
            Advise huge pages, which a cut protects some fifty times faster than small ones.

        Raises
        ------
        OSError
            ENOMEM, if there is no memory.
        """
        memory: NDArray[np.uint8] = _native.allocate(nbytes, huge)
        return memory

    def add(self, data: NDArray[np.uint8], *, owned: bool) -> None:
        """Add a region.

        Parameters
        ----------
        data : numpy.ndarray of uint8, shape (n,)
            A contiguous, writable view of the memory, of any alignment.
        owned : bool
            The memory came from `allocate`, so that nothing else lies on its last page.

        Raises
        ------
        OSError
            EBUSY when sealed.
        """
        self._session.add(data, owned)

    def look_up(self) -> list[Memory]:
        """Find out how the regions that were added since the last call are mapped, and tell of all regions.

        Pages of files that are mapped privately are made the process's own.

        Raises
        ------
        OSError
            If the kernel does not tell of its mappings, or there is no memory. What is wrong with a region is told.
        """
        return [
            Memory(_MAPPINGS[mapping], pinned, path, errno, absent)
            for mapping, pinned, path, errno, absent in self._session.look_up()
        ]

    def ask_before_taking(self, may: Callable[[int], bool] | None) -> None:
        """Have `may` asked before each 32 MiB that are taken for the pool and for views of files.

        Parameters
        ----------
        may : callable or None
            Gets the number of bytes that are taken so far, and says whether more may be.
        """
        self._session.ask_before_taking(may)

    def seal(self, block_bytes: int, pool_bytes: int) -> int:
        """Fix the regions, reserve the pool (rounded up to whole blocks) and start the drain threads.

        Returns
        -------
        int
            The size of the pool: smaller if whom `ask_before_taking` named said so.

        Raises
        ------
        OSError
            EEXIST if regions overlap; ENOMEM if the pool does not fit into memory, EDQUOT if too little of it may be
            taken; ENOBUFS if it does not hold all that is pinned; EBUSY if another snapshotter is sealed; EINVAL for a
            block size that is no power of two of at least 4096.
        """
        return int(self._session.seal(block_bytes, pool_bytes))

    def resume(self, path: Path, offsets: SlotOffsets, epoch: int) -> None:
        """Say before the first cut that the regions were restored from a slot, which need not get all of them again.

        What the program did to them since they were read is found out by their checksums.

        Parameters
        ----------
        path : Path
            The slot file.
        offsets : SlotOffsets
            Where this rank's bytes lie in it, arrays in the order of `add`.
        epoch : int
            The epoch that it holds.

        Raises
        ------
        OSError
            ESTALE if it holds something else; EBUSY after a cut. Nothing is lost then but time: all is written.
        """
        self._session.resume(str(path), offsets.record, list(offsets.checksums), epoch)

    def unseal(self) -> bool:
        """Wait for the drain, make all pages writable, stop the threads and forget the regions.

        An epoch that still waits for its channels fails with ECANCELED.

        Returns
        -------
        bool
            False if the storage hangs: then the threads are abandoned to it. What they use, arrays too, stays until the
            process ends, and nobody else may write to the slot before that.
        """
        return bool(self._session.unseal())

    def set_stall_limit(self, seconds: float, text: str) -> None:
        """Set for how long a write to an array waits for room in the pool while no call to the storage ends.

        Then the epoch is given up. After 30 s such a write says `text`, a line, on stderr.
        """
        self._session.set_stall_limit(min(seconds, 1e9), text)

    def give_up(self) -> bool:
        """Give the epoch up that is being drained, as the storage hangs; False if no drain is under way.

        It fails with ETIMEDOUT, and writes to arrays go on without a copy. The state is HUNG until the calls to the
        storage have returned.
        """
        try:
            self._session.give_up()
        except OSError:
            return False
        return True

    def calls(self) -> tuple[int, int]:
        """Return how many calls to the storage are under way, and how many have ended."""
        under_way, ended = self._session.calls()
        return under_way, ended

    def cut(self, plan: CutPlan) -> None:
        """Fix the image of all regions as it is now; it is saved in the background.

        What goes wrong while it is saved is told by `progress`.

        Raises
        ------
        OSError
            EBUSY if the last drain has not ended, or was given up and hangs; EINVAL if not sealed.
        ValueError
            If the objects do not fit and there is no file for them, or channels follow and there is none for those.
        """
        target, room = plan.target, plan.target.offsets.objects_room
        fits = len(plan.objects) <= room
        if not fits and target.spill is None:
            raise ValueError(f"{len(plan.objects)} bytes of objects do not fit into {room}")
        if target.channels_follow and target.channels_spill is None:
            raise ValueError("channels follow, and it is not known whether they will fit: give channels_spill")
        self._session.cut(plan, not fits)

    def add_slot(self, start: int) -> None:
        """Say that the slot that the last cut waits for exists now, and that its raw data begin at the byte `start`.

        Until then nothing is written, and a write to an array that finds no room in the pool fails the epoch with
        ENOBUFS. Nothing happens if the epoch has failed meanwhile.

        Raises
        ------
        OSError
            EINVAL if the slot of the last cut does not follow, or is here already.
        """
        self._session.add_slot(start)

    def add_channels(self, data: bytes) -> None:
        """Bring the messages in flight that a cut with `channels_follow` waits for, empty if there are none.

        May be called from any thread at any time after the cut. Nothing happens if the epoch has failed meanwhile.

        Raises
        ------
        OSError
            EINVAL if none follow the last cut, or they are here already; ENOMEM if there is no memory for them, and
            then they are still pending.
        """
        self._session.add_channels(data)

    def fail(self, errno: int) -> None:
        """End the epoch that is being drained as failed, for the reason `errno`; what is not saved yet is dropped.

        May be called from any thread. If the epoch is failing already, the first reason is the one that is told.

        Raises
        ------
        OSError
            EINVAL if no epoch is being drained, or if it is being committed just now; or if `errno` is not positive.
        """
        self._session.fail(errno)

    def boost(self, on: bool) -> None:
        """While `on`, a thread of normal priority drains too."""
        self._session.boost(on)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until no drain is under way, at most `timeout` seconds; tell whether it ended.

        It does not end before the channels are here: whoever is to bring them must give a `timeout`.
        """
        return bool(self._session.wait(-1 if timeout is None else int(timeout * 1e9)))

    def saved(self) -> tuple[int, int]:
        """Return how many blocks of the last cut are saved, and of how many; quicker than `progress`."""
        saved, dirty = self._session.saved()
        return saved, dirty

    def progress(self) -> Progress:
        """Return how far the last cut is; may be called at any time."""
        now = self._session.progress()
        now["state"] = _STATES[now["state"]]
        return Progress(**now)

    def close(self) -> bool:
        """Undo everything, as `unseal`; closing twice is fine."""
        return self.unseal()
