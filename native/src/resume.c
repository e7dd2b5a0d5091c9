/* Going on from a slot that was restored: what the program has not changed since is there already, and its writes are seen
 * from here on. Before the first cut, by the owner of the session. */
#include <errno.h>
#include <stdlib.h>

#include "cut.h"
#include "fault.h"
#include "fork.h"
#include "retry.h"
#include "session.h"
#include "writer.h"

static int read_all(int fd, void *data, size_t bytes, uint64_t offset) {
    int64_t have = mpk__read_again(fd, data, bytes, offset);
    return have < 0 ? (int)have : (size_t)have == bytes ? 0 : -ESTALE;
}

/* Blocks of an array that begins inside a page are not those of the file: they count as changed, and so does a
 * last one that ends with an edge. */
static int read_checksums(mpk_session *s, int fd, const uint64_t *offsets) {
    uint32_t *table = calloc(s->blocks.n + 1, sizeof *table);
    int error = table ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < s->blocks.n_regions && !error; i++) {
        const mpk__region *r = &s->blocks.regions[i];
        if (r->head || !r->n_blocks) continue;
        error = read_all(fd, table, r->n_blocks * sizeof *table, offsets[i]);
        for (uint32_t k = 0; k < r->n_blocks && !error; k++) {
            mpk__block_history *h = &s->history.block[r->first_block + k];
            h->is_restored = k + 1 < r->n_blocks || !r->tail;
            h->restored_crc = table[k];
        }
    }
    free(table);
    return error;
}

/* From here on its writes are seen. */
static bool close_restored(void *session, uint32_t b) {
    mpk_session *s = session;
    if (!s->history.block[b].is_restored || atomic_load(&s->blocks.pins[b])) return false;
    s->history.block[b].version = s->blocks.cut;
    mpk__word_set(&s->blocks, b, mpk__word(s->blocks.cut, 0, MPK__CLEAN), memory_order_seq_cst);
    mpk__block_note_closed(&s->blocks, b);
    return true;
}

int mpk_session_resume(mpk_session *s, const char *path, uint64_t record_offset, const uint64_t *checksum_offsets,
                       uint64_t epoch) {
    if (!s->sealed || mpk__is_forked_in_handler()) return -EINVAL;
    if (s->blocks.cut != MPK__RESTORED_CUT) return -EBUSY;
    mpk__holding *h = mpk__holding_of(&s->history, path);
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
    if (!error) error = mpk__blocks_protect(&s->blocks, close_restored, s);
    if (error) {
        for (uint32_t b = 0; b < s->blocks.n; b++) s->history.block[b].is_restored = false;
        return error;
    }
    h->epoch = epoch;
    h->run = record.run;
    h->cut = MPK__RESTORED_CUT;
    s->epoch.started_ns = mpk__prim_now_ns();
    return 0;
}
