#!/usr/bin/env bash
# MPICH 4.0.2 of Debian 12 compares unsigned bytes as if they had a sign: MPI_MAX of 100 and 200 is 100.
#
# Guess: MPI_MAX and MPI_MIN of MPI_UNSIGNED_CHAR compare as C compares unsigned char. Seen: bytes above 127 are taken for
# negative ones, in MPI_Allreduce and in MPI_Reduce_local, for MPI_UNSIGNED_CHAR as for MPI_UINT8_T, and no error is
# raised. MPICH 4.0.3 and 5.0.2 of the package index compare as the guess says. One executable is run with each library,
# as their binary interface is the same. Needs Debian 12 with gcc; Debian's packages are unpacked, not installed.
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
cat >maximum.c <<'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **arguments)
{
    MPI_Init(&count, &arguments);
    MPI_Datatype types[] = {MPI_UNSIGNED_CHAR, MPI_UINT8_T};
    const char *names[] = {"MPI_UNSIGNED_CHAR", "MPI_UINT8_T"};
    int rank, length, as_described = 1, with_sign = atoi(arguments[1]);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Get_library_version(version, &length);
    if (rank == 0)
        printf("%.*s\n", (int)strcspn(version, "\n"), version);
    for (int i = 0; i < 2; i++) {
        unsigned char mine = rank == 0 ? 100 : 200, most, least, local = 100, other = 200;
        MPI_Allreduce(&mine, &most, 1, types[i], MPI_MAX, MPI_COMM_WORLD);
        MPI_Allreduce(&mine, &least, 1, types[i], MPI_MIN, MPI_COMM_WORLD);
        MPI_Reduce_local(&other, &local, 1, types[i], MPI_MAX);
        if (rank == 0)
            printf("%-17s of 100 and 200: MPI_MAX %d, MPI_MIN %d, MPI_MAX by MPI_Reduce_local %d\n", names[i], most, least,
                   local);
        int expected = with_sign ? 100 : 200;
        as_described &= most == expected && local == expected && least == 300 - expected;
    }
    MPI_Finalize();
    return !as_described;
}
C
mpich-5.0.2/bin/mpicc -o maximum maximum.c
run() { LD_LIBRARY_PATH=$1 timeout 60 mpich-5.0.2/bin/mpiexec -n 2 ./maximum "$2"; }
run mpich-5.0.2/lib 0
run mpich-4.0.3/lib 0
run "$libraries" 1
echo "as described"
