"""Communicators made from the tracked one, and collectives."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from crossing import COMM, OTHER, RECEIVES, SENDS, TAG, Run

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


@pairs
def test_communicators_made_of_it(run: Run) -> None:
    """They keep their own channels, in ranks of their own."""

    def make() -> list[MPI.Intracomm]:
        made = [run.comm.Dup(), run.comm.Split(COMM.rank // 2, -COMM.rank), run.comm.Clone()]
        made += [made[1].Dup(), run.comm.Split(0 if RECEIVES or SENDS else MPI.UNDEFINED)]
        made += [run.comm.Create(run.comm.group), run.comm.Split_type(MPI.COMM_TYPE_SHARED)]
        return made

    def numbers() -> list[tuple[int, MPI.Intracomm, int]]:
        group = COMM.group
        return [(n, c, group.Translate_ranks([OTHER], c.group)[0]) for n, c in enumerate(made) if c != MPI.COMM_NULL]

    made = make()
    assert [getattr(c, "path", None) for c in made[:4]] == ["0/0", "0/1", "0/2", "0/1/0"]
    status = MPI.Status()
    if SENDS:
        for number, comm, other in numbers():
            comm.send(number, other, TAG)
    run.cut()
    if RECEIVES:
        for number, comm, _ in reversed(numbers()):
            assert comm.recv() == number
    run.settle()
    assert run.counts() == (len(made) * (COMM.size // 2), 0)
    for comm in made:
        if comm != MPI.COMM_NULL:
            comm.Free()
    run.restart()
    made = make()
    if RECEIVES:
        for number, comm, other in reversed(numbers()):
            assert comm.recv(status=status) == number
            assert status.source == other
    for comm in made:
        if comm != MPI.COMM_NULL:
            comm.Free()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    assert not run.traffic._calls._before


def test_communicators_that_are_not_tracked(run: Run) -> None:
    cart = run.comm.Create_cart([COMM.size], [True])
    assert cart.Get_coords(cart.rank) == [cart.rank]
    group = run.comm.Create_group(run.comm.group)
    duplicate, request = run.comm.Idup()
    request.Wait()
    for comm in (cart, group, duplicate):
        assert comm.allreduce(1) == COMM.size
        comm.Free()
    run.cut()
    run.settle()


def test_collectives_are_as_without(run: Run) -> None:
    comm, size, rank = run.comm, COMM.size, COMM.rank
    a, every, one = np.full(3, rank + 0.1), np.zeros((size, 3)), np.zeros(3)
    plain = COMM.allreduce(a)
    comm.Barrier()
    comm.barrier()
    comm.Allreduce(a, one)
    assert (one == plain).all()
    comm.Iallreduce(a, one).Wait()
    comm.Allgather(a, every)
    assert every[:, 0].tolist() == [r + 0.1 for r in range(size)]
    comm.Reduce(a, one if rank == 0 else None)
    comm.Bcast(a, 0)
    assert (a == 0.1).all()
    assert comm.allgather(rank) == list(range(size))
    assert comm.allreduce(rank) == sum(range(size))
    assert comm.bcast({"r": rank}) == {"r": 0}
    assert comm.alltoall([rank] * size) == list(range(size))
    assert comm.gather(rank) == (list(range(size)) if rank == 0 else None)
    assert comm.scatter(range(size) if rank == 0 else None) == rank
    assert comm.scan(1) == rank + 1
    request = comm.Bcast_init(a, 0)
    for _ in range(2):
        request.Start()
        request.Wait()
    request.Free()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
