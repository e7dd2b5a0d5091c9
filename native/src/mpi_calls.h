/* The MPI calls that write to the program's memory, or wait. One line a call:
 *
 *     CALL(name, number of arguments, waits, target)      the call alone
 *     BOTH(name, number of arguments, waits, target)      and its large-count form, name_c
 *
 * waits: the call may wait for other ranks, so the core is free for the drain. A target says which arguments tell what is
 * written (positions from 0); L is 1 in the large-count form, where counts and displacements in arrays have 64 bits.
 *
 *     NOTHING
 *     PLAIN(flags, buffer, count, type)
 *     ONE(flags, buffer, type)                             one element
 *     EACH(flags, buffer, count, type, comm, root)         count elements from each rank, or neighbour
 *     VECTOR(flags, buffer, counts, displs, type, comm, root)
 *     TYPES(flags, buffer, counts, displs, types, comm)    displacements in bytes
 *     SHARE(flags, buffer, counts, type, comm)             this rank's count; all of them when in place
 *     PARTS(flags, buffer, partitions, count, type)
 *     BYTES(flags, buffer, bytes)
 *     MAKES(flags, address, bytes, window)                 memory that the call gives: a pointer to its address and to the window,
 *     SHOWS(flags, address, bytes, window)                 and here to its size, too, but not to the window
 *     FREES(flags, window)                                 a pointer
 *
 * Flags: LATER the buffer stays in use when the call has returned; NEAR the peers are the neighbours of a topology; AINT
 * displacements are MPI_Aint in both forms. root is -1 where every rank receives. */
