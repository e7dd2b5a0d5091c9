"""A simulated rank set: the protocol of all ranks, their program, a network, and disks; nothing else is simulated.

The network moves one hop at a time over binomial trees, as the collectives of MPI libraries do. The rank in the middle
of a hop takes it only when it is in MPI: when it polls at a safe point, or while it waits. So answers come late, as
with an MPI library without a thread of its own.

A violation raises AssertionError where it happens: two ranks cut at different steps for one epoch, an overwritten slot
that held the only complete epoch, or a wait without an end.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mpickpt import protocol as p

FOREVER = 1e8  # simulated seconds in which every run has to end
MANY = 64  # with more ranks than that, the state of all disks is not checked at each write


@dataclass
class Job:
    """What the ranks do, and what happens to them.

    Attributes
    ----------
    size, steps : int
        Number of ranks, and of steps.
    seconds : callable
        Duration of a step, of (rank, step).
    needs : callable
        What a step has to receive before it ends, of (rank, step): pairs of another rank and its step.
    in_mpi : bool
        Whether the network moves during a step, too: the program calls MPI all the time.
    tracked : bool
        Whether a rank that waits for a message handles events, as in a call of ``ckpt.comm``.
    hop : callable
        Duration of a hop, of the rank.
    longest_drain : float
        A drain takes between a third of it and all of it.
    asks : list of (seconds, rank, stop)
        Requests to cut.
    fails : callable
        Whether a drain fails, of (rank, epoch).
    hangs : callable
        For how many seconds the storage hangs in a drain, of (rank, epoch); 0 if it does not.
    stall_limit : float
        Seconds after which the rank gives the epoch up.
    dies : tuple (seconds, rank), optional
        This rank does nothing from then on.
    every, keep : int
        Options of the session.
    poll, idle_poll : float
        Seconds between polls at safe points, and in idle periods.
    archives : callable
        For how many epochs rank 0 archives one that is complete, of its number; 0: not at all. With two slots it does
        not at all either.
    saves : callable
        How the program saves in a step, of the step: "" not at all, "head" before anything of the step is changed,
        "end" when it is done. The step after the last one is the end of the loop.
    """

    size: int
    steps: int
    seconds: Callable[[int, int], float]
    needs: Callable[[int, int], list[tuple[int, int]]] = lambda rank, step: []
    in_mpi: bool = False
    tracked: bool = False
    hop: Callable[[int], float] = lambda rank: 1e-5
    longest_drain: float = 1.0
    asks: list[tuple[float, int, bool]] = field(default_factory=list)
    fails: Callable[[int, int], bool] = lambda rank, epoch: False
    hangs: Callable[[int, int], float] = lambda rank, epoch: 0.0
    stall_limit: float = 20.0
    dies: tuple[float, int] | None = None
    every: int | None = None
    keep: int = 2
    poll: float = 0.0
    idle_poll: float = 0.0
    archives: Callable[[int], int] = lambda epoch: 0
    saves: Callable[[int], str] = lambda step: ""


@dataclass(frozen=True)
class Wait:
    """What a rank's program waits for: an instant, or a condition; and whether it waits in MPI."""

    until: float = math.inf
    condition: Callable[[], bool] = lambda: False
    in_mpi: bool = True


Program = Generator[Wait, None, None]


class Rank:
    """One rank.

    Attributes
    ----------
    protocol : Protocol
        What is tested.
    step : int
        The step it is in; beyond all steps when it has ended.
    next_step, next_poll : int, float
        It polls at the first safe point at or beyond that step, or after that time.
    pause : tuple of float and int, or None
        Seconds and steps between two polls while these find nothing; None after an event.
    stopped, stop_complete : int or None, bool or None
        The step at which it was told to stop, and whether the last epoch was complete.
    blocked, gave_up : float, int
        Seconds that it was blocked, and how often it gave up.
    asked_at, cut_at : list of float
        When it was asked for a cut, and when it was cut.
    saved : list of (int, int, bool)
        What it was told of its saves: the step that was asked for, the epoch, whether that is complete.
    sent : Counter
        Messages that it sent, by kind.
    """

    def __init__(self, job: Job, rank: int) -> None:
        self.rank = rank
        poll, idle_poll = job.poll, job.idle_poll
        self.protocol = p.Protocol(rank, job.size, keep=job.keep, every=job.every, poll=poll, idle_poll=idle_poll)
        self.next_step, self.next_poll = 0, 0.0
        self.pause: tuple[float, int] | None = None
        self.protocol.hold = not job.tracked
        self.step = -1
        self.stopped: int | None = None
        self.stop_complete: bool | None = None
        self.dead = False
        self.hung = False
        self.blocked = 0.0
        self.gave_up = 0
        self.asked_at: list[float] = []
        self.cut_at: list[float] = []
        self.saved: list[tuple[int, int, bool]] = []
        self.decided: tuple[int, bool] | None = None
        self.sent: Counter[str] = Counter()
        self.events: deque[p.Event] = deque()  # of this rank alone: requests, ends of drains, what comes up the tree
        self.mail: deque[tuple[str, int, Any]] = deque()
        self.shares: dict[tuple[str, int], list[Any]] = {}  # of reductions that wait for a child or for this rank
        self.posted: Counter[str] = Counter()
        self.arrived: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.waiting: Wait | None = None
        self.waits = 0


