"""The account of messages in flight, for simulated ranks under any interleaving, and the replay from it."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sampling import examples

from mpickpt.errors import EpochError
from mpickpt.messages.inflight import Early, InFlight, Late, Suppressed, route
from mpickpt.messages.ledger import REMEMBERED, Calls, Channel, Ledger
from mpickpt.snapshot import crc32c


@dataclass(frozen=True)
class Op:
    """A send to, or a receive from, another rank; messages carry the number that they have on their channel."""

    sends: bool
    other: int
    tag: int
    number: int


def content(source: int, dest: int, tag: int, number: int) -> bytes:
    return f"message {number} from {source} to {dest} with tag {tag}".encode() * (1 + number % 3)


@st.composite
def programs(draw: st.DrawFn) -> list[list[Op]]:
    """Programs that can be run to the end, where all was received: drawn as one global order of what they do."""
    ranks = draw(st.integers(2, 5))
    rank = st.integers(0, ranks - 1)
    moves = st.tuples(st.booleans(), rank, rank, st.integers(0, 1), st.integers(0, 50))
    sent: dict[tuple[int, int, int], int] = defaultdict(int)
    pending: dict[tuple[int, int, int], deque[int]] = defaultdict(deque)
    program: list[list[Op]] = [[] for _ in range(ranks)]

    def receive(key: tuple[int, int, int]) -> None:
        source, dest, tag = key
        program[dest].append(Op(False, source, tag, pending[key].popleft()))
        if not pending[key]:
            del pending[key]

    for sends, source, dest, tag, pick in draw(st.lists(moves, min_size=10, max_size=80)):
        if sends or not pending:
            key = source, dest, tag
            program[source].append(Op(True, dest, tag, sent[key]))
            pending[key].append(sent[key])
            sent[key] += 1
        else:
            receive(sorted(pending)[pick % len(pending)])
    while pending:
        receive(min(pending))
    return program


actions = st.sampled_from(["cut", "settle", "run", "burst", "burst"])
schedules = st.lists(st.tuples(st.integers(0, 4), actions), min_size=10, max_size=150)


class World:
    """Ranks that run their programs, are cut at any time, and keep accounts of it."""

    def __init__(self, program: list[list[Op]], at: list[int], stored: list[bytes] | None = None) -> None:
        self.program = program
        self.size = len(program)
        self.at = list(at)
        self.ledgers = [Ledger(rank, crc32c) for rank in range(self.size)]
        self.network: dict[tuple[int, int, int], deque[bytes]] = defaultdict(deque)
        self.cuts = [0] * self.size
        self.reconciled = [0] * self.size
        self.tell: dict[int, dict[int, list[tuple[int, str, int, int]]]] = defaultdict(lambda: defaultdict(list))
        self.positions: dict[int, list[int]] = defaultdict(lambda: [-1] * self.size)
        self.stored: dict[int, list[bytes | None]] = defaultdict(lambda: [None] * self.size)
        if stored is not None:
            found = [InFlight.from_bytes(data) for data in stored]
            for ledger, own, suppressed in zip(self.ledgers, found, route([f.early for f in found]), strict=True):
                ledger.replay.load(own.late, (*own.suppressed, *suppressed))

    def run(self, rank: int) -> bool:
        """Take one step of the program; False if it is at its end, or waits for a message."""
        if self.at[rank] == len(self.program[rank]):
            return False
        op, ledger = self.program[rank][self.at[rank]], self.ledgers[rank]
        if op.sends:
            data = content(rank, op.other, op.tag, op.number)
            if not ledger.replay.suppress("0", op.other, op.tag, lambda: data):
                self.network[rank, op.other, op.tag].append(data)
                ledger.sent(("0", op.other, op.tag))
        else:
            expected = content(op.other, rank, op.tag, op.number)
            served = ledger.replay.find("0", op.other, op.tag)
            if served is not None:
                ledger.replay.take(served)
                assert served.data == expected
            elif queue := self.network[op.other, rank, op.tag]:
                data = queue.popleft()
                assert data == expected
                ledger.received(("0", op.other, op.tag), data, ledger.stamp())
            else:
                return False
        self.at[rank] += 1
        return True

    def burst(self, rank: int) -> None:
        """Run ahead of the others."""
        for _ in range(5):
            self.run(rank)

    def cut(self, rank: int) -> None:
        """Cut the rank, if it has struck its last balance."""
        if self.reconciled[rank] < self.cuts[rank]:
            return
        self.look(rank)
        self.cuts[rank] += 1
        epoch = self.cuts[rank]
        self.positions[epoch][rank] = self.at[rank]
        for other, counts in self.ledgers[rank].cut().items():
            self.tell[epoch][other] += [(rank, *count) for count in counts]

    def settle(self, rank: int) -> None:
        """Strike the balance, if all have been cut."""
        epoch = self.cuts[rank]
        if self.reconciled[rank] == epoch or min(self.cuts) < epoch:
            return
        for told in self.tell[epoch][rank]:
            self.ledgers[rank].told(*told)
        self.ledgers[rank].settle()
        self.reconciled[rank] = epoch
        self.look(rank)

    def look(self, rank: int) -> None:
        """Store what was in flight, if all of it is here."""
        epoch = self.reconciled[rank]
        if epoch and self.cuts[rank] == epoch and self.stored[epoch][rank] is None:
            ledger = self.ledgers[rank]
            if not ledger.outstanding(lambda channel: None):
                self.stored[epoch][rank] = ledger.in_flight().to_bytes()
                assert not ledger._log, "what is complete is not logged any more"

    def play(self, schedule: list[tuple[int, str]]) -> None:
        for number, action in schedule:
            getattr(self, action)(number % self.size)

    def finish(self) -> None:
        """Bring every rank to the same epoch, and to the end of its program."""
        for rank in range(self.size):
            if self.cuts[rank] < max(self.cuts):
                self.settle(rank)
                self.cut(rank)
        for rank in range(self.size):
            self.settle(rank)
        while any([self.run(rank) for rank in range(self.size)]):
            pass
        assert self.at == [len(p) for p in self.program], "all that was to come has come"
        for rank in range(self.size):
            self.look(rank)
        assert max(self.cuts) in {0, *self.complete()}, "all that was late has come"

    def complete(self) -> list[int]:
        return [epoch for epoch in self.stored if all(data is not None for data in self.stored[epoch])]

    def check_epoch(self, epoch: int) -> str:
        """Compare what was stored with what the programs did up to the cut, and tell which kinds were in flight."""
        done: dict[bool, dict[tuple[int, int, int], int]] = {True: defaultdict(int), False: defaultdict(int)}
        for rank, (program, position) in enumerate(zip(self.program, self.positions[epoch], strict=True)):
            for op in program[:position]:
                done[op.sends][(rank, op.other, op.tag) if op.sends else (op.other, rank, op.tag)] += 1
        late: dict[tuple[int, int, int], list[bytes]] = defaultdict(list)
        early: dict[tuple[int, int, int], list[int | None]] = defaultdict(list)
        found = [InFlight.from_bytes(data or b"") for data in self.stored[epoch]]
        for rank, own in enumerate(found):
            for s in own.suppressed:
                early[rank, s.dest, s.tag] += s.checksums
        for rank, own in enumerate(found):
            for m in own.late:
                late[m.source, rank, m.tag].append(m.data)
            for e in own.early:
                assert e.count == len(e.checksums)
                early[e.source, rank, e.tag] += e.checksums
        for key in done[True].keys() | done[False].keys() | late.keys() | early.keys():
            sent, received = done[True][key], done[False][key]
            assert late[key] == [content(*key, number) for number in range(received, sent)]
            assert early[key] == [crc32c(content(*key, number)) for number in range(sent, received)]
        suppressed = any(own.suppressed for own in found)
        return f"late {any(late.values())}, early {any(own.early for own in found)}, to suppress {suppressed}"


@settings(max_examples=examples(400), deadline=None)
@given(program=programs(), generations=st.lists(schedules, min_size=1, max_size=3), pick=st.integers(0, 5))
def test_every_epoch_holds_what_was_in_flight_and_can_be_replayed(
    program: list[list[Op]], generations: list[list[tuple[int, str]]], pick: int
) -> None:
    world = World(program, [0] * len(program))
    for schedule in [*generations, []]:
        world.play(schedule)
        world.finish()
        epochs = world.complete()
        for epoch in epochs:
            event("in flight: " + world.check_epoch(epoch))
        if not epochs:
            break
        epoch = epochs[pick % len(epochs)]
        world = World(program, world.positions[epoch], [data or b"" for data in world.stored[epoch]])


@settings(max_examples=100, deadline=None)
@given(program=programs(), schedule=schedules)
def test_what_has_come_is_forgotten(program: list[list[Op]], schedule: list[tuple[int, str]]) -> None:
    world = World(program, [0] * len(program))
    world.play(schedule)
    world.finish()
    for _ in range(2):
        for rank in range(world.size):
            world.cut(rank)
        for rank in range(world.size):
            world.settle(rank)
    for ledger in world.ledgers:
        kept = ledger._balance, ledger._sent, ledger._received, ledger._before, ledger._told, ledger._late, ledger._log
        assert not any(kept)
        assert ledger.counts == (0, 0)


CHANNEL: Channel = ("0", 1, 7)


def nothing_posted(channel: Channel) -> int | None:
    return None


def test_counts_and_carry_over_epochs() -> None:
    ledger = Ledger(0, crc32c)
    ledger.received(CHANNEL, b"a", ledger.stamp())
    ledger.cut()
    ledger.told(1, "0", 7, 3)
    ledger.settle()
    assert ledger.counts == (2, 0)
    assert [(o.late, o.here) for o in ledger.outstanding(nothing_posted)] == [(2, 0)]
    ledger.received(CHANNEL, b"b", ledger.stamp())
    assert [(o.late, o.here) for o in ledger.outstanding(nothing_posted)] == [(2, 1)]
    ledger.cut()  # without the last of them
    ledger.settle()  # nothing was sent
    assert ledger.counts == (1, 0)
    ledger.received(CHANNEL, b"c", ledger.stamp())
    ledger.received(CHANNEL, b"d", ledger.stamp())
    ledger.received(CHANNEL, b"e", ledger.stamp())
    assert not ledger.outstanding(nothing_posted)
    assert ledger.in_flight() == InFlight((Late("0", 1, 7, b"c"),))
    ledger.cut()
    ledger.settle()
    assert ledger.counts == (0, 2)
    assert ledger.in_flight() == InFlight(early=(Early("0", 1, 7, 2, (crc32c(b"d"), crc32c(b"e"))),))
    ledger.cut()
    ledger.told(1, "0", 7, 2)
    ledger.settle()
    assert ledger.counts == (0, 0)
    assert ledger.in_flight().to_bytes() == b""


def test_receives_that_are_seen_to_be_complete_out_of_order() -> None:
    ledger = Ledger(0, crc32c)
    ledger.cut()
    first, second = ledger.stamp(), ledger.stamp()
    ledger.told(1, "0", 7, 1)
    ledger.received(CHANNEL, b"second", second)
    ledger.settle()
    assert ledger.outstanding(lambda channel: first), "an older receive is pending"
    ledger.received(CHANNEL, b"first", first)
    assert not ledger.outstanding(nothing_posted)
    assert [late.data for late in ledger.in_flight().late] == [b"first"]


def test_checksums_are_in_the_order_of_the_messages() -> None:
    ledger = Ledger(0, crc32c)
    stamps = [ledger.stamp() for _ in range(3)]
    for number in (2, 0, 1):
        ledger.received(CHANNEL, b"%d" % number, stamps[number])
    ledger.cut()
    ledger.settle()
    assert ledger.in_flight().early[0].checksums == tuple(crc32c(b"%d" % number) for number in range(3))


def test_more_early_messages_than_are_remembered() -> None:
    ledger, total = Ledger(0, crc32c), 5 * REMEMBERED // 2
    for number in range(total):
        ledger.received(CHANNEL, b"%d" % number, ledger.stamp())
    ledger.cut()
    ledger.settle()
    (early,) = ledger.in_flight().early
    assert early.count == total
    assert early.checksums == tuple(crc32c(b"%d" % number) for number in range(total - REMEMBERED, total))
    suppressed = route([[early], []])[1]
    assert suppressed[0].checksums == (None,) * (total - REMEMBERED) + early.checksums


def test_content_that_is_not_known() -> None:
    ledger = Ledger(0, crc32c)
    ledger.cut()
    ledger.received(CHANNEL, None, ledger.stamp())
    ledger.told(1, "0", 7, 1)
    ledger.settle()
    assert ledger.unknown() == [CHANNEL]
    assert ledger.outstanding(nothing_posted)
    ledger.cut()  # where it is not late, it does no harm
    ledger.settle()
    ledger.received(CHANNEL, None, ledger.stamp())
    ledger.cut()
    ledger.settle()
    assert ledger.unknown() == []
    assert ledger.in_flight().early == (Early("0", 1, 7, 1, (None,)),)


def test_a_message_that_is_not_the_one_that_arrived() -> None:
    ledger = Ledger(3, crc32c)
    ledger.replay.load((), [Suppressed("0/1", 2, 7, (crc32c(b"a"), None, crc32c(b"c")))])
    assert ledger.replay.suppress("0/1", 2, 7, lambda: b"a")
    assert ledger.replay.suppress("0/1", 2, 7, lambda: b"anything")
    with pytest.raises(
        EpochError, match=r"^Rank 3: message 3 after the restart to rank 2 with tag 7 on communicator 0/1 is not"
    ):
        ledger.replay.suppress("0/1", 2, 7, lambda: b"d")
    assert not ledger.replay.suppresses
    assert not ledger.replay.suppress("0/1", 2, 7, lambda: b"e")


def test_served_by_wildcards_in_order() -> None:
    ledger = Ledger(0, crc32c)
    messages = [Late("0", 2, 5, b"a"), Late("0", 1, 5, b"b"), Late("0", 1, 6, b"c"), Late("0/0", 3, 6, b"d")]
    ledger.replay.load(messages, ())
    find = ledger.replay.find
    assert find("0", None, None) == messages[0]
    assert find("0", 1, None) == messages[1]
    assert find("0", None, 6) == messages[2]
    assert find("0/0", None, None) == messages[3]
    assert find("0", 2, 6) is None
    ledger.replay.take(messages[1])
    assert find("0", 1, None) == messages[2]
    ledger.cut()
    ledger.settle()
    assert ledger.counts == (3, 0)
    assert ledger.in_flight().late == (messages[0], messages[2], messages[3])


@given(
    late=st.lists(st.builds(Late, st.text(), st.integers(0, 9), st.integers(0, 2**31), st.binary())),
    checksums=st.lists(st.none() | st.integers(0, 2**32 - 1)),
)
def test_as_bytes_and_back(late: list[Late], checksums: list[int | None]) -> None:
    early = (Early("0", 1, 2, len(checksums) + 5, tuple(checksums)),)
    found = InFlight(tuple(late), early, (Suppressed("0/3", 4, 5, tuple(checksums)),))
    assert InFlight.from_bytes(found.to_bytes()) == found
    assert InFlight.from_bytes(InFlight().to_bytes()) == InFlight()


def test_bytes_of_version_1() -> None:
    """Its list of messages to suppress had another name."""
    found = InFlight((Late("0", 1, 2, b"abc"),), (), (Suppressed("0/3", 4, 5, (None, 7)),))
    now = found.to_bytes()
    old = json.loads(now[16:-3])
    old["swallow"] = old.pop("suppressed")
    text = json.dumps(old).encode()
    header = now[:4] + (1).to_bytes(4, "little") + len(text).to_bytes(8, "little")
    assert InFlight.from_bytes(header + text + b"abc") == found


@pytest.mark.parametrize("damage", [lambda b: b[:10], lambda b: b[:-1], lambda b: b + b"x", lambda b: b"P" + b[1:]])
def test_bytes_that_are_something_else(damage: object) -> None:
    assert callable(damage)
    data = InFlight((Late("0", 1, 2, b"abc"),)).to_bytes()
    with pytest.raises(EpochError, match="cannot be read"):
        InFlight.from_bytes(damage(data))


class Ring:
    """Ranks of one communicator that call collectives."""

    def __init__(self, size: int) -> None:
        self.calls = [Calls(rank) for rank in range(size)]

    def call(self, rank: int, name: str) -> None:
        size = len(self.calls)
        self.calls[rank].called("0", name, ((rank - 1) % size, (rank + 1) % size))

    def compare(self) -> list[str | None]:
        for rank, calls in enumerate(self.calls):
            for other, items in calls.cut().items():
                for item in items:
                    self.calls[other].told(rank, *item)
        return [calls.settle() for calls in self.calls]


@given(counts=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=5), min_size=1, max_size=4))
def test_collectives_that_straddle_a_cut(counts: list[list[int]]) -> None:
    """All is well where all ranks have made equally many calls in all, also if they were not in the epoch before."""
    size = min(len(c) for c in counts)
    ring, total = Ring(size), [0] * size
    for epoch in counts:
        for rank in range(size):
            total[rank] += epoch[rank]
            for _ in range(epoch[rank]):
                ring.call(rank, "Bcast")
        assert any(ring.compare()) == (len(set(total)) > 1)
    for calls in ring.calls:
        assert not calls._calls
        assert (0, 0) not in calls._ahead.values()


def test_the_name_of_a_collective_that_straddles_the_cut() -> None:
    ring = Ring(3)
    for rank in range(3):
        ring.call(rank, "Barrier")
    ring.call(1, "Allreduce")
    text = "the collective Allreduce (number 2 since the last cut) on communicator 0 straddles the cut: rank 1 had"
    assert ring.compare() == [
        None,
        f"{text} called it, rank 0 not yet",
        f"{text} called it, rank 2 not yet",
    ]
    ring.call(0, "Allreduce")
    ring.call(2, "Allreduce")
    assert ring.compare() == [None] * 3