#define MPK__MPI_CALLS(CALL, BOTH)                                                                                   \
    /* messages between two ranks */                                                                                  \
    BOTH(MPI_Recv, 7, 1, PLAIN(0, 0, 1, 2))                                                                           \
    BOTH(MPI_Irecv, 7, 0, PLAIN(LATER, 0, 1, 2))                                                                      \
    BOTH(MPI_Recv_init, 7, 0, PLAIN(LATER, 0, 1, 2))                                                                  \
    BOTH(MPI_Mrecv, 5, 1, PLAIN(0, 0, 1, 2))                                                                          \
    BOTH(MPI_Imrecv, 5, 0, PLAIN(LATER, 0, 1, 2))                                                                     \
    BOTH(MPI_Sendrecv, 12, 1, PLAIN(0, 5, 6, 7))                                                                      \
    BOTH(MPI_Sendrecv_replace, 9, 1, PLAIN(0, 0, 1, 2))                                                               \
    BOTH(MPI_Isendrecv, 12, 0, PLAIN(LATER, 5, 6, 7))                                                                 \
    BOTH(MPI_Isendrecv_replace, 9, 0, PLAIN(LATER, 0, 1, 2))                                                         \
    CALL(MPI_Precv_init, 9, 0, PARTS(LATER, 0, 1, 2, 3))                                                              \
    BOTH(MPI_Send, 6, 1, NOTHING)                                                                                     \
    BOTH(MPI_Ssend, 6, 1, NOTHING)                                                                                    \
    CALL(MPI_Probe, 4, 1, NOTHING)                                                                                    \
    CALL(MPI_Mprobe, 5, 1, NOTHING)                                                                                   \
    CALL(MPI_Wait, 2, 1, NOTHING)                                                                                     \
    CALL(MPI_Waitall, 3, 1, NOTHING)                                                                                  \
    CALL(MPI_Waitany, 4, 1, NOTHING)                                                                                  \
    CALL(MPI_Waitsome, 5, 1, NOTHING)                                                                                 \
    /* collectives */                                                                                                 \
    CALL(MPI_Barrier, 1, 1, NOTHING)                                                                                  \
    BOTH(MPI_Bcast, 5, 1, PLAIN(0, 0, 1, 2))                                                                          \
    BOTH(MPI_Gather, 8, 1, EACH(0, 3, 4, 5, 7, 6))                                                                    \
    BOTH(MPI_Gatherv, 9, 1, VECTOR(0, 3, 4, 5, 6, 8, 7))                                                              \
    BOTH(MPI_Scatter, 8, 1, PLAIN(0, 3, 4, 5))                                                                        \
    BOTH(MPI_Scatterv, 9, 1, PLAIN(0, 4, 5, 6))                                                                       \
    BOTH(MPI_Allgather, 7, 1, EACH(0, 3, 4, 5, 6, -1))                                                                \
    BOTH(MPI_Allgatherv, 8, 1, VECTOR(0, 3, 4, 5, 6, 7, -1))                                                          \
    BOTH(MPI_Alltoall, 7, 1, EACH(0, 3, 4, 5, 6, -1))                                                                 \
    BOTH(MPI_Alltoallv, 9, 1, VECTOR(0, 4, 5, 6, 7, 8, -1))                                                           \
    BOTH(MPI_Alltoallw, 9, 1, TYPES(0, 4, 5, 6, 7, 8))                                                                \
    BOTH(MPI_Reduce, 7, 1, ROOTED(0, 1, 2, 3, 6, 5))                                                                  \
    BOTH(MPI_Allreduce, 6, 1, PLAIN(0, 1, 2, 3))                                                                      \
    BOTH(MPI_Reduce_scatter, 6, 1, SHARE(0, 1, 2, 3, 5))                                                                \
    BOTH(MPI_Reduce_scatter_block, 6, 1, EACH(0, 1, 2, 3, 5, -1))                                                     \
    BOTH(MPI_Scan, 6, 1, PLAIN(0, 1, 2, 3))                                                                           \
    BOTH(MPI_Exscan, 6, 1, PLAIN(0, 1, 2, 3))                                                                         \
    BOTH(MPI_Neighbor_allgather, 7, 1, EACH(NEAR, 3, 4, 5, 6, -1))                                                    \
    BOTH(MPI_Neighbor_allgatherv, 8, 1, VECTOR(NEAR, 3, 4, 5, 6, 7, -1))                                              \
    BOTH(MPI_Neighbor_alltoall, 7, 1, EACH(NEAR, 3, 4, 5, 6, -1))                                                     \
    BOTH(MPI_Neighbor_alltoallv, 9, 1, VECTOR(NEAR, 4, 5, 6, 7, 8, -1))                                               \
    BOTH(MPI_Neighbor_alltoallw, 9, 1, TYPES(NEAR | AINT, 4, 5, 6, 7, 8))                                             \
    /* the same, not blocking, and made to be started many times */                                                   \
    BOTH(MPI_Ibcast, 6, 0, PLAIN(LATER, 0, 1, 2))                                                                     \
    BOTH(MPI_Igather, 9, 0, EACH(LATER, 3, 4, 5, 7, 6))                                                               \
    BOTH(MPI_Igatherv, 10, 0, VECTOR(LATER, 3, 4, 5, 6, 8, 7))                                                        \
    BOTH(MPI_Iscatter, 9, 0, PLAIN(LATER, 3, 4, 5))                                                                   \
    BOTH(MPI_Iscatterv, 10, 0, PLAIN(LATER, 4, 5, 6))                                                                 \
    BOTH(MPI_Iallgather, 8, 0, EACH(LATER, 3, 4, 5, 6, -1))                                                           \
    BOTH(MPI_Iallgatherv, 9, 0, VECTOR(LATER, 3, 4, 5, 6, 7, -1))                                                     \
    BOTH(MPI_Ialltoall, 8, 0, EACH(LATER, 3, 4, 5, 6, -1))                                                            \
    BOTH(MPI_Ialltoallv, 10, 0, VECTOR(LATER, 4, 5, 6, 7, 8, -1))                                                     \
    BOTH(MPI_Ialltoallw, 10, 0, TYPES(LATER, 4, 5, 6, 7, 8))                                                          \
    BOTH(MPI_Ireduce, 8, 0, ROOTED(LATER, 1, 2, 3, 6, 5))                                                             \
    BOTH(MPI_Iallreduce, 7, 0, PLAIN(LATER, 1, 2, 3))                                                                 \
    BOTH(MPI_Ireduce_scatter, 7, 0, SHARE(LATER, 1, 2, 3, 5))                                                           \
    BOTH(MPI_Ireduce_scatter_block, 7, 0, EACH(LATER, 1, 2, 3, 5, -1))                                                \
    BOTH(MPI_Iscan, 7, 0, PLAIN(LATER, 1, 2, 3))                                                                      \
    BOTH(MPI_Iexscan, 7, 0, PLAIN(LATER, 1, 2, 3))                                                                    \
    BOTH(MPI_Ineighbor_allgather, 8, 0, EACH(LATER | NEAR, 3, 4, 5, 6, -1))                                           \
    BOTH(MPI_Ineighbor_allgatherv, 9, 0, VECTOR(LATER | NEAR, 3, 4, 5, 6, 7, -1))                                     \
    BOTH(MPI_Ineighbor_alltoall, 8, 0, EACH(LATER | NEAR, 3, 4, 5, 6, -1))                                            \
    BOTH(MPI_Ineighbor_alltoallv, 10, 0, VECTOR(LATER | NEAR, 4, 5, 6, 7, 8, -1))                                     \
    BOTH(MPI_Ineighbor_alltoallw, 10, 0, TYPES(LATER | NEAR | AINT, 4, 5, 6, 7, 8))                                   \
    BOTH(MPI_Bcast_init, 7, 0, PLAIN(LATER, 0, 1, 2))                                                                 \
    BOTH(MPI_Gather_init, 10, 0, EACH(LATER, 3, 4, 5, 7, 6))                                                          \
    BOTH(MPI_Gatherv_init, 11, 0, VECTOR(LATER, 3, 4, 5, 6, 8, 7))                                                    \
    BOTH(MPI_Scatter_init, 10, 0, PLAIN(LATER, 3, 4, 5))                                                              \
    BOTH(MPI_Scatterv_init, 11, 0, PLAIN(LATER, 4, 5, 6))                                                             \
    BOTH(MPI_Allgather_init, 9, 0, EACH(LATER, 3, 4, 5, 6, -1))                                                       \
    BOTH(MPI_Allgatherv_init, 10, 0, VECTOR(LATER, 3, 4, 5, 6, 7, -1))                                                \
    BOTH(MPI_Alltoall_init, 9, 0, EACH(LATER, 3, 4, 5, 6, -1))                                                        \
    BOTH(MPI_Alltoallv_init, 11, 0, VECTOR(LATER, 4, 5, 6, 7, 8, -1))                                                 \
    BOTH(MPI_Alltoallw_init, 11, 0, TYPES(LATER, 4, 5, 6, 7, 8))                                                      \
    BOTH(MPI_Reduce_init, 9, 0, ROOTED(LATER, 1, 2, 3, 6, 5))                                                         \
    BOTH(MPI_Allreduce_init, 8, 0, PLAIN(LATER, 1, 2, 3))                                                             \
    BOTH(MPI_Reduce_scatter_init, 8, 0, SHARE(LATER, 1, 2, 3, 5))                                                       \
    BOTH(MPI_Reduce_scatter_block_init, 8, 0, EACH(LATER, 1, 2, 3, 5, -1))                                            \
    BOTH(MPI_Scan_init, 8, 0, PLAIN(LATER, 1, 2, 3))                                                                  \
    BOTH(MPI_Exscan_init, 8, 0, PLAIN(LATER, 1, 2, 3))                                                                \
    BOTH(MPI_Neighbor_allgather_init, 9, 0, EACH(LATER | NEAR, 3, 4, 5, 6, -1))                                       \
    BOTH(MPI_Neighbor_allgatherv_init, 10, 0, VECTOR(LATER | NEAR, 3, 4, 5, 6, 7, -1))                                \
    BOTH(MPI_Neighbor_alltoall_init, 9, 0, EACH(LATER | NEAR, 3, 4, 5, 6, -1))                                        \
    BOTH(MPI_Neighbor_alltoallv_init, 11, 0, VECTOR(LATER | NEAR, 4, 5, 6, 7, 8, -1))                                 \
    BOTH(MPI_Neighbor_alltoallw_init, 11, 0, TYPES(LATER | NEAR | AINT, 4, 5, 6, 7, 8))                               \
    /* one-sided */                                                                                                   \
    BOTH(MPI_Win_allocate, 6, 0, MAKES(0, 4, 0, 5))                                                                   \
    BOTH(MPI_Win_allocate_shared, 6, 0, MAKES(0, 4, 0, 5))                                                            \
    BOTH(MPI_Win_shared_query, 5, 0, SHOWS(0, 4, 2, 0))                                                               \
    CALL(MPI_Win_free, 1, 0, FREES(0, 0))                                                                             \
    BOTH(MPI_Win_create, 6, 1, BYTES(LATER, 0, 1))                                                                    \
    CALL(MPI_Win_attach, 3, 0, BYTES(LATER, 1, 2))                                                                    \
    BOTH(MPI_Get, 8, 0, PLAIN(LATER, 0, 1, 2))                                                                        \
    BOTH(MPI_Rget, 9, 0, PLAIN(LATER, 0, 1, 2))                                                                       \
    BOTH(MPI_Get_accumulate, 12, 0, PLAIN(LATER, 3, 4, 5))                                                            \
    BOTH(MPI_Rget_accumulate, 13, 0, PLAIN(LATER, 3, 4, 5))                                                           \
    CALL(MPI_Fetch_and_op, 7, 0, ONE(LATER, 1, 2))                                                                    \
    CALL(MPI_Compare_and_swap, 7, 0, ONE(LATER, 2, 3))                                                                \
    CALL(MPI_Win_fence, 2, 1, NOTHING)                                                                                \
    CALL(MPI_Win_wait, 1, 1, NOTHING)                                                                                 \
    CALL(MPI_Win_start, 3, 1, NOTHING)                                                                                \
    CALL(MPI_Win_complete, 1, 1, NOTHING)                                                                             \
    CALL(MPI_Win_lock, 4, 1, NOTHING)                                                                                 \
    CALL(MPI_Win_unlock, 2, 1, NOTHING)                                                                               \
    CALL(MPI_Win_flush, 2, 1, NOTHING)                                                                                \
    CALL(MPI_Win_flush_all, 1, 1, NOTHING)                                                                            \
    /* files */                                                                                                       \
    BOTH(MPI_File_read, 5, 1, PLAIN(0, 1, 2, 3))                                                                      \
    BOTH(MPI_File_read_all, 5, 1, PLAIN(0, 1, 2, 3))                                                                  \
    BOTH(MPI_File_read_shared, 5, 1, PLAIN(0, 1, 2, 3))                                                               \
    BOTH(MPI_File_read_ordered, 5, 1, PLAIN(0, 1, 2, 3))                                                              \
    BOTH(MPI_File_read_at, 6, 1, PLAIN(0, 2, 3, 4))                                                                   \
    BOTH(MPI_File_read_at_all, 6, 1, PLAIN(0, 2, 3, 4))                                                               \
    BOTH(MPI_File_iread, 5, 0, PLAIN(LATER, 1, 2, 3))                                                                 \
    BOTH(MPI_File_iread_all, 5, 0, PLAIN(LATER, 1, 2, 3))                                                             \
    BOTH(MPI_File_iread_shared, 5, 0, PLAIN(LATER, 1, 2, 3))                                                          \
    BOTH(MPI_File_iread_at, 6, 0, PLAIN(LATER, 2, 3, 4))                                                              \
    BOTH(MPI_File_iread_at_all, 6, 0, PLAIN(LATER, 2, 3, 4))                                                          \
    BOTH(MPI_File_read_all_begin, 4, 0, PLAIN(LATER, 1, 2, 3))                                                        \
    BOTH(MPI_File_read_ordered_begin, 4, 0, PLAIN(LATER, 1, 2, 3))                                                    \
    BOTH(MPI_File_read_at_all_begin, 5, 0, PLAIN(LATER, 2, 3, 4))
