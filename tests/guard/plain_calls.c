/* The plain forms of MPI calls that write to memory, made as a C program makes them: mpi4py, which the other cases go
 * through, calls the large-count forms wherever the library has them.
 *
 * What is received is one element for each sender. An element has `n` bytes at either end of a hole of some blocks,
 * which nobody writes to: only a guard that knows the element's extent opens the blocks of the hole, and one that does
 * not look at the call opens none of them.
 *
 * call_NAME receives. Where the buffer stays in use, post_NAME begins and end_NAME completes, and the caller cuts in
 * between. Each returns what MPI returned. Errors end the job: also those that the guard would make by asking the
 * library about arguments that the standard says are not looked at. */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

static unsigned char *into, *want, *sent;
static MPI_Aint apart, stride, from, to;
static int n, rank, size, left, right;
static const char *path;
static MPI_Comm comm, graph, ring, grid; /* all hear all; each hears its left; a grid of one dimension */
static MPI_Datatype type;
static MPI_Op maximum;
static MPI_Request request, sending;
static MPI_Win window;
static MPI_File file;
static int one[16], places[16]; /* a count for each sender; from the last to the first, in elements */
static int bytes_places[16];
static MPI_Aint address_places[16];
static MPI_Datatype types[16];

static unsigned char byte_of(int j, int sender, int receiver) {
    return (unsigned char)((7 * j + 31 * sender + 11 * receiver + 5) % 251);
}

static void put(unsigned char *buffer, int element, int sender, int receiver) {
    for (int j = 0; j < n; j++) {
        buffer[element * stride + j] = byte_of(j, sender, receiver);
        buffer[element * stride + apart + j] = byte_of(j + 100, sender, receiver);
    }
}

/* The greatest of what all ranks up to `last` send, as element `element`. */
static void put_greatest(unsigned char *buffer, int element, int last, int receiver) {
    for (int j = 0; j < n; j++) {
        unsigned char a = 0, b = 0;
        for (int r = 0; r <= last; r++) {
            if (byte_of(j, r, receiver) > a) a = byte_of(j, r, receiver);
            if (byte_of(j + 100, r, receiver) > b) b = byte_of(j + 100, r, receiver);
        }
        buffer[element * stride + j] = a;
        buffer[element * stride + apart + j] = b;
    }
}

static void take_greater(void *in, void *inout, int *count, MPI_Datatype *its_type) {
    const unsigned char *a = in;
    unsigned char *b = inout;
    (void)its_type;
    for (int i = 0; i < *count; i++)
        for (int end = 0; end < 2; end++)
            for (int j = 0; j < n; j++) {
                MPI_Aint at = i * stride + end * apart + j;
                if (a[at] > b[at]) b[at] = a[at];
            }
}

/* The call may write to so many elements from the first on. */
static void reaches(int count) {
    from = 0;
    to = count ? (count - 1) * stride + apart + n : 0;
}

/* -- for the caller ------------------------------------------------------------------------------------------------ */

/* `apart_` bytes lie between the begins of an element's two ends; `want_` is a copy of all that is received into. */
int prepare(MPI_Fint comm_, unsigned char *into_, unsigned char *want_, long apart_, int n_, const char *path_) {
    into = into_;
    want = want_;
    apart = apart_;
    n = n_;
    path = path_;
    stride = apart + n + 64;
    comm = MPI_Comm_f2c(comm_);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_ARE_FATAL);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_ARE_FATAL);
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_ARE_FATAL);
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    left = (rank + size - 1) % size;
    right = (rank + 1) % size;
    MPI_Datatype ends;
    MPI_Type_create_hindexed(2, (int[]){n, n}, (MPI_Aint[]){0, apart}, MPI_BYTE, &ends);
    MPI_Type_create_resized(ends, 0, stride, &type);
    MPI_Type_free(&ends);
    MPI_Type_commit(&type);
    MPI_Op_create(take_greater, 1, &maximum);
    int all[16];
    for (int r = 0; r < size; r++) {
        all[r] = r;
        one[r] = 1;
        places[r] = size - 1 - r;
        bytes_places[r] = (int)(places[r] * stride);
        address_places[r] = r * stride;
        types[r] = type;
    }
    MPI_Dist_graph_create_adjacent(comm, size, all, one, size, all, one, MPI_INFO_NULL, 0, &graph);
    MPI_Dist_graph_create_adjacent(comm, 1, &left, one, 1, &right, one, MPI_INFO_NULL, 0, &ring);
    MPI_Cart_create(comm, 1, &size, (int[]){1}, 0, &grid);
    sent = calloc((size_t)size, (size_t)stride);
    for (int r = 0; r < size; r++) put(sent, r, rank, r);
    reaches(size);
    return 0;
}

