! A Fortran program's own receipts, by the module mpi and by the include file.
function call_by_module(to, n, from, comm) result(error) bind(c)
    use, intrinsic :: iso_c_binding
    use mpi
    integer(c_int), value :: n, from, comm
    character(kind=c_char) :: to(n)
    integer(c_int) :: error
    integer :: ierror, status(MPI_STATUS_SIZE)
    call MPI_Recv(to, n, MPI_CHARACTER, from, 0, comm, status, ierror)
    error = ierror
end function

function call_by_include_file(to, n, from, comm) result(error) bind(c)
    use, intrinsic :: iso_c_binding
    include 'mpif.h'
    integer(c_int), value :: n, from, comm
    character(kind=c_char) :: to(n)
    integer(c_int) :: error
    integer :: ierror, status(MPI_STATUS_SIZE)
    call MPI_Recv(to, n, MPI_CHARACTER, from, 0, comm, status, ierror)
    error = ierror
end function
