/* The writer: bytes into the slot, and the order of a commit. Runs on the drain threads alone.
 *
 * Whole aligned sectors go O_DIRECT, straight from the program's pages or the pool: hardly any processor time. What
 * is ragged goes through the page cache on a second descriptor: the last bytes of an array, and where an array's
 * memory and its place in the file are aligned differently, both ends of each run. The two never meet in one sector. */
#include "writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "guard.h"
#include "order.h"

/* What is on disk, where it is for all programs that read it (docs/format.md). */
#define IS_AT(field, offset) _Static_assert(offsetof(mpk_record, field) == (offset), "a record has " #field " elsewhere")
_Static_assert(sizeof(mpk_record) == MPK_RECORD_BYTES && MPK_RECORD_BYTES == 4096, "a record has another size");
IS_AT(magic, 0);
IS_AT(state, 8);
IS_AT(rank, 12);
IS_AT(epoch, 16);
IS_AT(step, 24);
IS_AT(run, 32);
IS_AT(digest, 40);
IS_AT(objects_bytes, 72);
IS_AT(objects_crc, 80);
IS_AT(objects_spilled, 84);
IS_AT(cut_time_ns, 88);
IS_AT(blocked_ns, 96);
IS_AT(drain_ns, 104);
IS_AT(bytes_written, 112);
IS_AT(blocks_copied, 120);
IS_AT(stall_ns, 128);
IS_AT(error, 136);
IS_AT(reserved_word, 140);
IS_AT(bytes_waiting, 144);
IS_AT(channels_bytes, 152);
IS_AT(channels_crc, 160);
IS_AT(channels_spilled, 164);
IS_AT(reserved, 168);
IS_AT(crc, 4092);

/* The order of a commit, which holds whatever fails when:
 *   1. record WRITING, sync      (writer_open: from here on the slot's old epoch does not count)
 *   2. blocks                    (writer_put)
 *   3. the program's own files, sync; objects, channels, edges, checksums, sync; the folder's names too, where a payload has a
 *      file of its own
 *   4. record COMPLETE, sync     (writer_end: from here on the rank's part of the epoch counts) */

#define SYNC_BYTES ((size_t)16 << 20) /* that are waited for at a time */

static int put_bytes(int fd, const void *data, size_t bytes, uint64_t offset) {
    struct iovec one = {(void *)(uintptr_t)data, bytes};
    return bytes ? mpk__prim_write(fd, &one, 1, offset) : 0;
}

static int put_record(mpk__epoch *e, enum mpk_record_state state) {
    e->record.state = state;
    e->record.crc = mpk_crc32c(0, &e->record, offsetof(mpk_record, crc));
    int error = put_bytes(e->buffered_fd, &e->record, sizeof e->record, e->plan->record_offset);
    return error ? error : mpk__prim_sync(e->buffered_fd);
}

static void close_slot(mpk__epoch *e) {
    mpk__prim_close(e->direct_fd);
    mpk__prim_close(e->buffered_fd);
    e->direct_fd = e->buffered_fd = -1;
}

bool mpk__record_is_complete(const mpk_record *record, uint64_t epoch) {
    return record->crc == mpk_crc32c(0, record, offsetof(mpk_record, crc)) && record->state == MPK_COMPLETE &&
           record->epoch == epoch;
}

/* The slot must be the one that rank 0 has made for this layout: the cache of a network file system may lead to a file that
 * another machine has replaced. And where blocks are left out of an epoch because the slot has them, it must still contain what
 * this rank wrote there. */
static int check_slot(const mpk__epoch *e, const mpk__holding *held, const uint64_t file[2]) {
    mpk_record record;
    int64_t have = mpk__prim_read(e->buffered_fd, &record, sizeof record, e->plan->record_offset);
    if (have < 0) return (int)have;
    bool same = have == sizeof record;
    if (held->cut)
        same = same && mpk__record_is_complete(&record, held->epoch) && record.run == held->run &&
               memcmp(file, held->file, sizeof held->file) == 0;
    else if (record.crc == mpk_crc32c(0, &record, offsetof(mpk_record, crc)))
        same = same && memcmp(record.digest, e->record.digest, sizeof record.digest) == 0;
    return same ? 0 : -ESTALE;
}

