"""The life of an epoch on one rank, as a state machine without I/O: events in, instructions out.

A cut that the number of the step does not demand (but a signal, a clock or a command) is agreed on in a *round*:

1. A rank that wants a cut sends a request up a binomial tree of ranks to rank 0, at most once a round.
2. Rank 0 sends a *marker* to all ranks, once the last epoch is decided.
3. Each rank proposes a step a few steps ahead of its own (the *lookahead*). The cut is at the greatest of all
   proposals. A rank goes on computing meanwhile. It is blocked only if it reaches its own proposal before the answer
   comes, which is counted, and makes the next lookahead longer.
4. The rank is cut at its first safe point at or beyond that step.

Other ranks may be waiting for a blocked rank; then no answer can come. So it is blocked for a limited time and goes on.
If the answer tells it that it has *missed* the cut, the epoch fails on all ranks and is tried again.

An epoch goes through these states: *cut*, *drained* (this rank's image is on disk, or the drain failed), *posted* (this
rank has told the others), *decided* (the answer of all ranks is here). Only the last one tells which slot holds the
newest epoch that is complete everywhere. That slot is never overwritten, so the next cut waits for the decision.

A program that calls ``ckpt.save()`` waits for its checkpoint on all ranks (`mpickpt.protocol.saving`).

A rank whose storage hangs gives its epoch up (`Drained` says so), and cannot be cut before the storage answers. So all
ranks *skip* the next cut, which costs nothing, and learn from the answer whether that rank can be cut again.

`Protocol.handle` is the only way in. Its driver carries out the instructions in their order, feeds back what comes of
them, and stays where it is as long as the rank is `blocked`: `mpickpt.session.driver` by MPI, a simulator in the tests.
There is one short cut, `Protocol.polled`, for the many polls that find nothing.
"""

from mpickpt.protocol.epoch import Epoch
from mpickpt.protocol.events import (
    Agreed,
    BelowClosed,
    BelowDeparted,
    Closing,
    Decided,
    Drained,
    Ended,
    Event,
    GaveUp,
    Marked,
    Reached,
    Refused,
    Requested,
    RequestedBelow,
    Resumed,
)
from mpickpt.protocol.instructions import (
    Abandon,
    Announce,
    AnnounceEnd,
    Boost,
    Cut,
    EndSave,
    Forward,
    ForwardDeparture,
    Instruction,
    Miss,
    Post,
    Propose,
    SayBelowClosed,
    Skip,
    Stop,
)
from mpickpt.protocol.lookahead import idle_poll_seconds
from mpickpt.protocol.machine import Protocol
from mpickpt.protocol.state import PATIENCE, STOP_ATTEMPTS, STOP_PATIENCES, Blocked
from mpickpt.protocol.tree import children, parent

__all__ = [
    "Abandon",
    "Agreed",
    "Announce",
    "AnnounceEnd",
    "Requested",
    "Resumed",
    "BelowClosed",
    "BelowDeparted",
    "Closing",
    "Cut",
    "Drained",
    "EndSave",
    "Ended",
    "Epoch",
    "Event",
    "GaveUp",
    "Boost",
    "Instruction",
    "Marked",
    "Miss",
    "PATIENCE",
    "Forward",
    "ForwardDeparture",
    "RequestedBelow",
    "Post",
    "Propose",
    "Protocol",
    "Reached",
    "Refused",
    "STOP_ATTEMPTS",
    "STOP_PATIENCES",
    "SayBelowClosed",
    "Decided",
    "Skip",
    "Blocked",
    "Stop",
    "children",
    "parent",
    "idle_poll_seconds",
]
