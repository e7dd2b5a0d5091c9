#!/usr/bin/env bash
# With MPICH 4.0.2 of Debian 12, MPI_Put writes before its place in a window that does not begin at a multiple of 16.
#
# Guess: a byte that is put at displacement 32 arrives there, whatever the address of the window's first byte. Seen, on
# two ranks of one node: it arrives as many bytes too early as the window's address is above a multiple of 16, which near
# the start of the window is memory that the window does not hold, and no error is raised. MPICH 4.0.3 and 5.0.2 of the
# package index write where the guess says. One executable is run with each library, as their binary interface is the
# same. Needs Debian 12 with gcc; Debian's packages are unpacked, not installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 4.0.3 5.0.2; do
    python3 -m venv "mpich-$version"
    "mpich-$version/bin/pip" install --quiet --disable-pip-version-check "mpich==$version"
done
apt-get -qq download libmpich12=4.0.2-3+b1 libucx0=1.13.1-1 2>apt.log || { cat apt.log; exit 1; }
for package in *.deb; do dpkg -x "$package" debian; done
libraries=$(dirname debian/usr/lib/*/libmpich.so.12)
ln -s libmpich.so.12 "$libraries/libmpi.so.12"
cat >put.c <<'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY = 4096, BEFORE = 1024, WINDOW = 1024, PLACE = 32 };

static _Alignas(16) char memory[MEMORY];

int main(int count, char **arguments)
{
    MPI_Init(&count, &arguments);
    int rank, length, as_described = 1, early = atoi(arguments[1]);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Get_library_version(version, &length);
    if (rank == 1)
        printf("%.*s\n", (int)strcspn(version, "\n"), version);
    for (int above = 0; above < 16; above += 4) {
        char *base = memory + BEFORE + above;
        MPI_Win window;
        memset(memory, 0, MEMORY);
        MPI_Win_create(base, WINDOW, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &window);
        MPI_Win_fence(0, window);
        if (rank == 0)
            MPI_Put("!", 1, MPI_BYTE, 1, PLACE, 1, MPI_BYTE, window);
        MPI_Win_fence(0, window);
        if (rank == 1) {
            char *found = memchr(memory, '!', MEMORY);
            int place = found ? (int)(found - base) : -MEMORY;
            printf("window at a multiple of 16 and %2d: put at displacement %d, arrived at %d\n", above, PLACE, place);
            as_described &= place == PLACE - (early ? above : 0);
        }
        MPI_Win_free(&window);
    }
    MPI_Finalize();
    return !as_described;
}
C
mpich-5.0.2/bin/mpicc -o put put.c
run() { LD_LIBRARY_PATH=$1 timeout 60 mpich-5.0.2/bin/mpiexec -n 2 ./put "$2"; }
run mpich-5.0.2/lib 0
run mpich-4.0.3/lib 0
run "$libraries" 1
echo "as described"
