"""A checkpoint that the program waits for: what is left to do until the epoch of ``ckpt.save()`` is decided.

All ranks call it at the same place of the program, and no rank goes on from there before the epoch is decided on all of
them. So nothing has to be agreed on beforehand, and waiting is safe: every rank comes, and answers while it waits.

1. What was begun before comes first: an answer that decides whether a cut was missed, cuts that were missed, and the
   epoch in progress. A rank that lacks an answer has proposed a step no later than the save. If all ranks did so, the
   cut that is agreed on comes before the save on all ranks; if one did not, it comes after it on all. So the epochs
   have the same numbers everywhere.
2. The cut. One that is due at the same safe point, by its step or by an agreement, is the same cut.
3. Its epoch is decided.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Saving:
    """What a rank knows of the save that its program waits in.

    Attributes
    ----------
    number : int or None
        The epoch that is made for it, once this rank was cut for that.
    """

    number: int | None = None

    @property
    def needs_cut(self) -> bool:
        """Whether this rank is still to be cut for it."""
        return self.number is None
