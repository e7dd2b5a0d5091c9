/* The drain: threads that save what is pending while the program computes. The idle threads do the work in time that
 * nobody wants; the urgent threads, of normal priority, take over when there is no such time, when the pool is over half
 * full, when the program itself waits in a call, or while they are boosted. All claim blocks by the same swaps, as many
 * as one call to the storage takes, so that none waits for another: a thread that is starved of the processor holds up the
 * blocks it has in hand, and the program not even on those.
 *
 * An idle thread beside a busy program gets the processor about once a second, and waits that long after each of its
 * calls to the storage. So it takes no more blocks once the urgent ones are at work, and the few calls that open a slot
 * and commit, which cost hardly any processor time, are always made by an urgent thread.
 *
 * A block is pending from the cut until its bytes are in the slot, and so is all else that the commit has to wait for:
 * the opening of the slot, and channels that follow. Whoever takes the last unit of `pending` away wakes a thread for the commit. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

#define LOOK_NS 5000000 /* between two looks whether the idle threads get on */
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

enum { OPENS = 1, CHECKS = 2, HELPS = 4 }; /* kinds of threads: one urgent, one idle, and the others */

/* The threads' queues, from the first session on and for good: to close one takes 32 ms, in which the kernel waits for all
 * processors. There is one session at a time. */
static unsigned long queues[MPK__DRAIN_THREADS];

static void wake_in_handler(mpk_session *s, uint32_t kinds) {
    atomic_fetch_add(&s->wakeups, 1);
    mpk__prim_wake_kinds_in_handler(&s->wakeups, kinds);
}

void mpk__drain_wake_in_handler(mpk_session *s) { wake_in_handler(s, OPENS | CHECKS | HELPS); }

void mpk__drain_wake_for_cut(mpk_session *s) { wake_in_handler(s, OPENS); }

static bool is_wanted(const mpk__drain_thread *self) {
    const mpk_session *s = self->session;
    if (!mpk__drain_is_open(s)) return false;
    bool urgently = atomic_load(&s->starved) || atomic_load(&s->boost) || mpk__program_waits() ||
                    mpk__pool_is_pressed(&s->pool);
    /* After a failure what is still pending is dropped: no work, but an idle thread may be late for it. */
    urgently = urgently || atomic_load(&s->error);
    return self->urgent == urgently;
}

enum { WANT_PROTECTED = 1, WANT_COPIED = 2 }; /* which blocks are wanted */

