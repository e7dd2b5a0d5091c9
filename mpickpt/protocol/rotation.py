"""Which slot the next epoch goes to, and which number it has: the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping

from mpickpt.protocol.epoch import Epoch
from mpickpt.protocol.policy import choose_slot


class Rotation:
    """The slots, and the epochs in them, as all ranks know them.

    Parameters
    ----------
    keep : int
        Number of slots.
    slots : mapping of int to int or None
        The slots that exist: index, and the epoch in it that may be of use, or None.
    protected : int or None
        The slot to go back to if all fails now: it is never the next one.
    next_epoch : int
        Number of the next epoch.

    Attributes
    ----------
    number : int
        The number of the last epoch that was begun.
    """

    def __init__(self, keep: int, slots: Mapping[int, int | None], protected: int | None, next_epoch: int) -> None:
        self.number = next_epoch - 1
        self._keep = keep
        self._slots = dict(slots)
        self._protected = protected
        self._pinned: int | None = None

    def begin(self, step: int, *, writes: bool) -> Epoch:
        """Begin the next epoch, for which this rank is at the safe point of `step`; its slot is written to, or not."""
        slot = choose_slot(self._keep, self._slots, self._protected, self._pinned)
        self.number += 1
        if writes:
            self._slots[slot] = None
        return Epoch(self.number, step, slot)

    def complete(self, epoch: Epoch) -> None:
        """Take in that `epoch` is complete on all ranks: it is the one to go back to."""
        self._slots[epoch.slot] = epoch.number
        self._protected = epoch.slot

    def pin(self, slot: int | None) -> None:
        """Take in that `slot` is being archived, so that no epoch goes there before the next call; or that none is."""
        self._pinned = slot

    @property
    def newest_complete(self) -> int | None:
        """Number of the epoch to go back to if all fails now, if it is known."""
        return None if self._protected is None else self._slots.get(self._protected)
