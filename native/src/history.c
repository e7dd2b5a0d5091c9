/* What is known of each block from the cuts before: since when it is as it is, and when it is written to; and what each
 * slot holds. Together they tell which blocks a slot lacks.
 *
 * A block is CLEAN from the moment when it was saved until its first write, over any number of cuts, so a cut finds the
 * blocks that changed since the last one by their states. A block whose version is no newer than the cut that a slot
 * holds is in that slot as it is now. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

int mpk__history_create(mpk_session *s) {
    s->history = calloc(s->n_blocks ? s->n_blocks : 1, sizeof *s->history);
    if (!s->history) return -ENOMEM;
    for (uint32_t b = 0; b < s->n_blocks; b++) atomic_init(&s->history[b].written_us, MPK__NOT_WRITTEN);
    s->cut = MPK__RESTORED_CUT;
    s->is_distrusted = false;
    atomic_store(&s->to_check, 0);
    atomic_store(&s->run_us, 0);
    return 0;
}

void mpk__history_destroy(mpk_session *s) {
    free(s->history);
    s->history = NULL;
    while (s->holdings) {
        mpk__holding *next = s->holdings->next;
        free(s->holdings->path);
        free(s->holdings);
        s->holdings = next;
    }
}

mpk__holding *mpk__holding_of(mpk_session *s, const char *path) {
    for (mpk__holding *h = s->holdings; h; h = h->next)
        if (strcmp(h->path, path) == 0) return h;
    mpk__holding *h = calloc(1, sizeof *h);
    if (!h || !(h->path = strdup(path))) {
        free(h);
        return NULL;
    }
    h->next = s->holdings;
    return s->holdings = h;
}

/* Without barriers, which would cost more than the work: the program is blocked, and no drain is under way. */
uint32_t mpk__history_advance(mpk_session *s) {
    uint32_t n_dirty = 0;
    if (atomic_exchange(&s->untracked, -1) >= 0) s->is_distrusted = true; /* in one step: it may be found just now */
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        mpk__history *h = &s->history[b];
        if (mpk__state_of(atomic_load(&s->blocks[b])) != MPK__CLEAN || s->is_distrusted) {
            h->version = s->cut;
            h->is_restored = false;
            atomic_store_explicit(&h->crc_is_known, false, memory_order_relaxed);
        }
        h->was_ahead = atomic_load_explicit(&h->is_ahead, memory_order_relaxed);
        atomic_store_explicit(&h->is_ahead, false, memory_order_relaxed);
        h->deadline_us = atomic_load_explicit(&h->written_us, memory_order_relaxed);
        atomic_store_explicit(&h->written_us, MPK__NOT_WRITTEN, memory_order_relaxed);
        h->is_dirty = h->version > s->epoch.holding->cut || h->is_restored;
        n_dirty += h->is_dirty;
    }
    return n_dirty;
}

void mpk__history_note_write_in_handler(mpk_session *s, uint32_t b, uint64_t now_ns) {
    uint64_t us = (now_ns - s->epoch.started_ns) / 1000;
    uint32_t not_yet = MPK__NOT_WRITTEN;
    atomic_compare_exchange_strong(&s->history[b].written_us, &not_yet,
                                   us < MPK__NOT_WRITTEN ? (uint32_t)us : MPK__NOT_WRITTEN - 1);
}

void mpk__history_note_saved(mpk_session *s, uint32_t b, bool crc_is_known) {
    mpk__history *h = &s->history[b];
    if (!crc_is_known) return;
    atomic_store(&h->crc_is_known, true);
    if (!h->is_restored) return;
    h->is_restored = false; /* compared: what the program did to it between reading and sealing shows here */
    if (s->crc[b][0] != h->restored_crc) h->version = s->cut;
}

static int read_all(int fd, void *data, size_t bytes, uint64_t offset) {
    int64_t have = mpk__read_again(fd, data, bytes, offset);
    return have < 0 ? (int)have : (size_t)have == bytes ? 0 : -ESTALE;
}

/* Blocks of an array that begins inside a page are not those of the file: they count as changed, and so does a
 * last one that ends with an edge. */
static int read_checksums(mpk_session *s, int fd, const uint64_t *offsets) {
    uint32_t *table = calloc(s->n_blocks + 1, sizeof *table);
    int error = table ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < s->n_regions && !error; i++) {
        const mpk__region *r = &s->regions[i];
        if (r->head || !r->n_blocks) continue;
        error = read_all(fd, table, r->n_blocks * sizeof *table, offsets[i]);
        for (uint32_t k = 0; k < r->n_blocks && !error; k++) {
            mpk__history *h = &s->history[r->first_block + k];
            h->is_restored = k + 1 < r->n_blocks || !r->tail;
            h->restored_crc = table[k];
        }
    }
    free(table);
    return error;
}

/* From here on its writes are seen. */
static bool close_restored(mpk_session *s, uint32_t b) {
    if (!s->history[b].is_restored || atomic_load(&s->pins[b])) return false;
    s->history[b].version = s->cut;
    atomic_store(&s->blocks[b], mpk__word(s->cut, 0, MPK__CLEAN));
    if (atomic_exchange(&s->opened[b], 0)) atomic_fetch_add(&s->n_closed, 1);
    return true;
}

int mpk_session_resume(mpk_session *s, const char *path, uint64_t record_offset, const uint64_t *checksum_offsets,
                       uint64_t epoch) {
    if (!s->sealed || mpk__is_forked_child()) return -EINVAL;
    if (s->cut != MPK__RESTORED_CUT) return -EBUSY;
    mpk__holding *h = mpk__holding_of(s, path);
    if (!h) return -ENOMEM;
    int fd, none;
    int error = mpk__prim_open_slot(path, false, false, &none, &fd);
    if (error) return error;
    mpk_record record;
    error = read_all(fd, &record, sizeof record, record_offset);
    if (!error && !mpk__record_is_complete(&record, epoch)) error = -ESTALE;
    if (!error) error = mpk__prim_file_id(fd, h->file);
    if (!error) error = read_checksums(s, fd, checksum_offsets);
    mpk__prim_close(fd);
    if (!error) error = mpk__fault_install();
    if (!error) error = mpk__protect_blocks(s, close_restored);
    if (error) {
        for (uint32_t b = 0; b < s->n_blocks; b++) s->history[b].is_restored = false;
        return error;
    }
    h->epoch = epoch;
    h->run = record.run;
    h->cut = MPK__RESTORED_CUT;
    s->epoch.started_ns = mpk__prim_now_ns();
    return 0;
}