/* Claims block b: PROTECTED becomes DRAINING, COPIED becomes DRAINING_COPY. False when it is not wanted or somebody else's. */
static bool claim(mpk_session *s, uint32_t b, int wanted, uint64_t *word) {
    uint64_t now = atomic_load(&s->blocks[b]);
    for (;;) {
        enum mpk__block_state state = mpk__state_of(now);
        if (!(state == MPK__PROTECTED && wanted & WANT_PROTECTED) && !(state == MPK__COPIED && wanted & WANT_COPIED)) return false;
        uint64_t next = mpk__word(mpk__cut_of(now), mpk__entry_of(now),
                                  state == MPK__PROTECTED ? MPK__DRAINING : MPK__DRAINING_COPY);
        if (atomic_compare_exchange_weak(&s->blocks[b], &now, next)) {
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

static uint64_t us_since_cut(const mpk_session *s) { return (mpk__prim_now_ns() - s->epoch.started_ns) / 1000; }

/* Claims the next blocks that are pending, in the order of the epoch: first those that can be saved in time, and were not
 * copied already, then all. What is pending only becomes less, but for blocks that are put back by a thread that then
 * looks for more itself, so one round of all that finds nothing means that nothing is left to claim. Under pressure those
 * that free an entry come first. A thread that was late in the last epoch may read an order that is just being made: it then
 * misses blocks, but is woken once more for those. */
static bool claim_run(mpk_session *s, int wanted, run *out) {
    uint32_t n = atomic_load(&s->n_ordered);
    out->count = 0;
    if (wanted & WANT_PROTECTED) {
        uint64_t now = us_since_cut(s);
        for (uint32_t at = atomic_load(&s->cursor); (at = mpk__order_in_time(s, at, now)) < n; at++) {
            atomic_store(&s->cursor, at); /* there may be more than a run in the chunk */
            if (claim_in_chunk(s, &s->chunks[atomic_load(&s->order[at])], WANT_PROTECTED, out)) return true;
        }
        atomic_store(&s->cursor, n);
    }
    uint32_t start = atomic_load(&s->late_cursor);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (start + i) % n, had = out->count;
        bool full = claim_in_chunk(s, &s->chunks[atomic_load(&s->order[at])], wanted, out);
        if (wanted & WANT_PROTECTED && out->count > had) atomic_store(&s->late_cursor, at);
        if (full) return true;
    }
    return out->count != 0;
}

/* Computing is the last resort: it reads all of the block, in time that the program may want. A block that was opened ahead
 * and has the checksum that it had was so needlessly. */
static void set_checksum(mpk_session *s, uint32_t b, const mpk__place *place, uint64_t word) {
    mpk__history *h = &s->history[b];
    if (atomic_load(&h->crc_is_known)) return;
    uint32_t last[2] = {s->crc[b][0], s->crc[b][1]};
    if (mpk__state_of(word) == MPK__DRAINING_COPY)
        memcpy(s->crc[b], s->pool.crc[mpk__entry_of(word)], sizeof s->crc[b]);
    else
        mpk__checksum_in_handler(s, place, place->memory, s->crc[b]);
    if (h->was_ahead && memcmp(last, s->crc[b], sizeof last) == 0) atomic_store(&h->is_left_out, true);
}

void mpk__drain_finished_in_handler(mpk_session *s, uint32_t units) {
    if (atomic_fetch_sub(&s->pending, units) != units) return;
    atomic_store(&s->commit_pending, 1);
    wake_in_handler(s, OPENS | CHECKS); /* one commits, the other compares; to wake all costs more */
}

/* Makes the commit wait, by a unit of pending. False when it has begun: 0 never becomes more, but by a cut. */
static bool delay_commit_in_handler(mpk_session *s) {
    uint32_t pending = atomic_load(&s->pending);
    while (pending != 0)
        if (atomic_compare_exchange_weak(&s->pending, &pending, pending + 1)) return true;
    return false;
}

bool mpk__drain_fail_in_handler(mpk_session *s, int error) {
    if (!delay_commit_in_handler(s)) return false;
    mpk__chaos();
    int none = 0;
    atomic_compare_exchange_strong(&s->error, &none, error);
    uint32_t expected = MPK__CHANNELS_PENDING;
    bool dropped = atomic_compare_exchange_strong(&s->channels, &expected, MPK__CHANNELS_DROPPED);
    mpk__chaos();
    mpk__drain_finished_in_handler(s, dropped ? 2 : 1);
    mpk__drain_wake_in_handler(s); /* the urgent threads are wanted now */
    return true;
}

/* The state first: a commit that is under way then ends as a failure. */
bool mpk__drain_give_up_in_handler(mpk_session *s) {
    uint32_t active = MPK_DRAIN_ACTIVE;
    if (!atomic_compare_exchange_strong(&s->drain_state, &active, MPK_DRAIN_HUNG)) return false;
    mpk__chaos();
    mpk__drain_fail_in_handler(s, ETIMEDOUT);
    mpk__pool_notify(&s->pool);
    mpk__prim_wake_in_handler(&s->drain_state);
    return true;
}

void mpk__drain_waited_in_handler(mpk_session *s, mpk__patience *patience, uint64_t ns) {
    uint32_t ended = atomic_load(&s->calls_ended);
    if (ended != patience->ended || atomic_load(&s->calls) == 0) {
        *patience = (mpk__patience){.ended = ended};
        return;
    }
    patience->waited_ns += ns < LONGEST_SLICE_NS ? ns : LONGEST_SLICE_NS;
    if (patience->waited_ns >= SAY_NS && s->stall_text && !atomic_exchange(&s->stall_said, 1))
        mpk__prim_say_in_handler(s->stall_text);
    if (s->stall_limit_ns && patience->waited_ns >= s->stall_limit_ns) mpk__drain_give_up_in_handler(s);
}

int mpk_give_up(mpk_session *s) {
    if (mpk__is_forked_child()) return -EINVAL;
    return mpk__drain_give_up_in_handler(s) ? 0 : -EINVAL;
}

int mpk_fail_epoch(mpk_session *s, int error) {
    if (error <= 0 || mpk__is_forked_child()) return -EINVAL;
    return mpk__drain_fail_in_handler(s, error) ? 0 : -EINVAL;
}

int mpk_add_channels(mpk_session *s, const void *data, size_t bytes) {
    if (mpk__is_forked_child()) return -EINVAL;
    uint8_t *copy = malloc(bytes + 1); /* never of size 0, which may be NULL */
    if (!copy) return -ENOMEM;
    if (bytes) memcpy(copy, data, bytes);
    uint32_t was = MPK__CHANNELS_PENDING;
    if (!atomic_compare_exchange_strong(&s->channels, &was, MPK__CHANNELS_HERE)) {
        free(copy);
        return was == MPK__CHANNELS_DROPPED ? 0 : -EINVAL;
    }
    mpk__chaos();
    s->epoch.channels.data = copy; /* theirs who commit, which nobody does before the next line */
    s->epoch.channels.bytes = bytes;
    mpk__drain_finished_in_handler(s, 1);
    return 0;
}

static void begin_call(mpk_session *s) { atomic_fetch_add(&s->calls, 1); }

static void end_call(mpk_session *s) {
    atomic_fetch_add(&s->calls_ended, 1);
    atomic_fetch_sub(&s->calls, 1);
}

static void open_epoch(mpk_session *s) {
    mpk__order_chunks(s);
    begin_call(s);
    int error = mpk__writer_open(s);
    end_call(s);
    if (error) mpk__drain_fail_in_handler(s, -error);
    atomic_store(&s->begun, 2);
    mpk__prim_wake_in_handler(&s->begun);
    if (s->n_dirty) mpk__drain_wake_in_handler(s); /* else nobody is needed before the commit */
    mpk__drain_finished_in_handler(s, 1);
}

/* The slot is opened, and its record says WRITING, before the first block is overwritten. A thread that was late in
 * the last epoch may find blocks of this one before it has heard of it: hence asked for each run. */
static void begin(mpk_session *s, bool urgent) {
    uint32_t now;
    while ((now = atomic_load(&s->begun)) != 2) {
        if (now == 0 && urgent) { /* also for one that came here too late in the last epoch: it may be the only one awake */
            if (atomic_compare_exchange_strong(&s->begun, &now, 1)) open_epoch(s);
        } else {
            mpk__prim_wait_in_handler(&s->begun, now, -1);
        }
    }
}

/* Computes the checksums of a run and writes its pieces. After a failure neither is done, but all else goes on.
 * Tells whether there are checksums. */
static bool put(mpk_session *s, mpk__drain_thread *self, const run *r) {
    if (atomic_load(&s->error)) return false;
    struct iovec pieces[MPK__CHUNK_BLOCKS];
    mpk__write writes[MPK__CHUNK_BLOCKS];
    const mpk__region *last = NULL;
    int n = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t b = r->blocks[i];
        mpk__place place = mpk__block_place(s, b);
        bool in_pool = mpk__state_of(r->words[i]) == MPK__DRAINING_COPY;
        uint8_t *image = in_pool ? mpk__pool_image(&s->pool, mpk__entry_of(r->words[i])) : place.memory;
        set_checksum(s, b, &place, r->words[i]);
        pieces[i] = (struct iovec){image, place.bytes};
        bool is_next = place.region == last && b == r->blocks[i - 1] + 1;
        if (!is_next) writes[n++] = (mpk__write){&pieces[i], 0, place.region->data_offset + place.offset};
        writes[n - 1].n++;
        last = place.region;
    }
    mpk__chaos();
    begin_call(s);
    int error = mpk__writer_put(s, self, writes, n);
    end_call(s);
    if (error) mpk__drain_fail_in_handler(s, -error);
    return true;
}

static void save_run(mpk_session *s, mpk__drain_thread *self, run *r) {
    begin(s, self->urgent);
    uint64_t start = mpk__prim_now_ns();
    bool has_checksums = put(s, self, r);
    mpk__chaos();
    uint32_t saved = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t b = r->blocks[i];
        uint64_t word = r->words[i];
        if (mpk__state_of(word) == MPK__DRAINING) {
            if (has_checksums && !mpk__check_written(s, b)) mpk__drain_fail_in_handler(s, EREMCHG);
            uint64_t done = mpk__word(mpk__cut_of(word), 0, MPK__CLEAN);
            if (atomic_compare_exchange_strong(&s->blocks[b], &word, done)) {
                mpk__history_note_saved(s, b, has_checksums);
                saved++;
            } else if (mpk__state_of(word) == MPK__WRITABLE) { /* opened without a copy, as the epoch has failed */
                saved++;
            } else { /* the program wrote to it meanwhile, so what reached the file may be torn: once more, from the pool */
                atomic_store(&s->blocks[b], mpk__word(mpk__cut_of(word), mpk__entry_of(word), MPK__COPIED));
            }
            continue;
        }
        atomic_store(&s->blocks[b], mpk__word(mpk__cut_of(word), 0, MPK__WRITABLE));
        mpk__pool_give_in_handler(&s->pool, mpk__entry_of(word));
        saved++;
    }
    if (self->urgent || !atomic_load(&s->starved)) mpk__order_note_run(s, (mpk__prim_now_ns() - start) / 1000);
    mpk__pool_notify(&s->pool);
    if (saved) mpk__drain_finished_in_handler(s, saved);
}