int mpk__writer_open(mpk__epoch *e, bool want_direct) {
    mpk__holding held = *e->holding;
    e->holding->cut = 0; /* until the epoch is complete: after a failure all is written again */
    int error = mpk__prim_open_slot(e->plan->path, want_direct, true, &e->direct_fd, &e->buffered_fd);
    if (!error) error = mpk__prim_file_id(e->buffered_fd, e->holding->file);
    if (!error) error = check_slot(e, &held, e->holding->file);
    if (error) {
        close_slot(e); /* nothing is written to it, not even that it failed: it may be the file of another program */
        return error;
    }
    atomic_store(&e->use_direct, e->direct_fd >= 0);
    return put_record(e, MPK_WRITING);
}

/* The epoch is complete: the next one in this slot writes what has changed since. */
static void note_holding(mpk__epoch *e, uint32_t cut) {
    e->holding->epoch = e->record.epoch;
    e->holding->run = e->record.run;
    e->holding->cut = cut;
}

static size_t total(const struct iovec *pieces, int n) {
    size_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += pieces[i].iov_len;
    return bytes;
}

static int put_buffered(const mpk__epoch *e, const mpk__write *writes, int n) {
    int error = 0;
    for (const mpk__write *w = writes; w < writes + n && !error; w++) {
        struct iovec copy[w->n];
        memcpy(copy, w->iov, sizeof *copy * (size_t)w->n);
        error = mpk__prim_write(e->buffered_fd, copy, w->n, w->offset);
        if (!error) mpk__prim_flush_range(e->buffered_fd, w->offset, total(w->iov, w->n));
    }
    return error;
}

/* Copies the next bytes of the pieces, up to `most`, and moves the pieces on; gives how many. */
static size_t take_bytes(struct iovec **piece, int *n, uint8_t *to, size_t most) {
    size_t taken = 0;
    while (*n > 0 && taken < most) {
        size_t length = (*piece)->iov_len < most - taken ? (*piece)->iov_len : most - taken;
        memcpy(to + taken, (*piece)->iov_base, length);
        taken += length;
        (*piece)->iov_base = (uint8_t *)(*piece)->iov_base + length;
        (*piece)->iov_len -= length;
        if ((*piece)->iov_len == 0) (*piece)++, (*n)--;
    }
    return taken;
}

/* Pieces that begin inside a sector: through the bounce buffer, shifted so that the sectors fit. */
static int put_shifted(const mpk__epoch *e, uint8_t *bounce, const struct iovec *pieces, int n, uint64_t offset) {
    struct iovec copy[n], *next = copy;
    memcpy(copy, pieces, sizeof *pieces * (size_t)n);
    int error = 0;
    while (n > 0 && !error) {
        size_t shift = offset % MPK__IO_ALIGN; /* 0 from the second turn on */
        uint8_t *from = bounce + shift;
        size_t bytes = take_bytes(&next, &n, from, MPK__BOUNCE_BYTES - shift);
        size_t front = shift ? MPK__IO_ALIGN - shift : 0; /* up to the next sector */
        if (front > bytes) front = bytes;
        size_t middle = (bytes - front) / MPK__IO_ALIGN * MPK__IO_ALIGN, behind = front + middle;
        error = put_bytes(e->buffered_fd, from, front, offset);
        if (!error) error = put_bytes(e->direct_fd, from + front, middle, offset + front);
        if (!error) error = put_bytes(e->buffered_fd, from + behind, bytes - behind, offset + behind);
        offset += bytes;
    }
    return error;
}

/* Writes that begin on a sector go out as they lie in memory, all but a ragged end; all together. */
static int put_direct(const mpk__epoch *e, uint8_t *bounce, unsigned long queue, const mpk__write *writes, int n) {
    struct iovec pieces[MPK__CHUNK_BLOCKS], *next = pieces;
    mpk__write whole[MPK__CHUNK_BLOCKS];
    int n_whole = 0, error = 0;
    for (const mpk__write *w = writes; w < writes + n && !error; w++) {
        if (w->offset % MPK__IO_ALIGN) {
            error = put_shifted(e, bounce, w->iov, w->n, w->offset);
            continue;
        }
        memcpy(next, w->iov, sizeof *next * (size_t)w->n);
        struct iovec *last = next + w->n - 1;
        size_t bytes = total(w->iov, w->n);
        size_t ragged = bytes % MPK__IO_ALIGN; /* smaller than the last piece: all but an array's last are whole blocks */
        last->iov_len -= ragged;
        int pieces_left = last->iov_len ? w->n : w->n - 1;
        if (pieces_left) whole[n_whole++] = (mpk__write){next, pieces_left, w->offset};
        next += w->n;
        error = put_bytes(e->buffered_fd, (uint8_t *)last->iov_base + last->iov_len, ragged, w->offset + bytes - ragged);
    }
    return error ? error : mpk__prim_write_all(queue, e->direct_fd, whole, n_whole);
}

