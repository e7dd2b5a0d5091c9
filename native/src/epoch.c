/* The epoch in progress: what is pending, and how it ends. A block is pending from the cut until its bytes are in the slot, and
 * so is all else that the commit has to wait for: the opening of the slot, and channels that follow. Whoever takes the last
 * unit of `pending` away wakes a thread for the commit. Any thread may do so, the fault handler too. */
#include "epoch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"
#include "fork.h"
#include "session.h"

/* -- the plan --------------------------------------------------------------------------------------------------------- */

static size_t text_bytes(const char *text) { return text ? strlen(text) + 1 : 0; }

/* Appends to what *end points behind, and gives where it lies. */
static void *append(uint8_t **end, const void *from, size_t bytes) {
    void *at = *end;
    if (bytes) memcpy(at, from, bytes);
    *end += bytes;
    return at;
}

static const char *append_text(uint8_t **end, const char *text) { return text ? append(end, text, text_bytes(text)) : NULL; }

/* All of a plan in one piece of memory, what has to be aligned first. */
static const mpk_plan *copy_plan(const mpk_plan *plan, uint32_t n_regions) {
    size_t offsets = n_regions * sizeof *plan->data_offsets;
    const char *channels_path = plan->channels_follow ? plan->channels_spill_path : NULL;
    mpk_plan *copy = malloc(sizeof *copy + 2 * offsets + plan->objects_bytes + text_bytes(plan->path) +
                            text_bytes(plan->spill_path) + text_bytes(channels_path));
    if (!copy) return NULL;
    uint8_t *end = (uint8_t *)(copy + 1);
    *copy = *plan;
    copy->files = NULL; /* the epoch has its own descriptors */
    copy->data_offsets = append(&end, plan->data_offsets, offsets);
    copy->checksum_offsets = append(&end, plan->checksum_offsets, offsets);
    copy->objects = append(&end, plan->objects, plan->objects_bytes);
    copy->path = append_text(&end, plan->path);
    copy->spill_path = append_text(&end, plan->spill_path);
    copy->channels_spill_path = append_text(&end, channels_path);
    return copy;
}

/* A slot that follows begins at `start`. */
static void place_in_slot(mpk__epoch *e, uint32_t n_regions, uint64_t start) {
    mpk_plan *plan = (mpk_plan *)(uintptr_t)e->plan; /* the copy */
    uint64_t *data = (uint64_t *)(uintptr_t)plan->data_offsets, *checksums = (uint64_t *)(uintptr_t)plan->checksum_offsets;
    for (uint32_t i = 0; i < n_regions; i++) data[i] += start, checksums[i] += start;
    plan->record_offset += start;
    plan->objects_offset += start;
    plan->channels_offset += start;
    plan->slot_follows = false;
}

/* The program may close its own descriptors at any time, and their numbers may become those of other files. */
static int duplicate_files(mpk__epoch *e, const int *files, size_t n) {
    if (!n) return 0;
    e->files = malloc(n * sizeof *files);
    if (!e->files) return -ENOMEM;
    for (; e->n_files < n; e->n_files++) {
        int fd = mpk__prim_duplicate(files[e->n_files]);
        if (fd < 0) return fd;
        e->files[e->n_files] = fd;
    }
    return 0;
}

void mpk__epoch_close_files(mpk__epoch *e) {
    while (e->n_files) mpk__prim_close(e->files[--e->n_files]);
}

void mpk__epoch_free(mpk__epoch *e) {
    mpk__epoch_close_files(e);
    free((void *)(uintptr_t)e->plan);
    free(e->channels);
    free(e->files);
    e->plan = NULL;
    e->channels = NULL;
    e->files = NULL;
    e->channels_bytes = 0;
}

int mpk__epoch_take_plan(mpk__epoch *e, const mpk_plan *plan, uint32_t n_regions) {
    mpk__epoch_free(e);
    e->plan = copy_plan(plan, n_regions);
    if (!e->plan) return -ENOMEM;
    e->record = (mpk_record){
        .rank = plan->rank,
        .epoch = plan->epoch,
        .step = plan->step,
        .run = plan->run,
        .objects_bytes = plan->objects_bytes,
        .objects_spilled = plan->spill_path != NULL,
        .cut_time_ns = mpk__prim_wall_clock_ns(),
    };
    memcpy(e->record.magic, MPK_RECORD_MAGIC, sizeof e->record.magic);
    memcpy(e->record.digest, plan->digest, sizeof e->record.digest);
    return duplicate_files(e, plan->files, plan->n_files);
}