static void drain(mpk__drain_thread *self) {
    mpk_session *s = self->session;
    run r = {.most = self->urgent || s->chunk_blocks < IDLE_SHARE ? s->chunk_blocks : s->chunk_blocks / IDLE_SHARE};
    while (is_wanted(self)) {
        begin(s, self->urgent); /* which makes the order */
        bool pressed = mpk__pool_is_pressed(&s->pool);
        if (!(pressed && claim_run(s, WANT_COPIED, &r)) && !claim_run(s, WANT_PROTECTED | WANT_COPIED, &r)) return;
        if (!self->urgent) atomic_fetch_add(&s->idle_blocks, r.count);
        save_run(s, self, &r);
    }
    mpk__drain_wake_in_handler(s); /* the other class is wanted now, perhaps for what was put back, and may be asleep */
}

/* An idle thread that has no time to itself would be far behind the program, which then copies what might have been saved:
 * a block that is copied costs the program more than one that is drained. A run may well take long on slow storage: who
 * claims a chunk in the time that two runs recently took gets on. Not who claims any run, for starved threads do so now and then. */
static void look_after_idle_threads(mpk_session *s, mpk__drain_thread *self) {
    uint32_t taken = atomic_load(&s->idle_blocks);
    uint64_t now = mpk__prim_now_ns();
    if (taken - self->seen >= s->chunk_blocks) {
        self->seen = taken;
        self->seen_ns = now;
    } else if (now - self->seen_ns >= LOOK_NS + 2000 * (uint64_t)atomic_load(&s->run_us)) {
        atomic_store(&s->starved, 1);
        mpk__drain_wake_in_handler(s);
    }
}

