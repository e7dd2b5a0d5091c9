/* The order of the drain: what the program will write to first is saved first, so that it need not copy it.
 *
 * When a block will be written to is what the last interval tells. Each chunk of adjacent blocks is then a job: it takes
 * so long as its blocks took in the last drain, and is due when the first of them is expected to be written to. The
 * largest number of jobs that are done in time is found by Moore's and Hodgson's rule (J. M. Moore, Management Science
 * 15(1), 1968): in the order of their deadlines, and whenever one would be late the longest so far is put off. What is put
 * off will be copied by the program in any case and comes last, so that a program that sweeps through its memory is not
 * chased from block to block. */
#include <errno.h>
#include <stdlib.h>

#include "session.h"

typedef struct job {
    uint32_t deadline_us, blocks, chunk;
    uint32_t below; /* in the stack of accepted jobs of its size: the one before it + 1 */
    bool is_late;
} job;

int mpk__order_create(mpk_session *s) {
    size_t most = MPK__CHUNK_BYTES / s->block_bytes;
    if (most < 1) most = 1;
    if (most > MPK__CHUNK_BLOCKS) most = MPK__CHUNK_BLOCKS;
    s->n_chunks = 0;
    for (uint32_t i = 0; i < s->n_regions; i++) s->n_chunks += (uint32_t)((s->regions[i].n_blocks + most - 1) / most);
    s->chunks = calloc(s->n_chunks + 1, sizeof *s->chunks);
    s->order = calloc(s->n_chunks + 1, sizeof *s->order);
    s->block_chunk = calloc(s->n_blocks + 1, sizeof *s->block_chunk);
    if (!s->chunks || !s->order || !s->block_chunk) return -ENOMEM;
    mpk__chunk *chunk = s->chunks;
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *r = &s->regions[i];
        for (uint32_t k = 0; k < r->n_blocks; k++) {
            if (k && k % most == 0) chunk++;
            if (k % most == 0) chunk->first = r->first_block + k;
            chunk->count++;
            s->block_chunk[r->first_block + k] = (uint32_t)(chunk - s->chunks);
        }
        if (r->n_blocks) chunk++;
    }
    return 0;
}

void mpk__order_destroy(mpk_session *s) {
    free(s->chunks);
    free((void *)s->order);
    free(s->block_chunk);
    s->block_chunk = NULL;
    s->chunks = NULL;
    s->order = NULL;
    s->n_chunks = 0;
}

static int by_deadline(const void *a, const void *b) {
    const job *x = a, *y = b;
    if (x->deadline_us != y->deadline_us) return x->deadline_us < y->deadline_us ? -1 : 1;
    return x->chunk < y->chunk ? -1 : 1;
}

/* The chunks with blocks that are due, in the order of their addresses. */
static uint32_t list_jobs(const mpk_session *s, job *jobs) {
    uint32_t n = 0;
    for (uint32_t c = 0; c < s->n_chunks; c++) {
        job j = {.deadline_us = MPK__NOT_WRITTEN, .chunk = c};
        for (uint32_t b = s->chunks[c].first; b < s->chunks[c].first + s->chunks[c].count; b++) {
            const mpk__history *h = &s->history[b];
            if (!h->is_due) continue;
            j.blocks++;
            if (!h->is_held && h->deadline_us < j.deadline_us) j.deadline_us = h->deadline_us;
        }
        if (j.blocks) jobs[n++] = j;
    }
    return n;
}

static void put_off_late_jobs(job *jobs, uint32_t n, double block_us) {
    uint32_t stacks[MPK__CHUNK_BLOCKS + 1] = {0}, total = 0;
    for (uint32_t i = 0; i < n && jobs[i].deadline_us != MPK__NOT_WRITTEN; i++) {
        jobs[i].below = stacks[jobs[i].blocks];
        stacks[jobs[i].blocks] = i + 1;
        total += jobs[i].blocks;
        if (total * block_us <= jobs[i].deadline_us) continue;
        uint32_t longest = MPK__CHUNK_BLOCKS;
        while (!stacks[longest]) longest--;
        job *late = &jobs[stacks[longest] - 1];
        late->is_late = true;
        stacks[longest] = late->below;
        total -= longest;
    }
}

void mpk__order_chunks(mpk_session *s) {
    job *jobs = calloc(s->n_chunks + 1, sizeof *jobs);
    if (!jobs) { /* then by address, all of them */
        for (uint32_t c = 0; c < s->n_chunks; c++) atomic_store(&s->order[c], c);
        atomic_store(&s->n_ordered, s->n_chunks);
        return;
    }
    uint32_t n = list_jobs(s, jobs), at = 0;
    if (!s->ignores_deadlines) {
        qsort(jobs, n, sizeof *jobs, by_deadline);
        put_off_late_jobs(jobs, n, s->drain_us);
    }
    for (int late = 0; late < 2; late++)
        for (uint32_t i = 0; i < n; i++)
            if (jobs[i].is_late == (late == 1)) atomic_store(&s->order[at++], jobs[i].chunk);
    atomic_store(&s->n_ordered, n);
    free(jobs);
}
