"""Messages to ranks that do not expect them."""

from __future__ import annotations

import random
import time

import pytest
from mpi4py import MPI

from mpickpt.mpi.tracked.exchange import Exchange

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD


def content(round_: int, source: int, dest: int, size: int) -> bytes:
    return bytes([round_ % 256, source, dest]) + random.Random(size).randbytes(size)


@pytest.mark.parametrize("largest", [10, 1_000_000])
def test_all_that_is_sent_comes_in_its_own_round(largest: int) -> None:
    """Sparse at random, with ranks that come early and late, two communicators in turn."""
    comms = COMM.Dup(), COMM.Dup()
    for round_ in range(40 if largest < 100 else 10):
        shared = random.Random(round_)  # all ranks draw the same plan
        plan = {
            (source, dest): shared.randrange(largest)
            for source in range(COMM.size)
            for dest in range(COMM.size)
            if source != dest and shared.random() < 0.4
        }
        naps = [shared.choice([0, 0, 0, 0.003]) for _ in range(COMM.size)]
        time.sleep(naps[COMM.rank])
        mine = {dest: content(round_, s, dest, size) for (s, dest), size in plan.items() if s == COMM.rank}
        came: dict[int, bytes] = {}
        exchange = Exchange(comms[round_ % 2], mine, came.__setitem__)
        end = time.monotonic() + 20
        while not exchange.advance():
            assert time.monotonic() < end
            time.sleep(1e-5)
        expected = {s: content(round_, s, d, size) for (s, d), size in plan.items() if d == COMM.rank}
        assert came == expected
    for comm in comms:
        comm.Free()


@pytest.mark.mpi(min_size=2)
def test_nobody_is_done_before_all_was_received() -> None:
    comm = COMM.Dup()
    came: list[int] = []
    last = COMM.size - 1
    if COMM.rank != last:
        exchange = Exchange(comm, {last: b"news"}, lambda rank, data: came.append(rank))
        for _ in range(100):
            assert not exchange.advance()
            assert exchange._barrier is None, "the last rank has received nothing yet"
    COMM.Barrier()
    if COMM.rank == last:
        exchange = Exchange(comm, {}, lambda rank, data: came.append(rank))
    end = time.monotonic() + 20
    while not exchange.advance():
        assert time.monotonic() < end
    assert sorted(came) == (list(range(last)) if COMM.rank == last else [])
    comm.Free()