static bool looks_after_idle_threads(const mpk__drain_thread *self) {
    const mpk_session *s = self->session;
    return self->kind == OPENS && mpk__drain_is_open(s) && !atomic_load(&s->starved);
}

static void *run_thread(void *argument) {
    mpk__drain_thread *self = argument;
    mpk_session *s = self->session;
    mpk__prim_name_thread(self->urgent ? "mpickpt-urgent" : "mpickpt-idle");
    if (!self->urgent) mpk__prim_become_idle();
    while (!atomic_load(&s->stop)) {
        uint32_t wakeups = atomic_load(&s->wakeups);
        if (self->urgent && mpk__drain_is_open(s)) begin(s, true);
        if (looks_after_idle_threads(self)) look_after_idle_threads(s, self);
        if (is_wanted(self)) drain(self);
        if (self->urgent && !atomic_load(&s->is_abandoned) && atomic_exchange(&s->commit_pending, 0)) {
            begin_call(s);
            mpk__writer_commit(s);
            end_call(s);
        }
        if (!self->urgent) mpk__check_blocks(s, wakeups);
        int64_t limit = looks_after_idle_threads(self) ? LOOK_NS : -1;
        if (!atomic_load(&s->stop)) mpk__prim_wait_as_in_handler(&s->wakeups, wakeups, limit, self->kind);
    }
    if (atomic_fetch_sub(&s->users, 1) == 1) mpk__session_free(s); /* it was abandoned, and this was the last one */
    return NULL;
}

