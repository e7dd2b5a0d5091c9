"""A job under a limit of memory: its ranks enter a cgroup, fill their arrays, and can then allocate little more."""

from __future__ import annotations

import sys
from pathlib import Path

from mpi4py import MPI

import mpickpt

MIB = 1 << 20


def main() -> None:
    """Run it: directory, cgroup, MiB of each rank, MiB that are left for it, name of the control file of the limit."""
    directory, group, control = sys.argv[1], Path(sys.argv[2]), sys.argv[5]
    mib, left = int(sys.argv[3]), int(sys.argv[4])
    comm = MPI.COMM_WORLD
    (group / "cgroup.procs").write_text("0")
    usage = group / ("memory.current" if control.startswith("memory.max") else "memory.usage_in_bytes")
    with mpickpt.open(directory, comm, every=1) as ckpt:
        u = ckpt.array("u", mib * MIB // 8, fill=1.0)
        comm.Barrier()
        if comm.rank == 0:
            (group / control).write_text(str(int(usage.read_text()) + comm.size * left * MIB))
        comm.Barrier()
        for _ in ckpt.range(6):
            u += 1
    print(f"rank {comm.rank}: {ckpt.stats().complete} complete", flush=True)


main()