class Simulation:
    """Runs a job to its end.

    Parameters
    ----------
    job : Job
        What is run.

    Attributes
    ----------
    cuts : dict
        For each epoch, the step of its cut on each rank that was cut for it.
    skipped : dict
        For each epoch that was skipped, the ranks that did so.
    archived : tuple of int, or None
        The slot that rank 0 is archiving, and the epoch with whose drain that ends.
    archives : int
        How many epochs rank 0 began to archive.
    complete : list of int
        Epochs that became complete, in their order.
    aborted : float or None
        For how long a rank that was told to stop had heard nothing when it ended all ranks; None if none did so.
    longest_hop : float
        The longest that a hop took.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.now = 0.0
        self.ranks = [Rank(job, rank) for rank in range(job.size)]
        self.cuts: dict[int, dict[int, int]] = {}
        self.skipped: dict[int, set[int]] = defaultdict(set)
        self.complete: list[int] = []
        self.archived: tuple[int, int] | None = None
        self.archives = 0
        self.aborted: float | None = None
        self.longest_hop = 0.0
        self._programs = [self._program(rank) for rank in self.ranks]
        self._listeners: dict[int, list[Rank]] = defaultdict(list)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._announced = 0
        self._content: dict[tuple[str, int], Any] = {}
        self._disks: dict[int, list[tuple[int, bool]]] = {}  # for each slot the ranks' epochs, and whether complete
        self._running = job.size
        self._random = random.Random(job.size)

    # -- time --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until all ranks have ended, or none can continue because one has died."""
        for seconds, who, stop in self.job.asks:
            self._at(seconds, partial(self._ask, self.ranks[who], stop))
        if self.job.dies:
            seconds, who = self.job.dies
            self._at(seconds, partial(setattr, self.ranks[who], "dead", True))
        for rank in self.ranks:
            self._resume(rank)
        while self._agenda and self._running > 0:
            self.now, _, act = heapq.heappop(self._agenda)
            assert self.now < FOREVER, self._stuck()
            act()
        assert self._running <= 0 or self.job.dies, self._stuck()

    def _stuck(self) -> str:
        where = [f"rank {r.rank} in step {r.step}: {r.waiting}" for r in self.ranks if r.waiting]
        return f"ranks wait without an end: {where[:6]}"

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._ticket), act))

    def _ask(self, rank: Rank, stop: bool) -> None:
        rank.asked_at.append(self.now)
        self._tell(rank, p.Requested(stop))

    def _tell(self, rank: Rank, event: p.Event) -> None:
        """Queue an event of a rank, which notices it when it polls."""
        rank.events.append(event)
        self._resume(rank)

    def _resume(self, rank: Rank) -> None:
        """Let a rank continue up to its next wait, if what it waits for is there."""
        if rank.dead or (rank.waiting is not None and not self._is_over(rank.waiting)):
            return
        rank.waits += 1
        for wait in self._programs[rank.rank]:
            rank.waiting = wait
            if wait.in_mpi:
                self._move(rank)
            if not self._is_over(wait):
                if wait.until < math.inf:
                    self._at(wait.until, partial(self._wake, rank, rank.waits))
                return
        if rank.waiting is not None:
            rank.waiting = None
            self._running -= 1

    def _wake(self, rank: Rank, waits: int) -> None:
        """Resume a rank whose time is over, if it is still in that wait."""
        if rank.waits == waits:
            self._resume(rank)

    def _is_over(self, wait: Wait) -> bool:
        return self.now >= wait.until or wait.condition()

    # -- the network -------------------------------------------------------------------------------------------------

    def _send(self, source: Rank, target: int, kind: str, number: int, content: Any = None) -> None:
        source.sent[kind] += 1
        seconds = self.job.hop(target)
        self.longest_hop = max(seconds, self.longest_hop)
        self._at(self.now + seconds, lambda: self._arrive(self.ranks[target], (kind, number, content)))

    def _arrive(self, rank: Rank, message: tuple[str, int, Any]) -> None:
        rank.mail.append(message)
        if rank.waiting is not None and rank.waiting.in_mpi and not rank.dead:
            self._move(rank)
            self._resume(rank)

    def _move(self, rank: Rank) -> None:
        """Take all hops that wait for this rank."""
        while rank.mail:
            kind, number, content = rank.mail.popleft()
            if kind == "up":
                rank.events.append(content)
            elif kind.startswith("share of "):
                self._share(rank, kind.removeprefix("share of "), number, content)
            else:
                self._spread(rank, kind, number)

    def _spread(self, rank: Rank, kind: str, number: int) -> None:
        """Note what comes down the tree, and pass it on."""
        rank.arrived[kind] = max(number, rank.arrived[kind])
        for child in p.children(rank.rank, self.job.size):
            self._send(rank, child, kind, number)

    def _announce(self, content: object) -> None:
        self._announced += 1
        self._content["marker", self._announced] = content
        self._spread(self.ranks[0], "marker", self._announced)

    def _post(self, rank: Rank, kind: str, share: tuple[int, ...]) -> None:
        """Post a rank's share of a maximum."""
        rank.posted[kind] += 1
        self._share(rank, kind, rank.posted[kind], share)

    def _share(self, rank: Rank, kind: str, number: int, share: tuple[int, ...]) -> None:
        shares = rank.shares.setdefault((kind, number), [])
        shares.append(share)
        if len(shares) <= len(p.children(rank.rank, self.job.size)):
            return
        maximum = tuple(map(max, zip(*rank.shares.pop((kind, number)), strict=True)))
        if rank.rank:
            self._send(rank, p.parent(rank.rank), f"share of {kind}", number, maximum)
        else:
            self._content[kind, number] = maximum
            self._spread(rank, kind, number)

    # -- one rank ----------------------------------------------------------------------------------------------------

    def _program(self, rank: Rank) -> Program:
        machine = rank.protocol
        for step in range(self.job.steps):
            self._enter(rank, step)
            assert machine.next_step >= step, "a step was passed over"
            if machine.next_step == step or step >= rank.next_step or self.now >= rank.next_poll:
                yield from self._safe_point(rank, step)
            if self.job.saves(step) == "head":
                yield from self._save(rank, step)
            if rank.stopped is not None:
                break
            yield Wait(until=self.now + self.job.seconds(rank.rank, step), in_mpi=self.job.in_mpi)
            for other, theirs in self.job.needs(rank.rank, step):
                yield from self._receive(rank, self.ranks[other], theirs)
            if self.job.saves(step) == "end" and rank.stopped is None:
                yield from self._save(rank, step + 1)
            if rank.stopped is not None:
                break
        if self.job.saves(self.job.steps) and rank.stopped is None:
            yield from self._save(rank, self.job.steps)
        self._perform(rank, machine.handle(p.Closing()))
        yield from self._wait(rank, closing=True)
        self._enter(rank, 2**60)

    def _safe_point(self, rank: Rank, step: int) -> Program:
        """Poll, as the driver does."""
        machine, pause, now, blocked = rank.protocol, rank.pause, self.now, rank.blocked
        self._move(rank)
        is_idle = step < machine.next_step and self._next(rank, take=False) is None
        if is_idle and pause is not None and now >= rank.next_poll - pause[0] / 2:
            machine.polled(step, now)
            self._look_again(rank, step, *pause)
            return
        self._perform(rank, machine.handle(p.Reached(step, now)))
        self._look(rank)
        yield from self._wait(rank)
        machine.handle(p.Resumed(blocked=rank.blocked - blocked))
        seconds = machine.seconds_to_next_poll(quiet=True)
        steps = machine.steps_to_next_poll(seconds)
        rank.pause = (seconds, steps) if seconds > 0.0 else None
        self._look_again(rank, step, seconds, steps)

    def _save(self, rank: Rank, step: int) -> Program:
        """Wait for a checkpoint, as the driver does."""
        if rank.stopped is not None:
            return
        machine, saves, blocked = rank.protocol, len(rank.saved), rank.blocked
        self._perform(rank, machine.handle(p.Reached(step, self.now, save=True)))
        yield from self._wait(rank)
        machine.handle(p.Resumed(blocked=rank.blocked - blocked))
        assert len(rank.saved) == saves + 1 or rank.stopped is not None, "a save ended without an answer"
        rank.pause = None
        self._look_again(rank, step, 0.0, 1)

    def _look_again(self, rank: Rank, step: int, seconds: float, steps: int) -> None:
        rank.next_step, rank.next_poll = step + steps, self.now + seconds

    def _enter(self, rank: Rank, step: int) -> None:
        rank.step = step
        for other in self._listeners[rank.rank]:
            self._at(self.now, partial(self._resume, other))

    def _receive(self, rank: Rank, other: Rank, theirs: int) -> Program:
        self._listeners[other.rank].append(rank)
        while other.step < theirs and rank.stopped is None:
            if self.job.tracked:
                yield Wait(condition=lambda: other.step >= theirs or self._next(rank, take=False) is not None)
                rank.protocol.handle(p.Resumed(rank.step))
                self._look(rank)
            else:
                yield Wait(condition=lambda: other.step >= theirs)
        self._listeners[other.rank].remove(rank)

    def _wait(self, rank: Rank, *, closing: bool = False) -> Program:
        """Block the rank, handling events, as long as the protocol requires it."""
        machine, since = rank.protocol, self.now
        began = self.now
        while (stand := machine.blocked) is not p.Blocked.NO and (closing or rank.stopped is None):
            drains = machine.epoch is not None and not machine.posted  # which is waited for in any case
            until = since + machine.patience if stand is p.Blocked.LIMITED and not drains else math.inf
            if closing and rank.stopped is not None:
                until = self.now + p.STOP_PATIENCES * machine.patience
            last = self.now
            yield Wait(until, lambda: self._next(rank, take=False) is not None)
            event = self._next(rank)
            if event is None and closing:  # as the driver does: what counts is on disk
                self.aborted = self.now - last
                self._running = 0
                return
            if event is None:
                event, since = p.GaveUp(), self.now
                rank.gave_up += 1
            elif isinstance(event, p.Drained):
                since = self.now
            self._perform(rank, machine.handle(event))
        rank.blocked += self.now - began

    def _look(self, rank: Rank) -> None:
        self._move(rank)
        while (event := self._next(rank)) is not None:
            self._perform(rank, rank.protocol.handle(event))

    def _next(self, rank: Rank, *, take: bool = True) -> p.Event | None:
        """Return the next event, in an order that the protocol allows."""
        machine = rank.protocol
        for kind in ("answer", "commit", "marker"):
            if rank.arrived[kind] == rank.taken[kind]:
                continue
            if kind == "marker" and machine.awaits_answer:
                continue
            if take:
                rank.taken[kind] += 1
            content = self._content[kind, rank.taken[kind] + (not take)]
            if kind == "answer":
                return p.Agreed(content[0], None, self.now)
            if kind == "commit":
                if take and machine.epoch is not None:
                    rank.decided = machine.epoch.number, not content[0]
                    self._archive(rank, machine.epoch, complete=not content[0])
                pinned = content[3] if content[3] >= 0 else None
                return p.Decided(not content[0], bool(content[1]), hung=bool(content[2]), pinned=pinned)
            return p.Ended(None) if content == "end" else p.Marked(bool(content), self.now)
        if rank.events and rank.step >= 0:
            return rank.events.popleft() if take else rank.events[0]
        return None

    def _perform(self, rank: Rank, instructions: list[p.Instruction]) -> None:
        """Carry out the instructions of the protocol."""
        machine, rank.pause = rank.protocol, None
        todo = deque(instructions)
        while todo:
            happened: p.Event | None = None
            match todo.popleft():
                case p.Forward(rounds, stop):
                    self._send(rank, p.parent(rank.rank), "up", 0, p.RequestedBelow(rounds, stop))
                case p.SayBelowClosed():
                    self._send(rank, p.parent(rank.rank), "up", 0, p.BelowClosed())
                case p.Announce(stop):
                    self._announce(stop)
                    rank.taken["marker"] += 1
                    happened = p.Marked(stop, self.now)
                case p.AnnounceEnd():
                    self._announce("end")
                case p.Propose(step):
                    self._post(rank, "answer", (step,))
                case p.Cut(epoch):
                    self._cut(rank, epoch.number, epoch.step, epoch.slot)
                case p.Miss():
                    happened = p.Drained(False)
                case p.Skip(epoch):
                    number = epoch.number
                    assert number not in self.cuts, f"epoch {number}: skipped by rank {rank.rank}, and cut by others"
                    self.skipped[number].add(rank.rank)
                    happened = p.Drained(False, hung=rank.hung)
                case p.Post(epoch, complete, missed, hung):
                    self._post(rank, "commit", (not complete, missed, hung, self._pinned(rank, epoch.number)))
                case p.EndSave():
                    assert rank.decided is not None
                    rank.saved.append((machine._step, *rank.decided))
                case p.Stop(complete):
                    rank.stopped, rank.stop_complete = rank.step, complete
                case p.Boost():
                    pass
                case other:
                    raise AssertionError(f"unforeseen: {other}")
            if happened is not None:
                todo.extendleft(reversed(machine.handle(happened)))

    # -- disks -------------------------------------------------------------------------------------------------------

    def _cut(self, rank: Rank, number: int, step: int, slot: int) -> None:
        assert not rank.hung, f"epoch {number}: rank {rank.rank} is cut while its storage hangs"
        assert number not in self.skipped, f"epoch {number}: cut by rank {rank.rank}, and skipped by others"
        cuts = self.cuts.setdefault(number, {})
        assert rank.rank not in cuts, f"epoch {number}: rank {rank.rank} is cut twice"
        assert all(other == step for other in cuts.values()), f"epoch {number}: cut at {step}, and at {cuts}"
        cuts[rank.rank] = step
        rank.cut_at.append(self.now)
        assert self.archived is None or self.archived[0] != slot, f"epoch {number}: cut into slot {slot}, in an archive"
        self._write(rank, slot, number, complete=False)
        seconds = self.job.longest_drain * (1 + 2 * self._random.random()) / 3
        hang, limit = self.job.hangs(rank.rank, number), self.job.stall_limit
        if hang > limit:
            rank.hung = True
            given_up = p.Drained(False, limit, hung=True)
            self._at(self.now + limit, lambda: None if rank.dead else self._tell(rank, given_up))
            self._at(self.now + hang, partial(setattr, rank, "hung", False))
            return
        seconds += hang
        self._at(self.now + seconds, lambda: None if rank.dead else self._end_drain(rank, slot, number, seconds))

    def _end_drain(self, rank: Rank, slot: int, number: int, seconds: float) -> None:
        complete = not self.job.fails(rank.rank, number)
        self._write(rank, slot, number, complete=complete)
        self._tell(rank, p.Drained(complete, seconds))

    def _write(self, rank: Rank, slot: int, number: int, *, complete: bool) -> None:
        disk = self._disks.setdefault(slot, [(0, False)] * self.job.size)
        before = self.complete_on_disk() if self.job.size <= MANY else []
        disk[rank.rank] = number, complete
        if complete and all(record == (number, True) for record in disk):
            self.complete.append(number)
        if before:
            assert self.complete_on_disk(), f"epoch {number} overwrote {before}, and nothing is complete now"

    def _archive(self, rank: Rank, epoch: p.Epoch, *, complete: bool) -> None:
        """Begin to archive an epoch, on rank 0, if it is complete and no other is being archived."""
        lasts = self.job.archives(epoch.number)
        if rank.rank == 0 and complete and lasts and self.archived is None and self.job.keep > 2:
            self.archived = epoch.slot, epoch.number + lasts
            self.archives += 1

    def _pinned(self, rank: Rank, number: int) -> int:
        """Return the slot that rank 0 is archiving when it is drained for an epoch; -1 for none."""
        if rank.rank or self.archived is None:
            return -1
        if number >= self.archived[1]:
            self.archived = None
            return -1
        return self.archived[0]

    @property
    def is_ended_too_early(self) -> bool:
        """Whether a rank ended all ranks although each of them, being in MPI, came to its end and told it in time.

        What they tell goes down the tree, up, and down again: the last epoch is complete, they are closing, all are.
        """
        hops = 3 * (self.job.size - 1).bit_length()
        return self.aborted is not None and self.aborted > hops * self.longest_hop

    def complete_on_disk(self) -> list[int]:
        """List the epochs that could be restored if all ranks died now."""
        complete = [disk[0] for disk in self._disks.values() if disk[0][1] and disk.count(disk[0]) == len(disk)]
        return [number for number, _ in complete]