int mpk__drain_start_threads(mpk_session *s) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: the program's handlers never run on these threads */
    int error = 0;
    atomic_store(&s->stop, 0);
    atomic_store(&s->users, 1);
    for (int i = 0; i < MPK__DRAIN_THREADS && !error; i++) {
        mpk__drain_thread *t = &s->drains[i];
        *t = (mpk__drain_thread){.session = s, .urgent = i >= MPK__IDLE_THREADS};
        t->kind = i == 0 ? CHECKS : i == MPK__IDLE_THREADS ? OPENS : HELPS;
        t->bounce = mpk__prim_map(MPK__BOUNCE_BYTES, false);
        if (!queues[i]) queues[i] = mpk__prim_open_queue(MPK__CHUNK_BLOCKS);
        t->queue = queues[i];
        atomic_fetch_add(&s->users, 1);
        error = t->bounce ? -pthread_create(&t->thread, NULL, run_thread, t) : -ENOMEM;
        if (error) {
            atomic_fetch_sub(&s->users, 1);
            mpk__prim_unmap(t->bounce, MPK__BOUNCE_BYTES);
        } else {
            s->drains_running++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) mpk__drain_stop_threads(s);
    return error;
}

void mpk__drain_unmap_bounces(mpk_session *s) {
    for (uint32_t i = 0; i < s->drains_running; i++) mpk__prim_unmap(s->drains[i].bounce, MPK__BOUNCE_BYTES);
    s->drains_running = 0;
}

void mpk__drain_stop_threads(mpk_session *s) {
    atomic_store(&s->stop, 1);
    mpk__drain_wake_in_handler(s);
    for (uint32_t i = 0; i < s->drains_running; i++)
        if (!mpk__is_forked_child()) pthread_join(s->drains[i].thread, NULL);
    mpk__drain_unmap_bounces(s);
}

/* A thread that waits for a queue is not to meet those of the next session there, so they get new ones. */
void mpk__drain_abandon_threads(mpk_session *s) {
    for (uint32_t i = 0; i < s->drains_running; i++) {
        pthread_detach(s->drains[i].thread);
        queues[i] = 0;
    }
    atomic_store(&s->is_abandoned, true);
    atomic_store(&s->stop, 1);
    mpk__drain_wake_in_handler(s);
    if (atomic_fetch_sub(&s->users, 1) == 1) mpk__session_free(s);
}