int mpk__writer_put(mpk__epoch *e, const mpk__worker *self, unsigned long queue, const mpk__write *writes, int n) {
    int error = -EINVAL;
    bool waiting = mpk__program_waits(); /* at the start: the program waited, so this cost it nothing */
    size_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += total(writes[i].iov, writes[i].n);
    if (atomic_load(&e->use_direct)) {
        error = put_direct(e, self->buffer, queue, writes, n);
        if (error == -EINVAL) atomic_store(&e->use_direct, 0); /* this file system wants more alignment than we have */
    }
    if (error == -EINVAL) error = put_buffered(e, writes, n);
    if (!error) atomic_fetch_add(&e->bytes_written, bytes);
    if (!error && waiting) atomic_fetch_add(&e->bytes_waiting, bytes);
    if (!error && !waiting && self->urgent) atomic_fetch_add(&e->bytes_urgent, bytes);
    return error;
}

/* Joins the checksums of a region's pieces, in the order of its bytes, into those of the file's blocks. */
typedef struct table {
    uint32_t *crc;
    size_t block_bytes, filled, n;
} table;

static void table_add(table *t, uint32_t crc, size_t bytes) {
    if (bytes == 0) return;
    t->crc[t->n] = t->filled ? mpk__crc32c_combine(t->crc[t->n], crc, bytes) : crc;
    t->filled += bytes;
    if (t->filled == t->block_bytes) t->n++, t->filled = 0;
}

static void table_add_bytes(table *t, const uint8_t *data, size_t bytes) {
    size_t first = t->block_bytes - t->filled;
    if (first > bytes) first = bytes;
    table_add(t, mpk_crc32c(0, data, first), first);
    table_add(t, mpk_crc32c(0, data + first, bytes - first), bytes - first);
}

static int put_checksums(const mpk__epoch *e, const mpk__blocks *blocks, uint32_t region) {
    const mpk__region *r = &blocks->regions[region];
    size_t n = (r->bytes + blocks->block_bytes - 1) / blocks->block_bytes;
    table t = {.crc = calloc(n ? n : 1, sizeof *t.crc), .block_bytes = blocks->block_bytes};
    if (!t.crc) return -ENOMEM;
    table_add_bytes(&t, r->edges, r->head);
    for (uint32_t i = 0; i < r->n_blocks; i++) {
        size_t b = r->first_block + i;
        mpk__place place = mpk__block_place_in_handler(blocks, (uint32_t)b);
        size_t before = mpk__bytes_before_border(blocks, &place);
        table_add(&t, blocks->crc[b][0], before);
        table_add(&t, blocks->crc[b][1], place.bytes - before);
    }
    if (r->tail) table_add_bytes(&t, r->edges + r->head, r->tail);
    int error = put_bytes(e->buffered_fd, t.crc, n * sizeof *t.crc, e->plan->checksum_offsets[region]);
    free(t.crc);
    return error;
}

/* At the commit, which is an urgent thread's. */
static void count_bytes(mpk__epoch *e, size_t bytes) {
    atomic_fetch_add(&e->bytes_written, bytes);
    atomic_fetch_add(&e->bytes_urgent, bytes);
}

static int put_edges(mpk__epoch *e, const mpk__blocks *blocks, uint32_t region) {
    const mpk__region *r = &blocks->regions[region];
    uint64_t offset = e->plan->data_offsets[region];
    int error = put_bytes(e->buffered_fd, r->edges, r->head, offset);
    if (!error && r->tail) error = put_bytes(e->buffered_fd, r->edges + r->head, r->tail, offset + r->head + r->data);
    count_bytes(e, r->head + r->tail);
    return error;
}

