"""Start MPI before the first test, so that its threads and descriptors do not count as leaks."""

from mpi4py import MPI

MPI.COMM_WORLD.Dup().Free()  # as a session makes some
