"""Random programs with messages in flight, cut and restarted."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from mpi4py import MPI

from calls import UPPER_RECEIVES, UPPER_SENDS
from crossing import COMM, TAG, Run

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


@dataclass(frozen=True)
class Op:
    """What one rank does: a cut (no other rank), or a message that carries the number it has on its channel."""

    rank: int
    other: int | None = None
    sends: bool = False
    tag: int = 0
    number: int = 0


def random_program(rng: random.Random, epochs: int) -> list[Op]:
    """Draw a program, as one order of what all ranks do in which it could be run, all messages received at its end."""
    sent: dict[tuple[int, int, int], int] = defaultdict(int)
    pending: list[tuple[tuple[int, int, int], int]] = []
    program: list[Op] = []

    def receive() -> None:
        key, _ = rng.choice(pending)
        index = next(i for i, (k, _) in enumerate(pending) if k == key)
        (source, dest, tag), number = pending.pop(index)
        program.append(Op(dest, source, False, tag, number))

    for _ in range(epochs):
        uncut = rng.sample(range(COMM.size), COMM.size)
        for _ in range(60):
            source, dest = rng.sample(range(COMM.size), 2)
            if rng.random() < 0.1 and uncut:
                program.append(Op(uncut.pop()))
            elif rng.random() < 0.55 or not pending:
                key = source, dest, rng.randrange(2)
                program.append(Op(source, dest, True, key[2], sent[key]))
                pending.append((key, sent[key]))
                sent[key] += 1
            else:
                receive()
        program += [Op(rank) for rank in uncut]
    while pending:
        receive()
    return program


@pairs
@pytest.mark.parametrize("seed", range(12))
def test_random_programs(run: Run, seed: int) -> None:
    """Many kinds of calls in a random order, cut somewhere, restarted at the last epoch, three times over."""
    rng = random.Random(seed)  # the same on all ranks
    mine = [op for op in random_program(rng, 3) if op.rank == COMM.rank]
    rng = random.Random(1000 * seed + COMM.rank)
    sends = [UPPER_SENDS[name] for name in ("Send", "Isend", "Send_init", "datatype")]
    receives = list(UPPER_RECEIVES.values())
    first, in_flight = 0, 0
    for attempt in range(3):
        begin, cut = first, rng.randint(first, len(mine)) if attempt else -1
        for position in range(begin, len(mine) + 1):
            op = mine[position] if position < len(mine) else None
            if position == cut or (op is not None and op.other is None):
                run.cut()
                first = position + (op is not None and op.other is None)
            if op is None or op.other is None:
                continue
            a = np.array([COMM.rank, op.tag, op.number], np.float64)
            if op.sends:
                rng.choice(sends)(run.comm, a, op.other) if op.tag else run.comm.Send(a, op.other, 0)
                continue
            status = MPI.Status()
            rng.choice(receives)(run.comm, a, op.other, TAG if op.tag else 0, status)
            assert a.tolist() == [op.other, op.tag, op.number]
            assert status.source == op.other
        run.settle()
        in_flight += sum(run.counts())
        run.restart()
    assert in_flight > 0
