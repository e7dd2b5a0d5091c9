"""Storage that hangs, on this rank: how long no call to it has ended, when that is too long, and what is told of it.

The native core gives up an epoch by itself where a write of the program waits for room in the pool. Here an epoch is
given up where the rank is blocked at a safe point, or closes the session. A hang that blocks nobody is only reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpickpt.errors import warn
from mpickpt.snapshot import DrainState, Snapshotter
from mpickpt.store import slot_path
from mpickpt.waiting import Stopwatch

END_LIMITS = 5  # so many times as long the storage may hang in the last epoch before an end: it is the one that counts
SOON = 2.0  # seconds without an end of a call: then no small file is accessed any more, as that could hang as well


class Hang:
    """What one rank knows of its storage.

    Parameters
    ----------
    snapshotter : Snapshotter
        Makes the calls to the storage.
    limit : float
        Seconds without an end of a call after which an epoch is given up.
    rank : int
        The rank, for what is told.
    directory : Path
        The checkpoint directory.
    """

    def __init__(self, snapshotter: Snapshotter, limit: float, rank: int, directory: Path) -> None:
        self._limit = limit
        self._directory = directory
        self._slot = 0
        self._snapshotter = snapshotter
        self._rank = rank
        self._watch = Stopwatch()
        self._ended = 0
        self._told = False
        self._skipped = 0  # epochs, in this hang

    def begin(self, slot: int) -> None:
        """Begin to watch the drain of an epoch in `slot`."""
        self._slot = slot
        self._watch.restart()
        self._told = False

    @property
    def path(self) -> Path:
        """The slot that is, or was last, written to."""
        return slot_path(self._directory, self._slot)

    def seconds(self) -> float:
        """Return for how many seconds a call has been in progress and none has ended, as last polled; 0 if none is."""
        under_way, ended = self._snapshotter.calls()
        if under_way == 0 or ended != self._ended:
            self._ended = ended
            self._watch.restart()
            return 0.0
        return self._watch.seconds()

    def stalls(self) -> bool:
        """Whether the storage does not answer at present."""
        return self.seconds() > min(SOON, self._limit)

    def give_up(self, *, ending: bool) -> None:
        """Give up the epoch if the storage hangs; a rank that waits for its drain calls this all the time."""
        if self.seconds() > self._limit * (END_LIMITS if ending else 1):
            self._snapshotter.give_up()

    def tell(self) -> None:
        """Warn once of an epoch that the storage delays while it blocks nobody."""
        if self.seconds() > self._limit and not self._told:
            self._told = True
            warn(
                f"Rank {self._rank}: {self.path}: the storage hangs, no write to it has ended for {self._limit:g} s. "
                f"The program goes on, and no other epoch is begun before the storage answers."
            )

    def reason(self) -> str:
        """Return why an epoch was given up."""
        return f"the storage hangs: no write to it has ended for {self._limit:g} s. Epochs are skipped until it answers"

    def skips(self, number: int, step: int) -> bool:
        """Return whether this rank still hangs, so that it could not be cut for epoch `number`."""
        if self._snapshotter.progress().state is DrainState.HUNG:
            self._skipped += 1
            if self._skipped == 1:
                warn(
                    f"Epoch {number} (step {step}) is skipped, as rank {self._rank} could not be cut for it: "
                    f"{self.path}: the storage hangs. The program goes on, and the epochs after this one are skipped, "
                    f"too, until the storage answers."
                )
            return True
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            print(
                f"mpickpt: rank {self._rank}: {self.path}: the storage answers again after {skipped} skipped "
                f"epoch{'s' if skipped > 1 else ''}, and epochs are made again",
                file=sys.stderr,
                flush=True,
            )
        return False

    def session_ended(self) -> None:
        """Report that the session has ended while the storage hung."""
        warn(
            f"Rank {self._rank}: {self.path}: the storage hangs, and the session has ended without it. The checkpoint "
            f"directory stays locked until the process ends."
        )
