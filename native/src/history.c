/* What is known of each block from the cuts before: since when it is as it is, and when it is written to; and what each
 * slot has. Together they tell which blocks a slot lacks.
 *
 * A block is CLEAN from the moment when it was saved until its first write, over any number of cuts, so a cut finds the
 * blocks that changed since the last one by their states. A block whose version is no newer than the cut that a slot
 * holds is in that slot as it is now. */
#include "history.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int mpk__history_create(mpk__history *history, uint32_t n_blocks) {
    history->block = calloc(n_blocks ? n_blocks : 1, sizeof *history->block);
    if (!history->block) return -ENOMEM;
    for (uint32_t b = 0; b < n_blocks; b++) atomic_init(&history->block[b].written_us, MPK__NOT_WRITTEN);
    return 0;
}

void mpk__history_destroy(mpk__history *history) {
    free(history->block);
    history->block = NULL;
    while (history->holdings) {
        mpk__holding *next = history->holdings->next;
        free(history->holdings->path);
        free(history->holdings);
        history->holdings = next;
    }
}

mpk__holding *mpk__holding_of(mpk__history *history, const char *path) {
    for (mpk__holding *h = history->holdings; h; h = h->next)
        if (strcmp(h->path, path) == 0) return h;
    mpk__holding *h = calloc(1, sizeof *h);
    if (!h || !(h->path = strdup(path))) {
        free(h);
        return NULL;
    }
    h->next = history->holdings;
    return history->holdings = h;
}

/* Without barriers, which would cost more than the work: the program is blocked, and no drain is under way. */
uint32_t mpk__history_advance(mpk__history *history, const mpk__blocks *blocks, uint32_t slot_cut) {
    uint32_t n_dirty = 0;
    for (uint32_t b = 0; b < blocks->n; b++) {
        mpk__block_history *h = &history->block[b];
        if (mpk__state_of(atomic_load(&blocks->words[b])) != MPK__CLEAN || blocks->is_distrusted) {
            h->version = blocks->cut;
            h->is_restored = false;
            atomic_store_explicit(&h->crc_is_known, false, memory_order_relaxed);
        }
        h->was_ahead = atomic_load_explicit(&h->is_ahead, memory_order_relaxed);
        atomic_store_explicit(&h->is_ahead, false, memory_order_relaxed);
        h->deadline_us = atomic_load_explicit(&h->written_us, memory_order_relaxed);
        atomic_store_explicit(&h->written_us, MPK__NOT_WRITTEN, memory_order_relaxed);
        h->is_dirty = h->version > slot_cut || h->is_restored;
        n_dirty += h->is_dirty;
    }
    return n_dirty;
}

void mpk__history_note_write_in_handler(mpk__history *history, uint32_t b, uint64_t us) {
    uint32_t not_yet = MPK__NOT_WRITTEN;
    atomic_compare_exchange_strong(&history->block[b].written_us, &not_yet,
                                   us < MPK__NOT_WRITTEN ? (uint32_t)us : MPK__NOT_WRITTEN - 1);
}

void mpk__history_note_saved(mpk__history *history, const mpk__blocks *blocks, uint32_t b, bool crc_is_known) {
    mpk__block_history *h = &history->block[b];
    if (!crc_is_known) return;
    atomic_store(&h->crc_is_known, true);
    if (!h->is_restored) return;
    h->is_restored = false; /* compared: what the program did to it between reading and sealing shows here */
    if (blocks->crc[b][0] != h->restored_crc) h->version = blocks->cut;
}
