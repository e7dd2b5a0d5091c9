"""What the protocol can tell a rank to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Epoch:
    """An epoch that is not decided.

    Attributes
    ----------
    number, step, slot : int
        Its number, the step of the safe point where this rank was cut, and its slot.
    stop : bool
        The program ends when it is complete.
    agreed : bool
        It comes from a round, not from the number of the step.
    missed : bool
        This rank came past it.
    posted : bool
        The others were told.
    hung : bool
        The storage of this rank hangs.
    """

    number: int
    step: int
    slot: int
    stop: bool = False
    agreed: bool = False
    missed: bool = False
    posted: bool = False
    hung: bool = False


@dataclass(slots=True)
class Forward:
    """Send `RequestedBelow` to the parent."""

    rounds: int
    stop: bool


@dataclass(slots=True)
class Announce:
    """Send the marker to all, from rank 0."""

    stop: bool


@dataclass(slots=True)
class Propose:
    """Post this rank's share of the maximum, and listen for the next marker."""

    step: int


@dataclass(slots=True)
class Cut:
    """Fix the image of this rank now. The answer is `Drained` at some time, or `Refused` at once."""

    number: int
    step: int
    slot: int


@dataclass(slots=True)
class Miss:
    """Take part in what all ranks do together at a cut, without being cut: ``Drained(False)`` or `Refused` follows."""

    number: int
    step: int
    slot: int


@dataclass(slots=True)
class Skip:
    """Let a cut go by, as all ranks do because the storage of one of them hung: ``Drained(False)`` follows at once.

    It says whether the storage of this rank hangs still.
    """

    number: int
    step: int
    slot: int


@dataclass(slots=True)
class Post:
    """Post this rank's share of the answer about the epoch."""

    epoch: Epoch
    complete: bool


@dataclass(slots=True)
class Boost:
    """Drain at normal priority."""


@dataclass(slots=True)
class EndSave:
    """Tell the program what became of the checkpoint that it waits for: the epoch that was just decided."""


@dataclass(slots=True)
class Stop:
    """End the program: the epoch that it was to make before is `complete`, or could not be made."""

    complete: bool


@dataclass(slots=True)
class Abandon:
    """Rank `left` has left the session by an exception: nothing can become complete any more."""

    left: int


@dataclass(slots=True)
class SayBelowClosed:
    """Send `BelowClosed` to the parent."""


@dataclass(slots=True)
class ForwardDeparture:
    """Send `BelowDeparted` to the parent."""

    rank: int


@dataclass(slots=True)
class AnnounceEnd:
    """Send `Ended` to all in the place of a marker, from rank 0."""

    left: int | None


Instruction = (
    Forward | Announce | Propose | Cut | Miss | Skip | Post | Boost | EndSave | Stop | Abandon | SayBelowClosed
    | ForwardDeparture | AnnounceEnd
)  # fmt: skip
