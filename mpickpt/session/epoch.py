"""The epoch in progress on this rank: one object, from its cut (or what took its place) to its decision.

Nobody but `mpickpt.session` has it. The protocol and the other ranks get values of it: `mpickpt.protocol.Epoch`, and
the `Share` that this rank posts.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpickpt.mpi import Share
from mpickpt.protocol import Epoch, Post
from mpickpt.session.failures import RAISED
from mpickpt.snapshot import Progress


@dataclass(slots=True)
class InProgress:
    """What one rank knows of an epoch that is not decided.

    Attributes
    ----------
    epoch : Epoch
        Its number, its step and its slot.
    began : float
        When it was cut, of `time.perf_counter`.
    awaits_messages : bool
        It is not complete before the messages in flight are known.
    blocked_seconds : float
        How long the program was blocked at the cut.
    drain_seconds, lost_seconds : float
        What it cost, once it is drained: how long the drain took, and for how long the program was blocked in all.
    awaits_slot : bool
        Its slot is still being created.
    lacks : str
        What it lacks, messages in flight or its slot, so that it fails; empty otherwise.
    errno, reason : int, str
        Why it fails on this rank, if it does: the errno, or 0 where there is none, and the reason in words. It is an
        exception of the program, as long as nobody has noted another reason.
    """

    epoch: Epoch
    began: float
    awaits_messages: bool = False
    awaits_slot: bool = False
    blocked_seconds: float = 0.0
    drain_seconds: float = 0.0
    lost_seconds: float = 0.0
    lacks: str = ""
    errno: int = 0
    reason: str = RAISED

    def fail(self, errno: int, reason: str) -> None:
        """Note why it fails on this rank."""
        self.errno, self.reason = errno, reason

    def drained(self, progress: Progress) -> None:
        """Note what it cost."""
        self.drain_seconds = progress.drain_seconds
        self.lost_seconds = self.blocked_seconds + progress.fault_seconds

    def share(self, post: Post, pinned: int | None) -> Share:
        """Return what this rank says of it to the others, and which slot it is archiving."""
        return Share(
            self.epoch,
            post.complete,
            post.missed,
            post.hung,
            self.drain_seconds,
            self.lost_seconds,
            self.errno,
            pinned,
        )
