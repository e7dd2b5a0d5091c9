/* The drain: threads that save what is pending while the program computes. The idle threads do the work in time that
 * nobody wants; the urgent threads, of normal priority, take over when there is no such time, when the pool is over half
 * full, when the program itself waits in a call, or while they are boosted. All claim blocks by the same swaps, as many
 * as one call to the storage takes, so that none waits for another: a thread that is starved of the processor holds up the
 * blocks it has in hand, and the program not even on those.
 *
 * An idle thread beside a busy program gets the processor about once a second, and waits that long after each of its
 * calls to the storage. So it takes no more blocks once the urgent ones are at work, and the few calls that open a slot
 * and commit, which cost hardly any processor time, are always made by an urgent thread. */
#include "drain.h"

#include <errno.h>
#include <string.h>

#include "chaos.h"
#include "copy.h"
#include "guard.h"
#include "session.h"
#include "writer.h"

#define POLL_NS 5000000 /* between two times that it is asked whether the idle threads get on */
#define SAY_NS 30000000000u /* of waiting for the storage, until it is said */
#define LONGEST_SLICE_NS 500000000u /* of a wait: what it took longer the process was suspended */

/* A quarter of a chunk: what a thread has computed the checksums of is then still in the caches when it is written. That takes
 * more calls, of time that nobody wants; urgent threads take whole chunks. */
#define IDLE_SHARE 4

typedef struct run { /* what a thread saves next: so many blocks at most, adjacent where they can be */
    uint32_t most, count;
    uint32_t blocks[MPK__CHUNK_BLOCKS];
    uint64_t words[MPK__CHUNK_BLOCKS]; /* what each block's word was when it was claimed: DRAINING or DRAINING_COPY */
} run;

/* The threads' queues, from the first session on and for good: to close one takes long, as the kernel then waits for all
 * processors. There is one session at a time. */
static unsigned long queues[MPK__DRAIN_THREADS];

static bool is_wanted(const mpk_session *s, const mpk__worker *self) {
    if (!mpk__drain_is_open(&s->drain)) return false;
    bool urgently = atomic_load(&s->drain.starved) || atomic_load(&s->drain.workers.boost) || mpk__program_waits() ||
                    mpk__pool_is_pressed(&s->pool);
    /* After a failure what is still pending is dropped: no work, but an idle thread may be late for it. */
    urgently = urgently || atomic_load(&s->epoch.error);
    return self->urgent == urgently;
}

enum { WANT_PROTECTED = 1, WANT_COPIED = 2 }; /* which blocks are wanted */

/* Claims block b: PROTECTED becomes DRAINING, COPIED becomes DRAINING_COPY. False when it is not wanted or somebody else's. */
static bool claim(mpk_session *s, uint32_t b, int wanted, uint64_t *word) {
    uint64_t now = atomic_load(&s->blocks.words[b]);
    for (;;) {
        enum mpk__block_state state = mpk__state_of(now);
        if (!(state == MPK__PROTECTED && wanted & WANT_PROTECTED) && !(state == MPK__COPIED && wanted & WANT_COPIED))
            return false;
        uint64_t next = mpk__word(mpk__cut_of(now), mpk__entry_of(now),
                                  state == MPK__PROTECTED ? MPK__DRAINING : MPK__DRAINING_COPY);
        if (mpk__word_swap_in_handler(&s->blocks, b, &now, next)) {
            *word = next;
            return true;
        }
    }
}

/* Claims blocks of a chunk until the run is full; tells whether it is. */
static bool claim_in_chunk(mpk_session *s, const mpk__chunk *chunk, int wanted, run *out) {
    for (uint32_t b = chunk->first; b < chunk->first + chunk->count && out->count < out->most; b++)
        if (claim(s, b, wanted, &out->words[out->count])) out->blocks[out->count++] = b;
    return out->count == out->most;
}

/* Claims the next blocks that are pending, in the order of the epoch: first those that can be saved in time, and were not
 * copied already, then all. What is pending only becomes less, but for blocks that are put back by a thread that then
 * looks for more itself, so one round of all that finds nothing means that nothing is left to claim. Under pressure those
 * that free an entry come first. A thread that was late in the last epoch may read an order that is just being made: it then
 * misses blocks, but is woken once more for those. */
