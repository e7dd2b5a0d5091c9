#!/usr/bin/env bash
# Over the MPI 5 ABI, MPI_File_seek of Intel MPI 2021.18.1 goes to the wrong place without an error.
#
# Guess: after MPI_File_seek(file, 8, MPI_SEEK_SET), a read gives the byte at 8. Seen with libmpi_abi of Intel MPI: it takes
# MPI_SEEK_SET for MPI_SEEK_END, MPI_SEEK_CUR for MPI_SEEK_SET, and MPI_SEEK_END for MPI_SEEK_CUR, so that a read gives
# other bytes or none. The same executable does as the guess says with libmpi_abi of MPICH 5.0.2, and the same program with
# Intel's library of MPICH's older interface. A likely cause: the MPI Forum's header (mpi-forum/mpi-abi-stubs on GitHub)
# had the numbers 401, 402, 403 for SET, CUR, END until commit 4fa63fa of October 2025 fixed them to 403, 401, 402, which
# MPICH has, too. Reads and writes with an offset (MPI_File_read_at) need no such number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for package in mpich==5.0.2 impi-rt==2021.18.1; do
    python3 -m venv "${package%==*}"
    "${package%==*}/bin/pip" install --quiet --disable-pip-version-check "$package"
done
cat >seek.c <<'C'
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 64, START = 20 };

int main(int count, char **arguments)
{
    MPI_Init(&count, &arguments);
    struct {
        const char *name;
        int whence, offset, right, seen;
    } seeks[] = {
        {"MPI_SEEK_SET", MPI_SEEK_SET, 8, 8, SIZE + 8},
        {"MPI_SEEK_SET", MPI_SEEK_SET, -SIZE + 40, -1, 40},
        {"MPI_SEEK_CUR", MPI_SEEK_CUR, 4, START + 5, 4},
        {"MPI_SEEK_END", MPI_SEEK_END, -2, SIZE - 2, START - 1},
    };
    int length, as_described = 1, wrong = atoi(arguments[1]);
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    unsigned char bytes[SIZE];
    MPI_File file;
    MPI_Get_library_version(version, &length);
    printf("%.*s\n", (int)strcspn(version, "\n"), version);
    for (int i = 0; i < SIZE; i++)
        bytes[i] = (unsigned char)i;
    MPI_File_open(MPI_COMM_SELF, "bytes", MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &file);
    MPI_File_write_at(file, 0, bytes, SIZE, MPI_BYTE, MPI_STATUS_IGNORE);
    MPI_File_close(&file);
    for (int i = 0; i < 4; i++) {
        if (seeks[i].right < 0 && !wrong)
            continue; /* before the file's start: an error, which is right */
        MPI_Status status;
        MPI_Offset position;
        int read;
        unsigned char value = 255;
        MPI_File_open(MPI_COMM_SELF, "bytes", MPI_MODE_RDONLY, MPI_INFO_NULL, &file);
        MPI_File_read(file, bytes, START + 1, MPI_BYTE, MPI_STATUS_IGNORE);
        int error = MPI_File_seek(file, seeks[i].offset, seeks[i].whence);
        MPI_File_get_position(file, &position);
        MPI_File_read(file, &value, 1, MPI_BYTE, &status);
        MPI_Get_count(&status, MPI_BYTE, &read);
        MPI_File_close(&file);
        printf("at %d of %d, seek %3d by %s: error %d, position %2d; read %d bytes", START + 1, SIZE, seeks[i].offset,
               seeks[i].name, error, (int)position, read);
        printf(read ? ", value %d\n" : "\n", value);
        int expected = wrong ? seeks[i].seen : seeks[i].right;
        as_described &= error == MPI_SUCCESS && position == expected && read == (expected < SIZE);
        as_described &= read == 0 || value == expected;
    }
    MPI_Finalize();
    return !as_described;
}
C
mpich/bin/mpicc_abi -o seek-abi seek.c
mpich/bin/mpicc -o seek seek.c
run() { LD_LIBRARY_PATH=$1/lib timeout 60 "$1/bin/mpiexec" -n 1 "./$2" "$3"; }
run mpich seek-abi 0
run impi-rt seek 0
run impi-rt seek-abi 1
echo "as described"
