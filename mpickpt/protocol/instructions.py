"""What the protocol can tell a rank to do."""

from __future__ import annotations

from mpickpt.protocol.epoch import Epoch
from mpickpt.protocol.value import value


@value
class Forward:
    """Send `RequestedBelow` to the parent."""

    rounds: int
    stop: bool


@value
class Announce:
    """Send the marker to all, from rank 0."""

    stop: bool


@value
class Propose:
    """Post this rank's share of the maximum, and listen for the next marker."""

    step: int


@value
class Cut:
    """Fix the image of this rank now. The answer is `Drained` at some time, or `Refused` at once."""

    epoch: Epoch


@value
class Miss:
    """Take part in what all ranks do together at a cut, without being cut: ``Drained(False)`` or `Refused` follows."""

    epoch: Epoch


@value
class Skip:
    """Let a cut go by, as all ranks do because the storage of one of them hung: ``Drained(False)`` follows at once.

    It says whether the storage of this rank hangs still.
    """

    epoch: Epoch


@value
class Post:
    """Post this rank's share of the answer about the epoch.

    Attributes
    ----------
    epoch : Epoch
        Which one.
    complete : bool
        The image of this rank is on disk.
    missed : bool
        This rank came past the cut.
    hung : bool
        The storage of this rank hangs.
    """

    epoch: Epoch
    complete: bool
    missed: bool = False
    hung: bool = False


@value
class Boost:
    """Drain at normal priority."""


@value
class EndSave:
    """Tell the program what became of the checkpoint that it waits for: the epoch that was just decided."""


@value
class Stop:
    """End the program: the epoch that it was to make before is `complete`, or could not be made."""

    complete: bool


@value
class Abandon:
    """Rank `departed` has left the session by an exception: nothing can become complete any more."""

    departed: int


@value
class SayBelowClosed:
    """Send `BelowClosed` to the parent."""


@value
class ForwardDeparture:
    """Send `BelowDeparted` to the parent."""

    rank: int


@value
class AnnounceEnd:
    """Send `Ended` to all in the place of a marker, from rank 0."""

    departed: int | None


Instruction = (
    Forward | Announce | Propose | Cut | Miss | Skip | Post | Boost | EndSave | Stop | Abandon | SayBelowClosed
    | ForwardDeparture | AnnounceEnd
)  # fmt: skip