static bool claim_run(mpk_session *s, int wanted, run *out) {
    uint32_t n = atomic_load(&s->order.n);
    out->count = 0;
    if (wanted & WANT_PROTECTED) {
        uint64_t now = mpk__epoch_us(&s->epoch, mpk__prim_now_ns());
        for (uint32_t at = atomic_load(&s->order.cursor); (at = mpk__order_in_time(&s->order, at, now)) < n; at++) {
            atomic_store(&s->order.cursor, at); /* there may be more than a run in the chunk */
            if (claim_in_chunk(s, &s->order.chunks[atomic_load(&s->order.sequence[at])], WANT_PROTECTED, out)) return true;
        }
        atomic_store(&s->order.cursor, n);
    }
    uint32_t start = atomic_load(&s->order.late_cursor);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (start + i) % n, had = out->count;
        bool full = claim_in_chunk(s, &s->order.chunks[atomic_load(&s->order.sequence[at])], wanted, out);
        if (wanted & WANT_PROTECTED && out->count > had) atomic_store(&s->order.late_cursor, at);
        if (full) return true;
    }
    return out->count != 0;
}

/* Computing is the last resort: it reads all of the block, in time that the program may want. A block that was opened ahead
 * and has the checksum that it had was so needlessly. */
static void set_checksum(mpk_session *s, uint32_t b, const mpk__place *place, uint64_t word) {
    mpk__block_history *h = &s->history.block[b];
    if (atomic_load(&h->crc_is_known)) return;
    uint32_t last[2] = {s->blocks.crc[b][0], s->blocks.crc[b][1]};
    if (mpk__state_of(word) == MPK__DRAINING_COPY)
        memcpy(s->blocks.crc[b], s->pool.crc[mpk__entry_of(word)], sizeof s->blocks.crc[b]);
    else
        mpk__checksum_in_handler(&s->blocks, place, place->memory, s->blocks.crc[b]);
    if (h->was_ahead && memcmp(last, s->blocks.crc[b], sizeof last) == 0) atomic_store(&h->is_left_out, true);
}

void mpk__drain_waited_in_handler(mpk_session *s, mpk__patience *patience, uint64_t ns) {
    uint32_t ended = atomic_load(&s->drain.calls_ended);
    if (ended != patience->ended || atomic_load(&s->drain.calls) == 0) {
        *patience = (mpk__patience){.ended = ended};
        return;
    }
    patience->waited_ns += ns < LONGEST_SLICE_NS ? ns : LONGEST_SLICE_NS;
    if (patience->waited_ns >= SAY_NS && s->drain.stall_text && !atomic_exchange(&s->drain.stall_said, 1))
        mpk__prim_say_in_handler(s->drain.stall_text);
    if (s->drain.stall_limit_ns && patience->waited_ns >= s->drain.stall_limit_ns) mpk__epoch_give_up_in_handler(s);
}

static void begin_call(mpk__drain *drain) { atomic_fetch_add(&drain->calls, 1); }

static void end_call(mpk__drain *drain) {
    atomic_fetch_add(&drain->calls_ended, 1);
    atomic_fetch_sub(&drain->calls, 1);
}

static void open_slot(mpk_session *s) {
    begin_call(&s->drain);
    int error = mpk__writer_open(&s->epoch, s->drain.want_direct);
    end_call(&s->drain);
    if (error) mpk__epoch_fail_in_handler(s, -error);
}

static void open_epoch(mpk_session *s, bool has_slot) {
    mpk__order_chunks(&s->order, &s->history);
    if (has_slot) open_slot(s);
    atomic_store(&s->drain.opening, MPK__OPEN);
    mpk__prim_wake_in_handler(&s->drain.opening);
    if (s->epoch.n_dirty) mpk__drain_wake_in_handler(&s->drain); /* else nobody is needed before the commit */
    mpk__epoch_finished_in_handler(s, 1);
}

/* The slot is opened, and its record says WRITING, before the first block is overwritten. A thread that was late in
 * the last epoch may find blocks of this one before it has heard of it: hence asked for each run. */
static void begin(mpk_session *s, bool urgent) {
    uint32_t now;
    while ((now = atomic_load(&s->drain.opening)) != MPK__OPEN) {
        bool has_slot = now == MPK__NOT_OPEN;
        /* also for one that came here too late in the last epoch: it may be the only one awake */
        if (urgent && (has_slot || now == MPK__DROPPED)) {
            if (atomic_compare_exchange_strong(&s->drain.opening, &now, MPK__OPENING)) open_epoch(s, has_slot);
        } else {
            mpk__prim_wait_in_handler(&s->drain.opening, now, -1);
        }
    }
}

/* Computes the checksums of a run and writes its pieces. After a failure neither is done, but all else goes on.
 * Tells whether there are checksums. */