/* Which bytes of the buffer the call may write to, by its arguments. */
void reach(long out[2]) {
    out[0] = from;
    out[1] = to;
}

void finish(void) {
    MPI_Type_free(&type);
    MPI_Op_free(&maximum);
    MPI_Comm_free(&graph);
    MPI_Comm_free(&ring);
    MPI_Comm_free(&grid);
    free(sent);
}

/* -- messages between two ranks ------------------------------------------------------------------------------------ */

/* Sends the right neighbour its element, and says what comes from the left. */
static void send_right(void) {
    MPI_Isend(sent + right * stride, 1, type, right, 7, comm, &sending);
    put(want, 0, left, rank);
    reaches(1);
}

static int sent_is(int error) {
    MPI_Wait(&sending, MPI_STATUS_IGNORE);
    return error;
}

int call_Recv(void) {
    send_right();
    return sent_is(MPI_Recv(into, 1, type, left, 7, comm, MPI_STATUS_IGNORE));
}

/* A message that is shorter than the buffer: all of the buffer might have been written to. */
int call_Recv_of_nothing(void) {
    reaches(size);
    MPI_Isend(sent, 0, type, right, 7, comm, &sending);
    return sent_is(MPI_Recv(into, size, type, left, 7, comm, MPI_STATUS_IGNORE));
}

/* From MPI_BOTTOM, by an absolute address, of elements that go downwards. */
int call_Recv_downwards(void) {
    MPI_Datatype down;
    MPI_Aint address;
    MPI_Get_address(into + (size - 1) * stride, &address);
    MPI_Datatype placed;
    MPI_Type_create_hindexed(1, (int[]){1}, &address, type, &placed);
    MPI_Type_create_resized(placed, address, -stride, &down);
    MPI_Type_commit(&down);
    MPI_Isend(sent, size, type, right, 7, comm, &sending);
    for (int r = 0; r < size; r++) put(want, size - 1 - r, left, r);
    int error = sent_is(MPI_Recv(MPI_BOTTOM, size, down, left, 7, comm, MPI_STATUS_IGNORE));
    MPI_Type_free(&placed);
    MPI_Type_free(&down);
    return error;
}

int call_Mrecv(void) {
    MPI_Message message;
    send_right();
    MPI_Mprobe(left, 7, comm, &message, MPI_STATUS_IGNORE);
    return sent_is(MPI_Mrecv(into, 1, type, &message, MPI_STATUS_IGNORE));
}

int call_Sendrecv(void) {
    put(want, 0, left, rank);
    reaches(1);
    return MPI_Sendrecv(sent + right * stride, 1, type, right, 7, into, 1, type, left, 7, comm, MPI_STATUS_IGNORE);
}

int post_Irecv(void) {
    reaches(1);
    return MPI_Irecv(into, 1, type, left, 7, comm, &request);
}
int end_Irecv(void) {
    send_right();
    return sent_is(MPI_Wait(&request, MPI_STATUS_IGNORE));
}

int post_Irecv_waitall(void) { return post_Irecv(); }
int end_Irecv_waitall(void) {
    send_right();
    MPI_Request both[2] = {request, sending};
    return MPI_Waitall(2, both, MPI_STATUSES_IGNORE);
}

int post_Recv_init(void) {
    reaches(1);
    return MPI_Recv_init(into, 1, type, left, 7, comm, &request);
}
int end_Recv_init(void) {
    send_right();
    MPI_Start(&request);
    int error = sent_is(MPI_Wait(&request, MPI_STATUS_IGNORE));
    MPI_Request_free(&request);
    return error;
}

/* -- collectives --------------------------------------------------------------------------------------------------- */

static int waited(void) { return MPI_Wait(&request, MPI_STATUS_IGNORE); }

