/* MPI_Recv as Fortran programs call it: by the names that compilers give it, all arguments by reference. Each call gives
 * Fortran's error code. */
#include <mpi.h>

#define RECEIVE(name)                                                                                            \
    void name(void *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *, MPI_Fint *);        \
    int call_##name(void *to, MPI_Fint n, MPI_Fint from, MPI_Fint comm) {                                         \
        MPI_Fint type = MPI_Type_c2f(MPI_BYTE), tag = 0, error = -1, status[64];                                  \
        name(to, &n, &type, &from, &tag, &comm, status, &error);                                                  \
        return error;                                                                                             \
    }
RECEIVE(mpi_recv)
RECEIVE(mpi_recv_)
RECEIVE(mpi_recv__)
RECEIVE(MPI_RECV)
RECEIVE(pmpi_recv_)