static bool put(mpk_session *s, const mpk__worker *self, const run *r) {
    if (atomic_load(&s->epoch.error)) return false;
    struct iovec pieces[MPK__CHUNK_BLOCKS];
    mpk__write writes[MPK__CHUNK_BLOCKS];
    const mpk__region *last = NULL;
    int n = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t b = r->blocks[i];
        mpk__place place = mpk__block_place_in_handler(&s->blocks, b);
        bool in_pool = mpk__state_of(r->words[i]) == MPK__DRAINING_COPY;
        uint8_t *image = in_pool ? mpk__pool_image(&s->pool, mpk__entry_of(r->words[i])) : place.memory;
        set_checksum(s, b, &place, r->words[i]);
        pieces[i] = (struct iovec){image, place.bytes};
        bool is_next = place.region == last && b == r->blocks[i - 1] + 1;
        if (!is_next) {
            uint64_t data_offset = s->epoch.plan->data_offsets[place.region - s->blocks.regions];
            writes[n++] = (mpk__write){&pieces[i], 0, data_offset + place.offset};
        }
        writes[n - 1].n++;
        last = place.region;
    }
    mpk__chaos();
    begin_call(&s->drain);
    int error = mpk__writer_put(&s->epoch, self, s->drain.queues[self->number], writes, n);
    end_call(&s->drain);
    if (error) mpk__epoch_fail_in_handler(s, -error);
    return true;
}

/* A block that was drained straight from memory. False when it is not saved yet: the program wrote to it meanwhile, so what
 * reached the file may be torn, and it is written once more, from the pool. */
static bool finish_drained(mpk_session *s, uint32_t b, uint64_t word, bool has_checksums) {
    if (has_checksums && !mpk__untracked_is_as_written(&s->untracked, &s->blocks, b)) mpk__epoch_fail_in_handler(s, EREMCHG);
    uint64_t done = mpk__word(mpk__cut_of(word), 0, MPK__CLEAN);
    if (mpk__word_swap_in_handler(&s->blocks, b, &word, done)) {
        mpk__history_note_saved(&s->history, &s->blocks, b, has_checksums);
        return true;
    }
    if (mpk__state_of(word) == MPK__WRITABLE) return true; /* opened without a copy, as the epoch has failed */
    mpk__word_set(&s->blocks, b, mpk__word(mpk__cut_of(word), mpk__entry_of(word), MPK__COPIED), memory_order_seq_cst);
    return false;
}

static void save_run(mpk_session *s, const mpk__worker *self, const run *r) {
    begin(s, self->urgent);
    uint64_t start = mpk__prim_now_ns();
    bool has_checksums = put(s, self, r);
    mpk__chaos();
    uint32_t saved = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t b = r->blocks[i];
        uint64_t word = r->words[i];
        if (mpk__state_of(word) == MPK__DRAINING) {
            saved += finish_drained(s, b, word, has_checksums);
            continue;
        }
        mpk__word_set(&s->blocks, b, mpk__word(mpk__cut_of(word), 0, MPK__WRITABLE), memory_order_seq_cst);
        mpk__pool_give_in_handler(&s->pool, mpk__entry_of(word));
        saved++;
    }
    if (self->urgent || !atomic_load(&s->drain.starved)) mpk__order_note_run(&s->order, (mpk__prim_now_ns() - start) / 1000);
    mpk__pool_notify_in_handler(&s->pool);
    if (saved) mpk__epoch_finished_in_handler(s, saved);
}

static void drain(mpk_session *s, const mpk__worker *self) {
    uint32_t most = s->order.chunk_blocks;
    run r = {.most = self->urgent || most < IDLE_SHARE ? most : most / IDLE_SHARE};
    while (is_wanted(s, self)) {
        begin(s, self->urgent); /* which makes the order */
        bool pressed = mpk__pool_is_pressed(&s->pool);
        if (!(pressed && claim_run(s, WANT_COPIED, &r)) && !claim_run(s, WANT_PROTECTED | WANT_COPIED, &r)) return;
        if (!self->urgent) atomic_fetch_add(&s->drain.idle_blocks, r.count);
        save_run(s, self, &r);
    }
    mpk__drain_wake_in_handler(&s->drain); /* the other class is wanted now, perhaps for what was put back, and may be asleep */
}

/* -- the threads ------------------------------------------------------------------------------------------------------ */

/* An idle thread that has no time to itself would be far behind the program, which then copies what might have been saved,
 * and a block that is copied costs the program more than one that is drained. As a run may well take long on slow storage,
 * the idle threads are starved if they claimed no chunk in the time that two runs recently took. Single runs do not count:
 * starved threads claim one now and then. */
static void poll_idle_threads(mpk_session *s) {
    mpk__drain *drain = &s->drain;
    uint32_t claimed = atomic_load(&drain->idle_blocks);
    uint64_t now = mpk__prim_now_ns();
    if (claimed - drain->seen >= s->order.chunk_blocks) {
        drain->seen = claimed;
        drain->seen_ns = now;
    } else if (now - drain->seen_ns >= POLL_NS + 2000 * (uint64_t)atomic_load(&s->order.run_us)) {
        atomic_store(&drain->starved, 1);
        mpk__drain_wake_in_handler(drain);
    }
}

