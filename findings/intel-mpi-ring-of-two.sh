#!/usr/bin/env bash
# Intel MPI 2021.18.1 gives the parts of two neighbours in another order than MPICH, on a periodic grid of two ranks.
#
# Guess: with two ranks on a ring, what a rank sends upwards comes to the other rank from below, as with three ranks. Seen
# with MPI_Neighbor_alltoall: MPICH 5.0.2 does so, and Intel MPI gives it as what comes from above; with three ranks both
# do as the guess says. Example 8.10 of MPI 4.1 (section 8.6) gives the rule as code, and advice there names dimensions of
# one and two ranks: block 2d is sent downwards and arrives as block 2d + 1, and the other way round, which is MPICH's
# order. Before MPI 4.0 the text was hard to read, and several libraries had the other order; see
# https://github.com/mpi-forum/mpi-issues/issues/153. One executable is run with each library, as their binary interface
# is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for package in mpich==5.0.2 impi-rt==2021.18.1; do
    python3 -m venv "${package%==*}"
    "${package%==*}/bin/pip" install --quiet --disable-pip-version-check "$package"
done
cat >ring.c <<'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **arguments)
{
    MPI_Init(&count, &arguments);
    int ranks, rank, length, below, above, periodic = 1, kept = atoi(arguments[1]);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Comm ring;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Cart_create(MPI_COMM_WORLD, 1, &ranks, &periodic, 0, &ring);
    MPI_Comm_rank(ring, &rank);
    MPI_Cart_shift(ring, 0, 1, &below, &above);
    int down = 10 * rank + 1, up = 10 * rank + 2;
    int sent[2] = {down, up}, received[2];
    MPI_Neighbor_alltoall(sent, 1, MPI_INT, received, 1, MPI_INT, ring);
    int from_below = 10 * below + 2, from_above = 10 * above + 1;
    if (rank == 0) {
        MPI_Get_library_version(version, &length);
        printf("%.*s\n", (int)strcspn(version, "\n"), version);
        printf("%d ranks, rank 0 has rank %d below and rank %d above: received %d and %d; %d was sent up, %d down\n", ranks,
               below, above, received[0], received[1], from_below, from_above);
    }
    int as_described = received[kept] == from_below && received[1 - kept] == from_above;
    MPI_Finalize();
    return !as_described;
}
C
mpich/bin/mpicc -o ring ring.c
run() { LD_LIBRARY_PATH=$1/lib timeout 60 "$1/bin/mpiexec" -n "$2" ./ring "$3"; }
run mpich 3 0
run mpich 2 0
run impi-rt 3 0
run impi-rt 2 1
echo "as described"
