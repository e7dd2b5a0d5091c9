/* The order of the drain: what the program will write to first is saved first, so that the program need not copy it.
 *
 * The last interval tells when each block is written to. A chunk of adjacent blocks is a job whose deadline is the first expected
 * write to any of them. The earliest deadline comes first, unless it is too late for it: the program copies that chunk in any
 * case, and it is saved last. So the drain does not run after a program that sweeps through its memory faster than the storage
 * takes it. Whether it is too late is decided when a thread takes its next job, from how long the last ones took. How fast a
 * drain will be is not known before, because it depends on how much processor time the program leaves. */
#include "order.h"

#include <errno.h>
#include <stdlib.h>

#define OUTLIER 4 /* a run counts at most as this many times the usual one: its thread may have had no processor */
#define MARGIN 2 /* a job must begin this many times the duration of a run before its deadline */

typedef struct job {
    uint32_t deadline_us, chunk;
} job;

int mpk__order_create(mpk__order *order, const mpk__blocks *blocks) {
    size_t most = MPK__CHUNK_BYTES / blocks->block_bytes;
    if (most < 1) most = 1;
    if (most > MPK__CHUNK_BLOCKS) most = MPK__CHUNK_BLOCKS;
    order->chunk_blocks = (uint32_t)most;
    order->n_chunks = 0;
    atomic_store(&order->run_us, 0);
    for (uint32_t i = 0; i < blocks->n_regions; i++)
        order->n_chunks += (uint32_t)((blocks->regions[i].n_blocks + most - 1) / most);
    order->chunks = calloc(order->n_chunks + 1, sizeof *order->chunks);
    order->sequence = calloc(order->n_chunks + 1, sizeof *order->sequence);
    order->deadlines_us = calloc(order->n_chunks + 1, sizeof *order->deadlines_us);
    if (!order->chunks || !order->sequence || !order->deadlines_us) return -ENOMEM;
    mpk__chunk *chunk = order->chunks;
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *r = &blocks->regions[i];
        for (uint32_t k = 0; k < r->n_blocks; k++) {
            if (k && k % most == 0) chunk++;
            if (k % most == 0) chunk->first = r->first_block + k;
            chunk->count++;
        }
        if (r->n_blocks) chunk++;
    }
    return 0;
}

void mpk__order_destroy(mpk__order *order) {
    free(order->chunks);
    free((void *)order->sequence);
    free((void *)order->deadlines_us);
    order->chunks = NULL;
    order->sequence = NULL;
    order->deadlines_us = NULL;
    order->n_chunks = 0;
}

void mpk__order_begin(mpk__order *order) {
    atomic_store(&order->cursor, 0);
    atomic_store(&order->late_cursor, 0);
}

static int by_deadline(const void *a, const void *b) {
    const job *x = a, *y = b;
    if (x->deadline_us != y->deadline_us) return x->deadline_us < y->deadline_us ? -1 : 1;
    return x->chunk < y->chunk ? -1 : 1;
}

/* The chunks with dirty blocks, in the order of their addresses. */
static uint32_t list_jobs(const mpk__order *order, const mpk__history *history, job *jobs) {
    uint32_t n = 0;
    for (uint32_t c = 0; c < order->n_chunks; c++) {
        job j = {.deadline_us = MPK__NOT_WRITTEN, .chunk = c};
        bool is_dirty = false;
        for (uint32_t b = order->chunks[c].first; b < order->chunks[c].first + order->chunks[c].count; b++) {
            const mpk__block_history *h = &history->block[b];
            if (!h->is_dirty) continue;
            is_dirty = true;
            if (!h->is_pinned && h->deadline_us < j.deadline_us) j.deadline_us = h->deadline_us;
        }
        if (is_dirty) jobs[n++] = j;
    }
    return n;
}

void mpk__order_chunks(mpk__order *order, const mpk__history *history) {
    job *jobs = calloc(order->n_chunks + 1, sizeof *jobs);
    uint32_t n = order->n_chunks;
    if (jobs) {
        n = list_jobs(order, history, jobs);
        if (!order->ignores_deadlines) qsort(jobs, n, sizeof *jobs, by_deadline);
    }
    for (uint32_t i = 0; i < n; i++) { /* without memory for the jobs: by address, all of them */
        atomic_store(&order->sequence[i], jobs ? jobs[i].chunk : i);
        atomic_store(&order->deadlines_us[i], jobs ? jobs[i].deadline_us : MPK__NOT_WRITTEN);
    }
    atomic_store(&order->n, n);
    free(jobs);
}

uint32_t mpk__order_in_time(const mpk__order *order, uint32_t from, uint64_t now_us) {
    uint64_t earliest = now_us + MARGIN * (uint64_t)atomic_load(&order->run_us);
    if (earliest > MPK__NOT_WRITTEN) earliest = MPK__NOT_WRITTEN; /* for which it is never too late */
    uint32_t n = atomic_load(&order->n);
    if (order->ignores_deadlines) return n;
    while (from < n && atomic_load(&order->deadlines_us[from]) < earliest) from++;
    return from;
}

void mpk__order_note_run(mpk__order *order, uint64_t us) {
    uint32_t usual = atomic_load(&order->run_us);
    if (us > MPK__LONGEST_RUN_US) us = MPK__LONGEST_RUN_US;
    if (usual && us > OUTLIER * (uint64_t)usual) us = OUTLIER * (uint64_t)usual;
    atomic_store(&order->run_us, usual ? (uint32_t)((7 * (uint64_t)usual + us) / 8) : (uint32_t)us);
}