static bool polls_idle_threads(const mpk__drain *drain, const mpk__worker *self) {
    return self->kind == MPK__OPENS && mpk__drain_is_open(drain) && !atomic_load(&drain->starved);
}

static void commit(mpk_session *s) {
    mpk__epoch *e = &s->epoch;
    MPK__ASSERT(atomic_load(&e->pending) == 0 && mpk__blocks_are_done(&s->blocks));
    int error = -atomic_load(&e->error);
    if (!error) error = mpk__writer_put_rest(e, &s->blocks, &s->drain.calls_ended);
    if (!error && atomic_load(&s->drain.state) == MPK_DRAIN_HUNG) error = -ETIMEDOUT; /* given up meanwhile */
    error = mpk__writer_end(e, s->blocks.cut, error);
    atomic_store(&e->error, -error);
    atomic_store(&e->drain_ns, mpk__prim_now_ns() - e->started_ns);
    mpk__copies_rest(false);
    atomic_store(&s->drain.state, error ? MPK_DRAIN_FAILED : MPK_DRAIN_COMPLETE);
    mpk__prim_wake_in_handler(&s->drain.state);
}

static int64_t turn(void *session, mpk__worker *self, uint32_t wakeups) {
    mpk_session *s = session;
    mpk__drain *drain_of = &s->drain;
    if (self->urgent && mpk__drain_is_open(drain_of)) begin(s, true);
    if (polls_idle_threads(drain_of, self)) poll_idle_threads(s);
    if (is_wanted(s, self)) drain(s, self);
    if (self->urgent && !atomic_load(&drain_of->workers.is_abandoned) && atomic_exchange(&drain_of->commit_pending, 0)) {
        begin_call(drain_of);
        commit(s);
        end_call(drain_of);
    }
    while (!self->urgent && mpk__workers_are_quiet(&drain_of->workers, wakeups))
        if (!mpk__untracked_compare_next(&s->untracked, &s->blocks, &s->history)) break;
    return polls_idle_threads(drain_of, self) ? POLL_NS : -1;
}

static void end(void *session) { mpk__session_free(session); }

static const mpk__work work = {
    .turn = turn,
    .end = end,
    .idle_name = "mpickpt-idle",
    .urgent_name = "mpickpt-urgent",
    .n_idle = MPK__IDLE_THREADS,
    .n_urgent = MPK__URGENT_THREADS,
    .kinds = {MPK__CHECKS, MPK__HELPS, MPK__HELPS, MPK__OPENS, MPK__HELPS},
    .buffer_bytes = MPK__BOUNCE_BYTES,
};
_Static_assert(MPK__IDLE_THREADS == 3 && MPK__URGENT_THREADS == 2, "one idle thread checks, one urgent thread opens slots");

void mpk__drain_begin(mpk__drain *drain, uint32_t chunk_blocks, bool slot_follows) {
    MPK__ASSERT(!mpk__drain_is_open(drain) && atomic_load(&drain->calls) <= 1); /* that of the last commit may just end */
    atomic_store(&drain->starved, 0);
    atomic_store(&drain->stall_said, 0);
    atomic_fetch_add(&drain->idle_blocks, chunk_blocks);
    mpk__copies_rest(true);
    /* A thread that was late in the last epoch may open this one from here on. */
    atomic_store(&drain->opening, slot_follows ? MPK__AWAITED : MPK__NOT_OPEN);
    atomic_store(&drain->state, MPK_DRAIN_ACTIVE);
}

bool mpk__drain_end_awaiting_in_handler(mpk__drain *drain, enum mpk__opening next) {
    uint32_t awaited = MPK__AWAITED;
    if (!atomic_compare_exchange_strong(&drain->opening, &awaited, next)) return false;
    mpk__chaos();
    mpk__prim_wake_in_handler(&drain->opening); /* threads that came here meanwhile */
    return true;
}

int mpk__drain_start_threads(mpk_session *s) {
    for (int i = 0; i < MPK__DRAIN_THREADS; i++) {
        if (!queues[i]) queues[i] = mpk__prim_open_queue(MPK__CHUNK_BLOCKS);
        s->drain.queues[i] = queues[i];
    }
    int error = mpk__workers_start(&s->drain.workers, &work, s);
    if (error) mpk__drain_stop_threads(s);
    return error;
}

void mpk__drain_stop_threads(mpk_session *s) { mpk__workers_stop(&s->drain.workers); }

/* A thread that waits for a queue is not to meet those of the next session there, so they get new ones. */
void mpk__drain_abandon_threads(mpk_session *s) {
    for (int i = 0; i < MPK__DRAIN_THREADS; i++) queues[i] = 0;
    mpk__workers_abandon(&s->drain.workers);
}
