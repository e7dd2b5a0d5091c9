"""Changes so many arrays that their slots are created beside the program; prints the sum of each rank."""

import sys
import time

import numpy as np
from mpi4py import MPI

import mpickpt

comm = MPI.COMM_WORLD
with mpickpt.open("ckpt", comm, every=7) as ckpt:
    arrays = [ckpt.array(f"a{k}", 64, fill=k + comm.rank / 2) for k in range(600)]
    for step in ckpt.range(int(sys.argv[1])):
        for u in arrays:
            u *= 1.0 + step / 1000
            u += comm.rank
        comm.barrier()
        time.sleep(0.02)
sums = comm.gather(float(np.sum(arrays)).hex())
if comm.rank == 0:
    print("sums", *sums)