/* What each rank sends this one, as element 0, 1, ..., or backwards as `places` says. */
static void expect_each(int backwards) {
    for (int r = 0; r < size; r++) put(want, backwards ? places[r] : r, r, rank);
}

/* What each rank sends all: its element 0. */
static void expect_shares(int backwards) {
    for (int r = 0; r < size; r++) put(want, backwards ? places[r] : r, r, 0);
}

int call_Bcast(void) {
    reaches(1); /* of the root too: the call does not say that it only sends */
    put(want, 0, 0, 0);
    if (rank == 0) memcpy(into, sent, (size_t)n), memcpy(into + apart, sent + apart, (size_t)n);
    return MPI_Bcast(into, 1, type, 0, comm);
}

/* Elsewhere than at the root the arguments for receiving are not looked at, whatever they are. */
int call_Gather(void) {
    if (rank == 1) {
        expect_shares(0);
        return MPI_Gather(sent, 1, type, into, 1, type, 1, comm);
    }
    reaches(0);
    return MPI_Gather(sent, 1, type, into, 1, MPI_DATATYPE_NULL, 1, comm);
}

int call_Gatherv(void) {
    if (rank == 1) {
        expect_shares(1);
        return MPI_Gatherv(sent, 1, type, into, one, places, type, 1, comm);
    }
    reaches(0);
    return MPI_Gatherv(sent, 1, type, into, NULL, NULL, MPI_DATATYPE_NULL, 1, comm);
}

/* Nor are they in place. */
int call_Scatter(void) {
    if (rank == 0) {
        reaches(0);
        return MPI_Scatter(sent, 1, type, MPI_IN_PLACE, 1, MPI_DATATYPE_NULL, 0, comm);
    }
    reaches(1);
    put(want, 0, 0, rank);
    return MPI_Scatter(NULL, 0, MPI_DATATYPE_NULL, into, 1, type, 0, comm);
}

int call_Allgather(void) {
    expect_shares(0);
    return MPI_Allgather(sent, 1, type, into, 1, type, comm);
}

int call_Allgather_in_place(void) {
    expect_shares(0);
    memcpy(into + rank * stride, sent, (size_t)n);
    memcpy(into + rank * stride + apart, sent + apart, (size_t)n);
    return MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, into, 1, type, comm);
}

int call_Allgatherv(void) {
    expect_shares(1);
    return MPI_Allgatherv(sent, 1, type, into, one, places, type, comm);
}

int call_Alltoall(void) {
    expect_each(0);
    return MPI_Alltoall(sent, 1, type, into, 1, type, comm);
}

static const int *forwards(void) {
    static int in_order[16];
    for (int r = 0; r < size; r++) in_order[r] = r;
    return in_order;
}

int call_Alltoallv(void) {
    expect_each(1);
    return MPI_Alltoallv(sent, one, forwards(), type, into, one, places, type, comm);
}

/* What is sent lies the other way round in memory than what is received, in bytes. */
static const int *bytes_forwards(void) {
    static int in_order[16];
    for (int r = 0; r < size; r++) in_order[r] = (int)(r * stride);
    return in_order;
}

int call_Alltoallw(void) {
    expect_each(1);
    return MPI_Alltoallw(sent, one, bytes_forwards(), types, into, one, bytes_places, types, comm);
}

int call_Reduce(void) {
    reaches(rank == 1 ? size : 0);
    for (int r = 0; rank == 1 && r < size; r++) put_greatest(want, r, size - 1, r);
    return MPI_Reduce(sent, into, size, type, maximum, 1, comm);
}

int call_Allreduce(void) {
    for (int r = 0; r < size; r++) put_greatest(want, r, size - 1, r);
    return MPI_Allreduce(sent, into, size, type, maximum, comm);
}

int call_Reduce_scatter(void) {
    reaches(1);
    put_greatest(want, 0, size - 1, rank);
    return MPI_Reduce_scatter(sent, into, one, type, maximum, comm);
}

/* The library may use all of the buffer for its intermediate results: what it leaves elsewhere is not defined. */
int call_Reduce_scatter_in_place(void) {
    for (int r = 0; r < size; r++) put(into, r, rank, r);
    int error = MPI_Reduce_scatter(MPI_IN_PLACE, into, one, type, maximum, comm);
    memcpy(want + stride, into + stride, (size_t)((size - 1) * stride));
    put_greatest(want, 0, size - 1, rank);
    return error;
}

