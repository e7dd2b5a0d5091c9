/* The life of a session: regions are added, sealed, cut any number of times, unsealed. All of it runs on the thread
 * that owns the session, while no other thread of the program writes to a region. */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "fork.h"
#include "guard.h"
#include "mapping.h"
#include "writer.h"

#define SLICE_NS 100000000 /* of a wait for a drain, which the storage may hold up */
#define SWEEP_US 10000 /* a huge page in so long, or it is too slow for a sweep: 200 MiB/s */

void *mpk_alloc(size_t bytes, unsigned flags) { return mpk__prim_map(bytes, flags & MPK_ALLOC_HUGE); }
void mpk_free(void *memory, size_t bytes) { mpk__prim_unmap(memory, bytes); }

int mpk_session_create(mpk_session **out, unsigned flags) {
    mpk_session *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    s->drain.want_direct = !(flags & MPK_SESSION_BUFFERED);
    s->order.ignores_deadlines = flags & MPK_SESSION_BY_ADDRESS;
    s->sweep = (mpk__sweep){.unit_bytes = MPK__HUGE_PAGE, .us = SWEEP_US};
    s->epoch.direct_fd = s->epoch.buffered_fd = -1;
    atomic_init(&s->epoch.torn_region, -1);
    atomic_init(&s->epoch.unsynced_file, -1);
    mpk__untracked_forget(&s->untracked);
    *out = s;
    return 0;
}

void mpk_session_ask_before_taking(mpk_session *s, mpk_may_take *may, void *context) {
    s->taking = (mpk__taking){.may = may, .context = context};
}

size_t mpk_session_pool_bytes(const mpk_session *s) { return s->pool.entry_bytes * s->pool.n_entries; }

void mpk_session_destroy(mpk_session *s) {
    if (!s || mpk_session_unseal(s) != 0) return;
    free(s->drain.stall_text);
    free(s);
}

int mpk_session_set_stall_limit(mpk_session *s, uint64_t limit_ns, const char *text) {
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy) return -ENOMEM;
    free(s->drain.stall_text);
    s->drain.stall_text = copy;
    s->drain.stall_limit_ns = limit_ns;
    return 0;
}

int mpk_region_add(mpk_session *s, void *memory, size_t bytes, unsigned flags) {
    return s->sealed ? -EBUSY : mpk__regions_add(&s->blocks, memory, bytes, flags & MPK_REGION_OWNED);
}

int mpk__session_is_valid(const mpk_session *s) {
    if (mpk__drain_is_open(&s->drain)) return 1; /* in motion: nothing can be said */
    if (atomic_load(&s->epoch.pending) != 0) return 0;
    return mpk__blocks_are_done(&s->blocks) && mpk__pool_is_free(&s->pool);
}

static void free_parts(mpk_session *s) {
    mpk__pool_destroy(&s->pool);
    mpk__history_destroy(&s->history);
    mpk__order_destroy(&s->order);
    mpk__blocks_destroy(&s->blocks);
    mpk__untracked_forget(&s->untracked);
}

static int create_parts(mpk_session *s, size_t block_bytes, size_t pool_bytes) {
    size_t n_entries = (pool_bytes + block_bytes - 1) / block_bytes;
    int error = mpk__blocks_create(&s->blocks, block_bytes);
    if (error) return error;
    s->blocks.cut = MPK__RESTORED_CUT;
    mpk__pin_blocks(&s->blocks);
    if (s->blocks.n_pinned > n_entries) return -ENOBUFS;
    error = mpk__history_create(&s->history, s->blocks.n);
    if (!error) error = mpk__order_create(&s->order, &s->blocks);
    if (!error) error = mpk__pool_create(&s->pool, block_bytes, n_entries, s->blocks.n_pinned, &s->taking);
    return error;
}

int mpk_session_seal(mpk_session *s, size_t block_bytes, size_t pool_bytes) {
    size_t page = mpk__prim_page_size();
    if (s->sealed) return -EBUSY;
    if (block_bytes < page || block_bytes < MPK__IO_ALIGN || (block_bytes & (block_bytes - 1))) return -EINVAL;
    mpk_crc32c(0, "", 0); /* makes its tables, which the handler must not */
    int error = mpk_session_look_up(s);
    if (!error) error = create_parts(s, block_bytes, pool_bytes);
    if (!error) error = mpk__fault_watch(s);
    if (error) {
        free_parts(s);
        return error;
    }
    error = mpk__drain_start_threads(s);
    if (error) {
        mpk__fault_unwatch();
        free_parts(s);
        return error;
    }
    s->sealed = true;
    mpk__guard_pin_ranges(s);
    return 0;
}

void mpk__session_free(mpk_session *s) {
    mpk__workers_free_buffers(&s->drain.workers);
    mpk__writer_close(&s->epoch);
    free_parts(s);
    mpk__epoch_free(&s->epoch);
    mpk__regions_forget(&s->blocks);
    free(s->drain.stall_text);
    free(s);
}

