/* A tool that stands before the libraries, in the two usual ways: its MPI_X count and call PMPI_X (profilers), its
 * functions of the C library count and call the next definition (tracers, file systems in user space). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/types.h>

static int counts[4];

/* Calls of MPI_Recv, MPI_Irecv, MPI_Sendrecv and read up to now. */
void tell_counts(int *out) {
    for (int i = 0; i < 4; i++) out[i] = counts[i];
}

ssize_t read(int fd, void *to, size_t n) {
    static ssize_t (*next)(int, void *, size_t);
    if (!next) next = (ssize_t(*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    counts[3]++;
    return next(fd, to, n);
}

#ifdef WRAP_MPI
#include <mpi.h>

int MPI_Recv(void *to, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Status *status) {
    counts[0]++;
    return PMPI_Recv(to, n, type, from, tag, comm, status);
}

int MPI_Irecv(void *to, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Request *request) {
    counts[1]++;
    return PMPI_Irecv(to, n, type, from, tag, comm, request);
}

int MPI_Sendrecv(const void *what, int n, MPI_Datatype type, int whom, int tag, void *to, int room, MPI_Datatype its_type,
                 int from, int its_tag, MPI_Comm comm, MPI_Status *status) {
    static int (*next)(const void *, int, MPI_Datatype, int, int, void *, int, MPI_Datatype, int, int, MPI_Comm,
                       MPI_Status *);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "MPI_Sendrecv");
    counts[2]++;
    return next(what, n, type, whom, tag, to, room, its_type, from, its_tag, comm, status);
}

#if MPI_VERSION >= 4 /* what mpi4py calls where the library has it */
int MPI_Recv_c(void *to, MPI_Count n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Status *status) {
    counts[0]++;
    return PMPI_Recv_c(to, n, type, from, tag, comm, status);
}

int MPI_Irecv_c(void *to, MPI_Count n, MPI_Datatype type, int from, int tag, MPI_Comm comm, MPI_Request *request) {
    counts[1]++;
    return PMPI_Irecv_c(to, n, type, from, tag, comm, request);
}

int MPI_Sendrecv_c(const void *what, MPI_Count n, MPI_Datatype type, int whom, int tag, void *to, MPI_Count room,
                   MPI_Datatype its_type, int from, int its_tag, MPI_Comm comm, MPI_Status *status) {
    static int (*next)(const void *, MPI_Count, MPI_Datatype, int, int, void *, MPI_Count, MPI_Datatype, int, int,
                       MPI_Comm, MPI_Status *);
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "MPI_Sendrecv_c");
    counts[2]++;
    return next(what, n, type, whom, tag, to, room, its_type, from, its_tag, comm, status);
}
#endif
#endif
