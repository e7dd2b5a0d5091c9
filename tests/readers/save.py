"""Saves three epochs of arrays with named axes, on two ranks: `save.py DIRECTORY DTYPE`, the dtype of `u`."""

import sys

import numpy as np
from mpi4py import MPI

import mpickpt

comm = MPI.COMM_WORLD
rows = cols = 6  # some readers find a dimension by its length alone, where they find no name
low, high = (rows * r // comm.size for r in (comm.rank, comm.rank + 1))
inner = np.s_[1:-1, :]

with mpickpt.open(sys.argv[1], comm, every=1) as ckpt:
    part = mpickpt.Part((rows, cols), (low, 0), inner, dims=("y", "x"))
    u = ckpt.array("u", (high - low + 2, cols), sys.argv[2], part=part)
    turned = np.zeros((cols, high - low), order="F")
    ckpt.protect("turned", turned, part=mpickpt.Part((cols, rows), (0, low), dims=("x", "y")))
    mine = cols * comm.rank // comm.size, cols * (comm.rank + 1) // comm.size
    x = ckpt.array("x", (mine[1] - mine[0],), part=mpickpt.Part((cols,), (mine[0],), dims=("x",)))
    for step in ckpt.range(4):
        u[inner] = np.arange(low * cols, high * cols).reshape(-1, cols) + 100 * step
        turned[...] = u[inner].T
        x[...] = np.arange(*mine) / 2
