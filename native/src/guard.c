/* Opening and pinning, and the life of the guard. The guard is open from before a program's first receive until its session is
 * closed, so that receives that are posted early are known when the regions are sealed.
 *
 * Pinned ranges are kept in a list under a lock, and as a count in each block of a sealed session; a block with a count is
 * never protected. Nothing here runs in the fault handler, but opening does what the handler would. */
#include "guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hooks.h"
#include "windows.h"

typedef struct range {
    uintptr_t from;
    size_t bytes;
    uint32_t users; /* calls of mpk_pin; a buffer of an MPI call counts once, and is never unpinned */
} range;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list of ranges */
static range *ranges; /* ascending; no two alike */
static size_t n_ranges, room_for_ranges;

static _Atomic uint32_t waiting; /* threads of the program that wait in a call */

static bool is_open, donates;
static mpk__hook **sorted;
static size_t n_hooks;

/* -- blocks ----------------------------------------------------------------------------------------------------------- */

typedef void block_action(mpk_session *s, uint32_t b);

static void for_each_block(mpk_session *s, uintptr_t from, size_t bytes, block_action *act) {
    for (uint32_t i = 0; i < s->blocks.n_regions; i++) {
        const mpk__region *r = &s->blocks.regions[i];
        uintptr_t pages = (uintptr_t)r->pages;
        if (r->n_blocks == 0 || from >= pages + r->span || pages >= from + bytes) continue;
        uintptr_t first = from > pages ? (from - pages) / s->blocks.block_bytes : 0;
        uintptr_t last = (from + bytes < pages + r->span ? from + bytes - pages : r->span) - 1;
        for (uintptr_t k = first; k <= last / s->blocks.block_bytes; k++) act(s, r->first_block + (uint32_t)k);
    }
}

static void open_block(mpk_session *s, uint32_t b) {
    if (!atomic_load(&s->blocks.opened[b])) mpk__write_to_block_in_handler(s, b);
}

static void pin_block(mpk_session *s, uint32_t b) {
    atomic_fetch_add(&s->blocks.pins[b], 1); /* first, so that no cut protects it again */
    open_block(s, b);
}

static void unpin_block(mpk_session *s, uint32_t b) { atomic_fetch_sub(&s->blocks.pins[b], 1); }

void mpk__open_range(const void *memory, size_t bytes) {
    mpk_session *s = mpk__watched_session();
    if (s && bytes && mpk__memory_is_protected()) for_each_block(s, (uintptr_t)memory, bytes, open_block);
}

/* -- pinned ranges ---------------------------------------------------------------------------------------------------- */

static size_t position(uintptr_t from, size_t bytes) {
    size_t low = 0, high = n_ranges;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (ranges[mid].from < from || (ranges[mid].from == from && ranges[mid].bytes < bytes))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool is_at(size_t i, uintptr_t from, size_t bytes) {
    return i < n_ranges && ranges[i].from == from && ranges[i].bytes == bytes;
}

/* Adds a user of a range; with `once`, only if there is none. */
static int add_user(uintptr_t from, size_t bytes, bool once) {
    int error = 0;
    pthread_mutex_lock(&lock);
    size_t at = position(from, bytes);
    if (!is_at(at, from, bytes)) {
        if (n_ranges == room_for_ranges) {
            size_t room = room_for_ranges ? 2 * room_for_ranges : 64;
            range *grown = realloc(ranges, sizeof *grown * room);
            if (grown) {
                ranges = grown;
                room_for_ranges = room;
            } else {
                error = -ENOMEM;
            }
        }
        if (!error) {
            memmove(&ranges[at + 1], &ranges[at], sizeof *ranges * (n_ranges - at));
            ranges[at] = (range){from, bytes, 1};
            n_ranges++;
            mpk_session *s = mpk__watched_session();
            if (s) for_each_block(s, from, bytes, pin_block);
        }
    } else if (!once) {
        ranges[at].users++;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

void mpk__open_and_pin(const void *memory, size_t bytes) {
    if (bytes == 0) return;
    if (add_user((uintptr_t)memory, bytes, true) != 0)
        mpk__prim_say_in_handler("mpickpt: no memory to note a buffer that is in use: its image may be wrong\n");
}

int mpk_pin(const void *memory, size_t bytes) { return bytes ? add_user((uintptr_t)memory, bytes, false) : 0; }

void mpk_unpin(const void *memory, size_t bytes) {
    uintptr_t from = (uintptr_t)memory;
    pthread_mutex_lock(&lock);
    size_t at = position(from, bytes);
    if (bytes && is_at(at, from, bytes) && --ranges[at].users == 0) {
        n_ranges--;
        memmove(&ranges[at], &ranges[at + 1], sizeof *ranges * (n_ranges - at));
        mpk_session *s = mpk__watched_session();
        if (s) for_each_block(s, from, bytes, unpin_block);
    }
    pthread_mutex_unlock(&lock);
}

void mpk__guard_pin_ranges(mpk_session *s) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_ranges; i++) for_each_block(s, ranges[i].from, ranges[i].bytes, pin_block);
    pthread_mutex_unlock(&lock);
}

void mpk__guard_before_fork(void) { pthread_mutex_lock(&lock); }
void mpk__guard_after_fork(void) { pthread_mutex_unlock(&lock); }

/* -- waiting ---------------------------------------------------------------------------------------------------------- */

bool mpk__waiting_begin(void) {
    if (!donates || !mpk__drain_is_active()) return false;
    if (atomic_fetch_add(&waiting, 1) == 0) mpk__drain_wake_in_handler(&mpk__watched_session()->drain);
    return true;
}

void mpk__waiting_end(void) {
    if (atomic_fetch_sub(&waiting, 1) != 1) return;
    mpk_session *s = mpk__watched_session();
    if (s) mpk__drain_wake_in_handler(&s->drain); /* the idle threads are wanted again, and may be sleeping */
}

bool mpk__program_waits(void) { return atomic_load(&waiting) != 0; }

/* -- life ------------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp((*(mpk__hook *const *)a)->name, (*(mpk__hook *const *)b)->name);
}

static int sort_hooks(void) {
    mpk__hook *calls[2];
    size_t n[2] = {mpk__mpi_hooks(&calls[0]), mpk__libc_hooks(&calls[1])};
    sorted = malloc(sizeof *sorted * (n[0] + n[1]));
    if (!sorted) return -ENOMEM;
    for (int part = 0; part < 2; part++)
        for (size_t i = 0; i < n[part]; i++) sorted[n_hooks++] = &calls[part][i];
    qsort((void *)sorted, n_hooks, sizeof *sorted, by_name);
    return 0;
}

static int apply(void) {
    int error = mpk__interpose_apply(sorted, n_hooks);
    mpk__mpi_resolve();
    return error;
}

int mpk_guard_open(unsigned flags) {
    if (is_open) return -EBUSY;
    donates = !(flags & MPK_GUARD_KEEPS_CORES);
    int error = sorted ? 0 : sort_hooks();
    if (!error) error = apply();
    is_open = true;
    if (error) mpk_guard_close();
    return error;
}

int mpk_guard_refresh(void) {
    if (!is_open || !mpk__interpose_is_stale()) return 0;
    int error = apply();
    return error ? error : 1;
}

const char *mpk_guard_unguarded(size_t n, int *error) { return mpk__interpose_refused(n, error); }

void mpk_guard_close(void) {
    if (!is_open) return;
    mpk__interpose_undo(sorted, n_hooks);
    free(ranges);
    ranges = NULL;
    n_ranges = room_for_ranges = 0;
    mpk__forget_windows();
    is_open = false;
}