static void wait_for_drain(mpk_session *s) {
    mpk__patience patience = {.ended = atomic_load(&s->drain.calls_ended)};
    uint64_t start = mpk__prim_now_ns();
    while (!mpk_session_wait(s, SLICE_NS)) {
        uint64_t now = mpk__prim_now_ns();
        mpk__drain_waited_in_handler(s, &patience, now - start);
        start = now;
    }
}

int mpk_session_unseal(mpk_session *s) {
    if (s->sealed) {
        bool awaits = atomic_load(&s->epoch.channels_state) == MPK__CHANNELS_PENDING ||
                      (mpk__drain_is_open(&s->drain) && atomic_load(&s->drain.opening) == MPK__AWAITED);
        if (awaits) mpk__epoch_fail_in_handler(s, ECANCELED);
        mpk_session_boost(s, 1);
        wait_for_drain(s);
        mpk_session_boost(s, 0);
        bool hangs = atomic_load(&s->drain.state) == MPK_DRAIN_HUNG && !mpk__is_forked_in_handler();
        if (!hangs) mpk__drain_stop_threads(s);
        mpk__blocks_open_all(&s->blocks);
        mpk__fault_unwatch();
        if (hangs) {
            mpk__drain_abandon_threads(s); /* s is gone */
            return -EBUSY;
        }
        free_parts(s);
        mpk__epoch_free(&s->epoch);
        s->sealed = false;
    }
    mpk__regions_forget(&s->blocks);
    return 0;
}

void mpk_session_boost(mpk_session *s, int on) { mpk__workers_boost(&s->drain.workers, on != 0); }

int mpk_session_wait(mpk_session *s, int64_t timeout_ns) {
    uint64_t start = mpk__prim_now_ns();
    while (atomic_load(&s->drain.state) == MPK_DRAIN_ACTIVE) {
        if (mpk__is_forked_in_handler()) return 1; /* the parent's drain */
        int64_t left = timeout_ns < 0 ? -1 : timeout_ns - (int64_t)(mpk__prim_now_ns() - start);
        if (timeout_ns >= 0 && left <= 0) return 0;
        mpk__prim_wait_in_handler(&s->drain.state, MPK_DRAIN_ACTIVE, left);
    }
    return 1;
}

static void tell_counts(const mpk__epoch *e, mpk_progress *out) {
    out->epoch = atomic_load(&e->number);
    out->blocks_copied = atomic_load(&e->blocks_copied);
    out->bytes_written = atomic_load(&e->bytes_written);
    out->bytes_waiting = atomic_load(&e->bytes_waiting);
    out->bytes_urgent = atomic_load(&e->bytes_urgent);
    out->blocked_ns = atomic_load(&e->blocked_ns);
    out->stall_ns = atomic_load(&e->stall_ns);
    out->fault_ns = atomic_load(&e->fault_ns);
    out->faults = atomic_load(&e->faults);
    out->direct = atomic_load(&e->use_direct);
    out->torn_region = atomic_load(&e->torn_region);
    out->unsynced_file = atomic_load(&e->unsynced_file);
}

static void tell_untracked(const mpk_session *s, mpk_progress *out) {
    int64_t found = atomic_load(&s->untracked.found);
    out->untracked_region = -1;
    if (found < 0) return;
    mpk__place place = mpk__block_place_in_handler(&s->blocks, (uint32_t)found);
    out->untracked_region = (int32_t)(place.region - s->blocks.regions);
    out->untracked_offset = place.offset;
}

void mpk_session_progress(const mpk_session *s, mpk_progress *out) {
    const mpk__epoch *e = &s->epoch;
    uint32_t state = atomic_load(&s->drain.state);
    uint32_t pending = atomic_load(&e->pending);
    int error = atomic_load(&e->error);
    bool active = state == MPK_DRAIN_ACTIVE;
    bool awaits = active &&
                  atomic_load(&e->channels_state) == MPK__CHANNELS_PENDING; /* after pending, which then counts them */
    if (awaits && pending) pending--;
    *out = (mpk_progress){
        .state = (enum mpk_drain_state)state,
        .error = active                    ? 0
                 : error                   ? error
                 : state == MPK_DRAIN_HUNG ? ETIMEDOUT
                                           : 0,
        .blocks = s->blocks.n,
        .blocks_dirty = e->n_dirty,
        .blocks_saved = pending < e->n_dirty ? e->n_dirty - pending : 0,
        .drain_ns = active || state == MPK_DRAIN_HUNG ? mpk__prim_now_ns() - e->started_ns : atomic_load(&e->drain_ns),
        .channels_pending = awaits,
        .calls = atomic_load(&s->drain.calls),
        .calls_ended = atomic_load(&s->drain.calls_ended),
    };
    tell_counts(e, out);
    tell_untracked(s, out);
}
