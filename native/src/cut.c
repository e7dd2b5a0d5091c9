/* The cut: the instant at which the image of all regions is fixed. It runs on the thread that owns the session, while no
 * other thread of the program writes to a region, and holds the program up for as long as it takes. */
#include "cut.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "fork.h"
#include "mapping.h"
#include "session.h"

static void copy_edges(mpk__blocks *blocks) {
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *r = &blocks->regions[i];
        if (r->head) memcpy(r->edges, r->memory, r->head);
        if (r->tail) memcpy(r->edges + r->head, r->pages + r->data, r->tail);
    }
}

/* Puts a block into its state for this cut, and tells whether its pages are to be protected now. A drain thread may claim it
 * as soon as its word says PROTECTED. Thousands of full barriers would cost more than all else here: whoever protects makes
 * one. */
static bool set_state(void *session, uint32_t b) {
    mpk_session *s = session;
    mpk__blocks *blocks = &s->blocks;
    mpk__block_history *h = &s->history.block[b];
    bool is_closed = mpk__state_of(atomic_load(&blocks->words[b])) == MPK__CLEAN && !blocks->is_distrusted;
    h->is_pinned = !is_closed && atomic_load(&blocks->pins[b]) != 0;
    if (!h->is_pinned) mpk__block_note_closed(blocks, b);
    enum mpk__block_state state = h->is_pinned ? MPK__WRITABLE : h->is_dirty ? MPK__PROTECTED : MPK__CLEAN;
    mpk__word_set(blocks, b, mpk__word(blocks->cut, 0, state), memory_order_release);
    return !is_closed && !h->is_pinned;
}

static int compare_pinned(mpk_session *s) {
    int32_t torn = mpk__find_torn_region(&s->blocks);
    atomic_store(&s->epoch.torn_region, torn);
    return torn < 0 ? 0 : -EREMCHG;
}

/* In this file, so that the compiler can put set_state into its loop: a cut asks for each block. */
int mpk__blocks_protect(mpk__blocks *blocks, bool (*wants)(void *context, uint32_t b), void *context) {
    int error = 0;
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *r = &blocks->regions[i];
        uint32_t n = 0; /* wanted blocks just before block k */
        for (uint32_t k = 0; k <= r->n_blocks; k++) {
            if (k < r->n_blocks && wants(context, r->first_block + k)) {
                n++;
            } else if (n) {
                size_t start = (k - n) * blocks->block_bytes, end = k < r->n_blocks ? k * blocks->block_bytes : r->span;
                atomic_thread_fence(memory_order_seq_cst); /* whoever faults on these pages sees the words of their blocks */
                int failed = mpk__prim_protect_in_handler(r->pages + start, end - start, false);
                if (failed && !error) error = failed;
                n = 0;
            }
        }
    }
    blocks->is_distrusted = error != 0;
    return error;
}

/* A word is PROTECTED before its page is protected: a write in between, of a thread that should not run, is then one before
 * the cut and not a torn image. Pinned blocks are copied, which may wait for room in the pool. */
static int protect(mpk_session *s) {
    int error = mpk__blocks_protect(&s->blocks, set_state, s);
    bool first = true;
    for (uint32_t b = 0; b < s->blocks.n; b++) {
        if (!s->history.block[b].is_pinned) continue;
        if (first) mpk__drain_wake_in_handler(&s->drain); /* it makes the room */
        first = false;
        mpk__copy_pinned_block(s, b);
    }
    int torn = compare_pinned(s);
    return error ? error : torn;
}

/* Takes over the plan and finds out what is dirty. */
static int prepare(mpk_session *s, const mpk_plan *plan, uint64_t now_ns) {
    int error = mpk__epoch_take_plan(&s->epoch, plan, s->blocks.n_regions);
    if (error) return error;
    s->epoch.holding = mpk__holding_of(&s->history, plan->path);
    if (!s->epoch.holding) return -ENOMEM;
    error = mpk__fault_install();
    if (error) return error;
    MPK__ASSERT(mpk__blocks_are_done(&s->blocks) && mpk__blocks_are_counted(&s->blocks));
    copy_edges(&s->blocks);
    s->blocks.cut++;
    if (mpk__untracked_begin(&s->untracked, &s->blocks, now_ns - s->epoch.started_ns)) s->blocks.is_distrusted = true;
    s->epoch.started_ns = now_ns;
    uint32_t n_dirty = mpk__history_advance(&s->history, &s->blocks, s->epoch.holding->cut);
    mpk__order_begin(&s->order);
    mpk__epoch_begin(&s->epoch, n_dirty, s->blocks.n_pinned != 0);
    return 0;
}

int mpk_cut(mpk_session *s, const mpk_plan *plan) {
    if (!s->sealed || mpk__is_forked_in_handler()) return -EINVAL;
    if (plan->channels_follow && !plan->channels_spill_path) return -EINVAL;
    if (mpk__drain_is_open(&s->drain)) return -EBUSY;
    uint64_t start = mpk__prim_now_ns();
    int error = prepare(s, plan, start);
    if (error) return error;
    /* A drain thread that is still awake from the last epoch may begin on the first blocks at once: all that it needs
     * is in place, and the program is blocked. */
    mpk__drain_begin(&s->drain, s->order.chunk_blocks, plan->slot_follows != 0);
    error = protect(s);
    /* Not all are protected, or copies are torn; too late only if all is saved. */
    if (error) mpk__epoch_fail_in_handler(s, -error);
    if (s->blocks.n_pinned) mpk__epoch_finished_in_handler(s, 1);
    mpk__workers_wake_in_handler(&s->drain.workers, MPK__OPENS); /* which opens the slot and then wakes the others */
    atomic_store(&s->epoch.blocked_ns, mpk__prim_now_ns() - start);
    return 0;
}
