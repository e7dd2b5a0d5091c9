/* The MPI calls, without an MPI header. On x86-64 and aarch64 every argument of an MPI function, whether pointer, int,
 * MPI_Count or handle, has a register or a stack slot of 64 bits, so a hook can take all as such and hand them on as they
 * came, whatever the library's handles are. What has to be known of datatypes and communicators is asked of the library
 * itself by its profiling names, which are not interposed. */
#define _GNU_SOURCE
#include <string.h>

#include "hooks.h"
#include "mpi_calls.h"
#include "windows.h"

typedef uintptr_t word;

enum shape { S_NOTHING, S_PLAIN, S_ONE, S_EACH, S_VECTOR, S_TYPES, S_SHARE, S_PARTS, S_BYTES, S_MAKES, S_SHOWS, S_FREES };
enum { LATER = 1, NEAR = 2, AINT = 4, LARGE = 8 };

typedef struct target {
    unsigned char shape, flags;
    signed char buffer, count, displs, type, comm, root;
} target;

#define NOTHING {S_NOTHING, 0, -1, -1, -1, -1, -1, -1}
#define PLAIN(flags, buffer, count, type) {S_PLAIN, flags, buffer, count, -1, type, -1, -1}
#define ROOTED(flags, buffer, count, type, comm, root) {S_PLAIN, flags, buffer, count, -1, type, comm, root}
#define ONE(flags, buffer, type) {S_ONE, flags, buffer, -1, -1, type, -1, -1}
#define EACH(flags, buffer, count, type, comm, root) {S_EACH, flags, buffer, count, -1, type, comm, root}
#define VECTOR(flags, buffer, counts, displs, type, comm, root) {S_VECTOR, flags, buffer, counts, displs, type, comm, root}
#define TYPES(flags, buffer, counts, displs, types, comm) {S_TYPES, flags, buffer, counts, displs, types, comm, -1}
#define SHARE(flags, buffer, counts, type, comm) {S_SHARE, flags, buffer, counts, -1, type, comm, -1}
#define PARTS(flags, buffer, partitions, count, type) {S_PARTS, flags, buffer, count, partitions, type, -1, -1}
#define BYTES(flags, buffer, bytes) {S_BYTES, flags, buffer, bytes, -1, -1, -1, -1}
#define MAKES(flags, address, bytes, window) {S_MAKES, flags, address, bytes, -1, window, -1, -1}
#define SHOWS(flags, address, bytes, window) {S_SHOWS, flags, address, bytes, -1, window, -1, -1}
#define FREES(flags, window) {S_FREES, flags, -1, -1, -1, window, -1, -1}

#define IDENTITY(name, n, waits, ...) CALL_##name,
#define IDENTITIES(name, n, waits, ...) CALL_##name, CALL_##name##_c,
enum { MPK__MPI_CALLS(IDENTITY, IDENTITIES) N_CALLS };

static mpk__hook hooks[N_CALLS];

/* What tells the libraries apart; of the MPI 5 ABI, MPICH (also Intel's and Cray's), and Open MPI. */
typedef struct flavour {
    size_t handle_bytes;
    int root, cartesian, graph;
} flavour;
static const flavour standard_abi = {sizeof(void *), -4, 211, 212};
static const flavour mpich = {sizeof(int), -3, 2, 1};
static const flavour open_mpi = {sizeof(void *), -4, 1, 2};

static struct {
    int (*type_extent)(word type, int64_t *low, int64_t *extent);
    int (*type_true_extent)(word type, int64_t *low, int64_t *extent);
    int (*comm_rank)(word comm, int *rank);
    int (*comm_size)(word comm, int *size);
    int (*comm_is_inter)(word comm, int *flag);
    int (*comm_remote_size)(word comm, int *size);
    int (*topology)(word comm, int *kind);
    int (*cart_dims)(word comm, int *n);
    int (*graph_neighbours)(word comm, int rank, int *n);
    int (*dist_graph_neighbours)(word comm, int *in, int *out, int *weighted);
    const flavour *library;
    bool known;
} mpi;

