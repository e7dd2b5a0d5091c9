"""An MPI program that exchanges 120 messages, 100 of them while a session with a cut at each step is open."""

import sys

import numpy as np
from mpi4py import MPI

import mpickpt

COMM = MPI.COMM_WORLD
OTHER = 1 - COMM.rank
sent = np.full(1000, 1.0 + COMM.rank)


def exchange(into: np.ndarray) -> None:
    """Ten calls of MPI_Sendrecv."""
    for _ in range(10):
        COMM.Sendrecv(sent, OTHER, 0, into, OTHER, 0)
    assert (into == 1.0 + OTHER).all()


plain = np.zeros(1000)
exchange(plain)
with mpickpt.open(sys.argv[1], COMM, every=1, restart="never") as ckpt:
    u = ckpt.array("u", 1000)
    for _ in ckpt.range(10):
        exchange(u)
exchange(plain)
