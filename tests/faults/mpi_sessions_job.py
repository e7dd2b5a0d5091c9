"""A program that starts MPI by sessions, and only then by MPI_Init."""

import sys
from pathlib import Path

import mpi4py

mpi4py.rc.initialize = False

from mpi4py import MPI  # noqa: E402

import mpickpt  # noqa: E402


def told(comm: MPI.Intracomm | None) -> str:
    try:
        mpickpt.open("c", comm)
    except mpickpt.UsageError as error:
        return str(error)
    return "it opens"


session = MPI.Session.Init()
group = session.Create_group("mpi://WORLD")
comm = MPI.Intracomm.Create_from_group(group, "ranks")
lines = [told(None), told(comm)]
lines.append(f"made {Path('c').exists()}")
comm.Barrier()
MPI.Init()
with mpickpt.open("c", comm, every=2) as ckpt:
    u, ranks = ckpt.array("u", 1000), ckpt.comm
    for _ in ckpt.range(5):
        u += 1
        ranks.Barrier()
lines.append(f"saved {mpickpt.Checkpoint('c').epoch} on {mpickpt.Checkpoint('c').world_size}")
comm.Free()
group.Free()
session.Finalize()
MPI.Finalize()
lines.append(told(None))
sys.stdout.write("".join(f"{line}\n" for line in lines))