/* The library itself tells. Libraries of MPI 5 with an ABI of their own have the function, too, and say -1. */
static bool follows_standard_abi(void) {
    int (*version)(int *major, int *minor) = (int (*)(int *, int *))mpk__interpose_find("PMPI_Abi_get_version");
    int major = 0, minor = 0;
    return version && version(&major, &minor) == 0 && major > 0;
}

void mpk__mpi_resolve(void) {
    if (mpi.known) return;
    const struct {
        void **function;
        const char *name;
    } wanted[] = {
        {(void **)&mpi.type_extent, "PMPI_Type_get_extent"},
        {(void **)&mpi.type_true_extent, "PMPI_Type_get_true_extent"},
        {(void **)&mpi.comm_rank, "PMPI_Comm_rank"},
        {(void **)&mpi.comm_size, "PMPI_Comm_size"},
        {(void **)&mpi.comm_is_inter, "PMPI_Comm_test_inter"},
        {(void **)&mpi.comm_remote_size, "PMPI_Comm_remote_size"},
        {(void **)&mpi.topology, "PMPI_Topo_test"},
        {(void **)&mpi.cart_dims, "PMPI_Cartdim_get"},
        {(void **)&mpi.graph_neighbours, "PMPI_Graph_neighbors_count"},
        {(void **)&mpi.dist_graph_neighbours, "PMPI_Dist_graph_neighbors_count"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].function = mpk__interpose_find(wanted[i].name);
        if (!*wanted[i].function) return; /* no MPI library yet */
    }
    mpi.library = follows_standard_abi() ? &standard_abi : mpk__interpose_find("ompi_mpi_comm_world") ? &open_mpi : &mpich;
    mpi.known = true;
}

/* -- what a call writes -------------------------------------------------------------------------------------------- */

static void reach(const target *t, word memory, size_t bytes) {
    if (t->flags & LATER)
        mpk__open_and_pin((const void *)memory, bytes);
    else
        mpk__open_range((const void *)memory, bytes);
}

/* MPI_IN_PLACE of the libraries: nothing is received there. */
static bool is_in_place(word buffer) { return buffer == 1 || buffer == (word)-1; }

/* `count` elements of `type` at `buffer`: from the first byte of any to the last byte of any. */
static void reach_elements(const target *t, word buffer, int64_t count, word type) {
    if (count <= 0 || is_in_place(buffer)) return;
    int64_t low, extent, true_low, true_extent;
    if (mpi.type_extent(type, &low, &extent) != 0 || mpi.type_true_extent(type, &true_low, &true_extent) != 0) return;
    int64_t last = (count - 1) * extent; /* may be negative: elements may go downwards */
    int64_t from = true_low + (last < 0 ? last : 0), to = true_low + true_extent + (last > 0 ? last : 0);
    if (to > from) reach(t, buffer + (word)from, (size_t)(to - from));
}

static int64_t number(const target *t, word argument) { return t->flags & LARGE ? (int64_t)argument : (int)argument; }

static int64_t number_at(const target *t, word array, int i) {
    if (array == 0) return 0;
    return t->flags & LARGE ? ((const int64_t *)array)[i] : ((const int *)array)[i];
}

static int64_t displacement_at(const target *t, word array, int i) {
    return t->flags & AINT ? ((const int64_t *)array)[i] : number_at(t, array, i);
}

static word handle_at(word array, int i) {
    return mpi.library->handle_bytes == sizeof(int) ? (word)((const unsigned *)array)[i] : ((const word *)array)[i];
}

/* From how many processes data may come. */
static int sources(const target *t, word comm) {
    int n = 0, kind = 0, inter = 0;
    if (!(t->flags & NEAR)) {
        mpi.comm_is_inter(comm, &inter);
        inter ? mpi.comm_remote_size(comm, &n) : mpi.comm_size(comm, &n);
        return n;
    }
    mpi.topology(comm, &kind);
    if (kind == mpi.library->cartesian) {
        mpi.cart_dims(comm, &n);
        return 2 * n;
    }
    int rank = 0, out, weighted;
    mpi.comm_rank(comm, &rank);
    if (kind == mpi.library->graph)
        mpi.graph_neighbours(comm, rank, &n);
    else
        mpi.dist_graph_neighbours(comm, &n, &out, &weighted);
    return n;
}