/* Into the slot, or with a path into a file of its own. */
static int put_payload(mpk__epoch *e, const void *data, size_t bytes, uint64_t offset, const char *spill_path, uint32_t *crc) {
    count_bytes(e, bytes);
    *crc = mpk_crc32c(0, data, bytes);
    if (!spill_path) return put_bytes(e->buffered_fd, data, bytes, offset);
    int fd = mpk__prim_create_file(spill_path);
    if (fd < 0) return fd;
    int error = put_bytes(fd, data, bytes, 0);
    if (!error) error = mpk__prim_sync(fd);
    mpk__prim_close(fd);
    return error ? error : mpk__prim_sync_folder_of(spill_path);
}

static int put_payloads(mpk__epoch *e) {
    const mpk_plan *plan = e->plan;
    mpk_record *record = &e->record;
    record->channels_bytes = e->channels_bytes;
    record->channels_spilled = e->channels_bytes > plan->channels_room;
    const char *channels_path = record->channels_spilled ? plan->channels_spill_path : NULL;
    int error = put_payload(e, plan->objects, plan->objects_bytes, plan->objects_offset, plan->spill_path,
                            &record->objects_crc);
    if (error) return error;
    return put_payload(e, e->channels, e->channels_bytes, plan->channels_offset, channels_path, &record->channels_crc);
}

/* What went through the page cache takes its time in the sync. It is waited for in parts, so that progress shows. */
static int wait_for_buffered(const mpk__epoch *e, const mpk__blocks *blocks, _Atomic uint32_t *calls_ended) {
    int error = 0;
    for (uint32_t i = 0; i < blocks->n_regions && !error; i++) {
        const mpk__region *r = &blocks->regions[i];
        for (size_t from = 0; from < r->bytes && !error; from += SYNC_BYTES) {
            size_t bytes = r->bytes - from < SYNC_BYTES ? r->bytes - from : SYNC_BYTES;
            error = mpk__prim_wait_range(e->buffered_fd, e->plan->data_offsets[i] + from, bytes);
            atomic_fetch_add(calls_ended, 1);
        }
    }
    return error;
}

/* A payload may tell how long such a file is, so its bytes are on the disk before the payload counts. */
static int sync_files(mpk__epoch *e, _Atomic uint32_t *calls_ended) {
    int error = 0;
    for (size_t i = 0; i < e->n_files && !error; i++) {
        error = mpk__prim_sync(e->files[i]);
        if (error) atomic_store(&e->unsynced_file, (int32_t)i);
        atomic_fetch_add(calls_ended, 1);
    }
    return error;
}

int mpk__writer_put_rest(mpk__epoch *e, const mpk__blocks *blocks, _Atomic uint32_t *calls_ended) {
    int error = sync_files(e, calls_ended);
    if (!error) error = put_payloads(e);
    for (uint32_t i = 0; i < blocks->n_regions && !error; i++) {
        error = put_edges(e, blocks, i);
        if (!error) error = put_checksums(e, blocks, i);
    }
    if (!error && !atomic_load(&e->use_direct)) error = wait_for_buffered(e, blocks, calls_ended);
    return error ? error : mpk__prim_sync(e->buffered_fd);
}

void mpk__writer_close(mpk__epoch *e) { close_slot(e); }

int mpk__writer_end(mpk__epoch *e, uint32_t cut, int error) {
    mpk_record *record = &e->record;
    record->blocked_ns = atomic_load(&e->blocked_ns);
    record->drain_ns = mpk__prim_now_ns() - e->started_ns;
    record->bytes_written = atomic_load(&e->bytes_written);
    record->bytes_waiting = atomic_load(&e->bytes_waiting);
    record->blocks_copied = atomic_load(&e->blocks_copied);
    record->stall_ns = atomic_load(&e->stall_ns);
    if (!error) error = put_record(e, MPK_COMPLETE);
    if (!error) note_holding(e, cut);
    if (error && e->buffered_fd >= 0) {
        record->error = -error;
        put_record(e, MPK_FAILED); /* if the storage refuses this too, the record stays WRITING */
    }
    close_slot(e);
    mpk__epoch_close_files(e); /* here, and not at the next cut: some storage writes to the disk when a file is closed */
    return error;
}
