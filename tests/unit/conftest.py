"""Start MPI before the first test, so that its threads and descriptors are no test's leak."""

from mpi4py import MPI

MPI.COMM_WORLD.Dup().Free()  # as a session makes some