/* Elsewhere than at the root the receiving arguments mean nothing, and may be anything. */
static bool receives(const target *t, const word *args) {
    if (t->root < 0) return true;
    int root = (int)args[t->root], rank = -1, inter = 0;
    mpi.comm_is_inter(args[t->comm], &inter);
    if (inter) return root == mpi.library->root;
    mpi.comm_rank(args[t->comm], &rank);
    return rank == root;
}

static void reach_vector(const target *t, const word *args) {
    int n = sources(t, args[t->comm]);
    word buffer = args[t->buffer];
    for (int i = 0; i < n; i++) {
        int64_t count = number_at(t, args[t->count], i), displacement = displacement_at(t, args[t->displs], i);
        word type = t->shape == S_TYPES ? 0 : args[t->type];
        int64_t low, extent = 1;
        if (count <= 0) continue;
        if (t->shape == S_TYPES)
            type = handle_at(args[t->type], i);
        else if (mpi.type_extent(type, &low, &extent) != 0)
            continue;
        reach_elements(t, buffer + (word)(displacement * extent), count, type);
    }
}

/* A reduced array is scattered: this rank's count, or all of it if the array is reduced in place. */
static int64_t share(const target *t, const word *args) {
    int n = 0, rank = 0;
    mpi.comm_rank(args[t->comm], &rank);
    if (!is_in_place(args[t->buffer - 1])) return number_at(t, args[t->count], rank);
    int64_t all = 0;
    mpi.comm_size(args[t->comm], &n);
    for (int i = 0; i < n; i++) all += number_at(t, args[t->count], i);
    return all;
}

static void reach_target(const target *t, const word *args) {
    if (t->shape == S_BYTES) {
        reach(t, args[t->buffer], (size_t)args[t->count]);
        return;
    }
    if (!mpi.known || !receives(t, args)) return;
    word buffer = args[t->buffer], type = args[t->type];
    int64_t count = 1;
    switch ((enum shape)t->shape) {
    case S_PLAIN: count = number(t, args[t->count]); break;
    case S_EACH: count = number(t, args[t->count]) * sources(t, args[t->comm]); break;
    case S_PARTS: count = (int)args[t->displs] * (int64_t)args[t->count]; break;
    case S_SHARE: count = share(t, args); break;
    case S_VECTOR:
    case S_TYPES: reach_vector(t, args); return;
    case S_ONE:
    case S_BYTES:
    case S_MAKES:
    case S_SHOWS:
    case S_FREES:
    case S_NOTHING: break;
    }
    reach_elements(t, buffer, count, type);
}

/* -- windows -------------------------------------------------------------------------------------------------------- */

/* The window that a call frees, whose handle it overwrites. */
static word window_before(const target *t, const word *args) {
    return t->shape == S_FREES && mpi.known ? handle_at(args[t->type], 0) : 0;
}

static void note_window(const target *t, const word *args, word freed) {
    if (!mpi.known) return;
    if (t->shape == S_FREES) {
        mpk__window_ends(freed);
        return;
    }
    bool shows = t->shape == S_SHOWS;
    word window = shows ? args[t->type] : handle_at(args[t->type], 0);
    if (mpi.library->handle_bytes == sizeof(int)) window = (unsigned)window;
    int64_t bytes = shows ? *(const int64_t *)args[t->count] : (int64_t)args[t->count];
    mpk__window_begins(window, *(void *const *)args[t->buffer], (size_t)bytes);
}

/* -- the hooks ------------------------------------------------------------------------------------------------------ */

#define TARGET(name, n, waits, ...) __VA_ARGS__,
#define TARGETS(name, n, waits, ...) __VA_ARGS__, __VA_ARGS__,
static target targets[N_CALLS] = {MPK__MPI_CALLS(TARGET, TARGETS)};

