"""The life of an epoch on one rank, as a state machine without I/O: events in, instructions out.

A cut that the number of the step does not tell (a signal, a clock, a command) is agreed on in a *round*:

1. Whoever wants it passes the request up a binomial tree of ranks to rank 0, each rank at most once a round.
2. Rank 0 sends a *marker* to all, once the last epoch is decided.
3. Each rank proposes a step a few steps ahead of its own (the *lookahead*); the greatest of all is the step of the
   cut. A rank goes on computing meanwhile. It stops only if it comes to its own proposal before the answer does,
   which is counted, and makes the next lookahead longer.
4. At the first safe point at or beyond that step the rank is cut.

A rank that stands still may be what others wait for: then no answer can come. So it stands for a limited time, goes
on, and if the answer tells it that it has *missed* the cut, the epoch fails on all ranks and is tried again.

An epoch goes through these stations: *cut*, *drained* (this rank's image is on disk, or the drain failed), *posted*
(this rank has told the others), *decided* (the answer of all ranks is here). Only the last tells which slot holds the
newest epoch that is complete everywhere; that one is never overwritten, so the next cut waits for it.

A program that calls ``ckpt.save()`` waits for its checkpoint on all ranks (`mpickpt.protocol.saving`).

A rank whose storage hangs gives its epoch up (`Drained` says so), and cannot be cut before the storage answers. So all
ranks *skip* the next cut, which costs nobody anything, and learn from the answer whether that rank can be cut again.

`Protocol.handle` is the only way in. Whoever drives it carries out the instructions in their order, feeds back what
comes of them, and stays where it is as long as `Protocol.blocked` says so: `mpickpt.session.driver` by MPI, a simulator
in the tests. There is one short cut, `Protocol.polled`, for the many looks that find nothing.
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
from mpickpt.protocol.machine import PATIENCE, STOP_ATTEMPTS, STOP_PATIENCES, Blocked, Protocol
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