void mpk__epoch_begin(mpk__epoch *e, uint32_t n_dirty, bool has_pinned) {
    MPK__ASSERT(atomic_load(&e->pending) == 0);
    bool follow = e->plan->channels_follow;
    e->n_dirty = n_dirty;
    atomic_store(&e->number, e->plan->epoch);
    atomic_store(&e->bytes_written, 0);
    atomic_store(&e->bytes_waiting, 0);
    atomic_store(&e->bytes_urgent, 0);
    atomic_store(&e->blocks_copied, 0);
    atomic_store(&e->stall_ns, 0);
    atomic_store(&e->fault_ns, 0);
    atomic_store(&e->faults, 0);
    atomic_store(&e->error, 0);
    atomic_store(&e->torn_region, -1);
    atomic_store(&e->unsynced_file, -1);
    atomic_store(&e->channels_state, follow ? MPK__CHANNELS_PENDING : MPK__CHANNELS_NONE);
    atomic_store(&e->pending, n_dirty + (follow ? 2 : 1) + has_pinned);
}

/* -- what is pending -------------------------------------------------------------------------------------------------- */

void mpk__epoch_finished_in_handler(mpk_session *s, uint32_t units) {
    uint32_t pending = atomic_fetch_sub(&s->epoch.pending, units);
    MPK__ASSERT(pending >= units);
    if (pending != units) return;
    atomic_store(&s->drain.commit_pending, 1);
    /* One commits, the other compares; to wake all costs more. */
    mpk__workers_wake_in_handler(&s->drain.workers, MPK__OPENS | MPK__CHECKS);
}

/* Makes the commit wait, by a unit of pending. False when it has begun: 0 never becomes more, but by a cut. */
static bool delay_commit_in_handler(mpk__epoch *e) {
    uint32_t pending = atomic_load(&e->pending);
    while (pending != 0)
        if (atomic_compare_exchange_weak(&e->pending, &pending, pending + 1)) return true;
    return false;
}

bool mpk__epoch_fail_in_handler(mpk_session *s, int error) {
    mpk__epoch *e = &s->epoch;
    if (!delay_commit_in_handler(e)) return false;
    mpk__chaos();
    int none = 0;
    atomic_compare_exchange_strong(&e->error, &none, error);
    uint32_t expected = MPK__CHANNELS_PENDING;
    bool dropped = atomic_compare_exchange_strong(&e->channels_state, &expected, MPK__CHANNELS_DROPPED);
    mpk__chaos();
    mpk__drain_end_awaiting_in_handler(&s->drain, MPK__DROPPED);
    mpk__epoch_finished_in_handler(s, dropped ? 2 : 1);
    mpk__drain_wake_in_handler(&s->drain); /* the urgent threads are wanted now */
    return true;
}

/* The state first: a commit that is under way then ends as a failure. */
bool mpk__epoch_give_up_in_handler(mpk_session *s) {
    uint32_t active = MPK_DRAIN_ACTIVE;
    if (!atomic_compare_exchange_strong(&s->drain.state, &active, MPK_DRAIN_HUNG)) return false;
    mpk__chaos();
    mpk__epoch_fail_in_handler(s, ETIMEDOUT);
    mpk__pool_notify_in_handler(&s->pool);
    mpk__prim_wake_in_handler(&s->drain.state);
    return true;
}

/* -- what the owner says of it ---------------------------------------------------------------------------------------- */

int mpk_give_up(mpk_session *s) {
    if (mpk__is_forked_in_handler()) return -EINVAL;
    return mpk__epoch_give_up_in_handler(s) ? 0 : -EINVAL;
}

int mpk_fail_epoch(mpk_session *s, int error) {
    if (error <= 0 || mpk__is_forked_in_handler()) return -EINVAL;
    return mpk__epoch_fail_in_handler(s, error) ? 0 : -EINVAL;
}

/* The offsets are the drain threads' from the moment on at which the slot is no longer awaited. */
int mpk_add_slot(mpk_session *s, uint64_t start) {
    if (mpk__is_forked_in_handler() || !s->epoch.plan || !s->epoch.plan->slot_follows) return -EINVAL;
    if (atomic_load(&s->drain.opening) != MPK__AWAITED) return 0; /* dropped */
    place_in_slot(&s->epoch, s->blocks.n_regions, start);
    if (mpk__drain_end_awaiting_in_handler(&s->drain, MPK__NOT_OPEN)) mpk__workers_wake_in_handler(&s->drain.workers, MPK__OPENS);
    return 0;
}

int mpk_add_channels(mpk_session *s, const void *data, size_t bytes) {
    if (mpk__is_forked_in_handler()) return -EINVAL;
    uint8_t *copy = malloc(bytes + 1); /* never of size 0, which may be NULL */
    if (!copy) return -ENOMEM;
    if (bytes) memcpy(copy, data, bytes);
    uint32_t was = MPK__CHANNELS_PENDING;
    if (!atomic_compare_exchange_strong(&s->epoch.channels_state, &was, MPK__CHANNELS_HERE)) {
        free(copy);
        return was == MPK__CHANNELS_DROPPED ? 0 : -EINVAL;
    }
    mpk__chaos();
    s->epoch.channels = copy; /* theirs who commit, which nobody does before the next line */
    s->epoch.channels_bytes = bytes;
    mpk__epoch_finished_in_handler(s, 1);
    return 0;
}