int call_Scan(void) {
    for (int r = 0; r < size; r++) put_greatest(want, r, rank, r);
    return MPI_Scan(sent, into, size, type, maximum, comm);
}

int call_Neighbor_alltoall(void) { /* on a grid of one dimension each rank has two neighbours */
    unsigned char *both = calloc(2, (size_t)stride);
    put(both, 0, rank, left);
    put(both, 1, rank, right + 20);
    put(want, 0, left, rank + 20);
    put(want, 1, right, rank);
    reaches(2);
    int error = MPI_Neighbor_alltoall(both, 1, type, into, 1, type, grid);
    free(both);
    return error;
}

int call_Neighbor_allgatherv(void) {
    put(want, places[0], left, 0); /* one neighbour, so the other places and counts are not looked at */
    from = places[0] * stride;
    to = from + apart + n;
    return MPI_Neighbor_allgatherv(sent, 1, type, into, one, places, type, ring);
}

int call_Neighbor_alltoallw(void) {
    expect_each(0);
    return MPI_Neighbor_alltoallw(sent, one, address_places, types, into, one, address_places, types, graph);
}

int post_Igatherv(void) {
    if (rank == 1) return MPI_Igatherv(sent, 1, type, into, one, places, type, 1, comm, &request);
    reaches(0);
    return MPI_Igatherv(sent, 1, type, into, NULL, NULL, MPI_DATATYPE_NULL, 1, comm, &request);
}
int end_Igatherv(void) {
    if (rank == 1) expect_shares(1);
    return waited();
}

int post_Ialltoallw(void) {
    return MPI_Ialltoallw(sent, one, bytes_forwards(), types, into, one, bytes_places, types, comm, &request);
}
int end_Ialltoallw(void) {
    expect_each(1);
    return waited();
}

/* -- one-sided, and files ------------------------------------------------------------------------------------------ */

int post_Win_create(void) {
    return MPI_Win_create(into, to, 1, MPI_INFO_NULL, comm, &window);
}
int end_Win_create(void) {
    MPI_Win_fence(0, window);
    MPI_Put(sent + right * stride, 1, type, right, 0, 1, type, window);
    int error = MPI_Win_fence(0, window);
    put(want, 0, left, rank);
    MPI_Win_free(&window);
    return error;
}

int post_Get(void) {
    reaches(1);
    MPI_Win_create(sent, size * stride, 1, MPI_INFO_NULL, comm, &window);
    MPI_Win_lock(MPI_LOCK_SHARED, left, 0, window);
    return MPI_Get(into, 1, type, left, rank * stride, 1, type, window);
}
int end_Get(void) {
    int error = MPI_Win_unlock(left, window);
    put(want, 0, left, rank);
    MPI_Win_free(&window);
    return error;
}

/* The file holds what every rank sends, in the form that it has in memory. */
static void open_file(void) {
    reaches(1);
    MPI_File_open(comm, path, MPI_MODE_CREATE | MPI_MODE_RDWR, MPI_INFO_NULL, &file);
    unsigned char *packed = malloc(2 * (size_t)n);
    memcpy(packed, sent + right * stride, (size_t)n);
    memcpy(packed + n, sent + right * stride + apart, (size_t)n);
    MPI_File_write_at_all(file, (MPI_Offset)rank * 2 * n, packed, 2 * n, MPI_BYTE, MPI_STATUS_IGNORE);
    MPI_File_sync(file);
    MPI_Barrier(comm);
    free(packed);
}

int call_File_read_at(void) {
    open_file();
    int error = MPI_File_read_at(file, (MPI_Offset)left * 2 * n, into, 1, type, MPI_STATUS_IGNORE);
    put(want, 0, left, rank);
    MPI_File_close(&file);
    return error;
}

int post_File_iread_at(void) {
    open_file();
    return MPI_File_iread_at(file, (MPI_Offset)left * 2 * n, into, 1, type, &request);
}
int end_File_iread_at(void) {
    int error = waited();
    put(want, 0, left, rank);
    MPI_File_close(&file);
    return error;
}