static inline bool is_about_windows(const target t) { return t.shape >= S_MAKES; }

/* `t` is the call's entry of the table: known when this is compiled, so that little is left of it. */
static inline bool concerns_us(const target t) {
    return t.shape != S_NOTHING && !is_about_windows(t) && ((t.flags & LATER) || mpk__memory_is_protected());
}

#define P4 word a0, word a1, word a2, word a3
#define A4 a0, a1, a2, a3
#define P1 word a0
#define A1 a0
#define P2 word a0, word a1
#define A2 a0, a1
#define P3 word a0, word a1, word a2
#define A3 a0, a1, a2
#define P5 P4, word a4
#define A5 A4, a4
#define P6 P5, word a5
#define A6 A5, a5
#define P7 P6, word a6
#define A7 A6, a6
#define P8 P7, word a7
#define A8 A7, a7
#define P9 P8, word a8
#define A9 A8, a8
#define P10 P9, word a9
#define A10 A9, a9
#define P11 P10, word a10
#define A11 A10, a10
#define P12 P11, word a11
#define A12 A11, a11
#define P13 P12, word a12
#define A13 A12, a12

/* A call that has something to do, on its way to `real`; and one hook for each definition that the program may have. */
#define HOOK(name, n, waits, ...)                                                  \
    static __attribute__((noinline)) word guard_##name(word (*real)(P##n), P##n) { \
        if (is_about_windows((target)__VA_ARGS__)) {                               \
            const word args[] = {A##n};                                            \
            word freed = window_before(&targets[CALL_##name], args);               \
            word done = real(A##n);                                                \
            if ((int)done == 0) note_window(&targets[CALL_##name], args, freed);   \
            return done;                                                           \
        }                                                                          \
        if (concerns_us((target)__VA_ARGS__)) {                                    \
            const word args[] = {A##n};                                            \
            reach_target(&targets[CALL_##name], args);                             \
        }                                                                          \
        bool donates_core = (waits) && mpk__waiting_begin();                       \
        word result = real(A##n);                                                  \
        if (donates_core) mpk__waiting_end();                                      \
        return result;                                                             \
    }                                                                              \
    HOOK_OF(0, name, n, waits, __VA_ARGS__)                                        \
    HOOK_OF(1, name, n, waits, __VA_ARGS__)                                        \
    HOOK_OF(2, name, n, waits, __VA_ARGS__)                                        \
    HOOK_OF(3, name, n, waits, __VA_ARGS__)
#define HOOK_OF(i, name, n, waits, ...)                                                    \
    static word guarded_##name##_##i(P##n) {                                               \
        word (*real)(P##n) = (word (*)(P##n))hooks[CALL_##name].reals[i];                  \
        if (!is_about_windows((target)__VA_ARGS__) && !concerns_us((target)__VA_ARGS__) && \
            !((waits) && mpk__drain_is_active()))                                          \
            return real(A##n);                                                             \
        return guard_##name(real, A##n);                                                   \
    }
#define HOOKS(name, n, waits, ...) HOOK(name, n, waits, __VA_ARGS__) HOOK(name##_c, n, waits, __VA_ARGS__)
MPK__MPI_CALLS(HOOK, HOOKS)

#define TABLE(name, n, waits, ...) {#name, MPK__REPLACEMENTS(guarded_##name), {0}, {0}},
#define TABLES(name, n, waits, ...) TABLE(name, n, waits) TABLE(name##_c, n, waits)
static mpk__hook hooks[N_CALLS] = {MPK__MPI_CALLS(TABLE, TABLES)};

size_t mpk__mpi_hooks(mpk__hook **out) {
    for (int i = 0; i < N_CALLS; i++) {
        size_t length = strlen(hooks[i].name);
        if (strcmp(hooks[i].name + length - 2, "_c") == 0) targets[i].flags |= LARGE;
    }
    *out = hooks;
    return N_CALLS;
}
