"""What can happen to a rank, as far as the protocol is concerned."""

from __future__ import annotations

from mpickpt.protocol.value import value


@value
class Reached:
    """The rank is at the safe point of `step`, at `now` seconds of any steady clock.

    With `save` the program wants a checkpoint there, on all ranks, and waits for it. That may be a second safe point of
    the same step.
    """

    step: int
    now: float
    save: bool = False


@value
class Resumed:
    """The rank goes on from the safe point where it was, or has since passed that of `step` without a poll.

    It was `blocked` there, or inside the step, for so many seconds.
    """

    step: int = -1
    blocked: float = 0.0


@value
class Requested:
    """Somebody on this rank wants a cut: a signal, the program, or on rank 0 the clock or a command."""

    stop: bool = False


@value
class RequestedBelow:
    """A rank further down the tree wants a cut; it had seen `rounds` markers when it was asked."""

    rounds: int
    stop: bool


@value
class Marked:
    """The marker of a round came, at `now` seconds."""

    stop: bool
    now: float


@value
class Agreed:
    """The greatest of all proposals came, at `now` seconds; `departed` is a rank that left the session, or None."""

    step: int
    departed: int | None
    now: float


@value
class GaveUp:
    """What the rank waits for did not come within the time for which it may be blocked."""


@value
class Drained:
    """The drain of this rank has ended, `seconds` after its cut; or was given up, as its storage is `hung`."""

    complete: bool
    seconds: float = 0.0
    hung: bool = False


@value
class Refused:
    """The storage refuses the slot of the epoch, on all ranks: nothing was cut."""


@value
class Decided:
    """What all ranks together know of the epoch.

    Attributes
    ----------
    complete : bool
        It is complete on every rank.
    missed : bool
        A rank came past its step.
    departed : int or None
        A rank that left the session by an exception.
    hung : bool
        The storage of a rank hangs: it cannot be cut before that has an end.
    pinned : int or None
        The slot that rank 0 is archiving: the next epoch must not go there.
    """

    complete: bool
    missed: bool
    departed: int | None = None
    hung: bool = False
    pinned: int | None = None


@value
class Closing:
    """The program ends its session on this rank."""


@value
class BelowClosed:
    """A child in the tree, and all below it, are closing."""


@value
class Ended:
    """Rank 0 says that there will be no more markers; `departed` is a rank that left the session, or None."""

    departed: int | None


@value
class BelowDeparted:
    """A rank further down the tree has left the session by an exception."""

    rank: int


Event = (
    Reached | Resumed | Requested | RequestedBelow | Marked | Agreed | GaveUp | Drained | Refused | Decided | Closing
    | BelowClosed | Ended | BelowDeparted
)  # fmt: skip
