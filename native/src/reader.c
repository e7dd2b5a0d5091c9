/* Reading a region back with O_DIRECT, straight into the program's memory. Each block is compared with its checksum while it is
 * still in the processor's caches. More threads than there are processors take chunks in turn, so that the storage always has
 * several requests while some threads compute checksums or wait for the kernel to clear the pages that they read into. Any
 * thread may call it; no session is needed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mpickpt.h"
#include "retry.h"
#include "workers.h"

#define CHUNK_BYTES ((size_t)1 << 20)
enum { READERS = 8 }; /* with the caller */

typedef struct reading {
    int direct_fd, buffered_fd;
    uint8_t *memory;
    size_t bytes, block_bytes, chunk;
    uint64_t offset;
    const uint32_t *checksums;
    bool *is_corrupt; /* per block */
    _Atomic size_t next; /* the first byte that no thread has taken up */
    _Atomic int error;
} reading;

/* Bytes read, fewer at the end of the file, or -errno. `bounce` is for memory that O_DIRECT cannot use. */
static int64_t read_chunk(const reading *r, uint8_t *bounce, uint8_t *memory, size_t bytes, uint64_t offset) {
    if (r->direct_fd < 0 || offset % MPK__IO_ALIGN) return mpk__read_again(r->buffered_fd, memory, bytes, offset);
    bool straight = (uintptr_t)memory % MPK__IO_ALIGN == 0;
    size_t whole = bytes / MPK__IO_ALIGN * MPK__IO_ALIGN;
    uint8_t *to = straight ? memory : bounce;
    int64_t have = whole ? mpk__read_again(r->direct_fd, to, whole, offset) : 0;
    if (have == -EINVAL) return mpk__read_again(r->buffered_fd, memory, bytes, offset);
    if (have > 0 && !straight) memcpy(memory, bounce, (size_t)have);
    if (have < (int64_t)whole || whole == bytes) return have;
    int64_t rest = mpk__read_again(r->buffered_fd, memory + whole, bytes - whole, offset + whole);
    return rest < 0 ? rest : have + rest;
}

static int64_t read_and_check(reading *r, uint8_t *bounce, size_t at) {
    size_t wanted = r->bytes - at < r->chunk ? r->bytes - at : r->chunk;
    uint8_t *to = r->memory + at;
    int64_t have = read_chunk(r, bounce, to, wanted, r->offset + at);
    for (size_t in = 0; in < wanted && have >= 0; in += r->block_bytes) {
        size_t b = (at + in) / r->block_bytes;
        size_t length = wanted - in < r->block_bytes ? wanted - in : r->block_bytes;
        r->is_corrupt[b] = in + length > (size_t)have || mpk_crc32c(0, to + in, length) != r->checksums[b];
    }
    return have;
}

/* Reads chunks until there are no more, or one cannot be read. */
static void read_chunks(reading *r, uint8_t *bounce) {
    int64_t have = bounce ? 0 : -ENOMEM;
    size_t at;
    while (have >= 0 && !atomic_load(&r->error) && (at = atomic_fetch_add(&r->next, r->chunk)) < r->bytes)
        have = read_and_check(r, bounce, at);
    if (have < 0) atomic_store(&r->error, (int)have);
}

static int64_t turn(void *context, mpk__worker *self, uint32_t wakeups) {
    (void)wakeups; /* there is one turn */
    read_chunks(context, self->buffer);
    return -1;
}

/* The caller reads, too. Where there can be fewer others, it has more to do. */
static void read_together(reading *r) {
    mpk__workers others = {0};
    size_t wanted = r->bytes ? (r->bytes - 1) / r->chunk : 0;
    uint32_t n = wanted < READERS - 1 ? (uint32_t)wanted : READERS - 1;
    const mpk__work work = {.turn = turn, .urgent_name = "mpickpt-read", .n_urgent = n, .buffer_bytes = r->chunk};
    mpk__workers_start(&others, &work, r);
    uint8_t *bounce = mpk__prim_map(r->chunk, false);
    read_chunks(r, bounce);
    mpk__prim_unmap(bounce, r->chunk);
    mpk__workers_stop(&others);
}

int mpk_read_blocks(const char *path, uint64_t offset, void *memory, size_t bytes, size_t block_bytes,
                    const uint32_t *checksums, int direct, size_t *corrupt, size_t *n_corrupt) {
    *n_corrupt = 0;
    if (block_bytes == 0 || block_bytes % MPK__IO_ALIGN) return -EINVAL;
    size_t n_blocks = (bytes + block_bytes - 1) / block_bytes;
    reading r = {.memory = memory, .bytes = bytes, .block_bytes = block_bytes, .offset = offset, .checksums = checksums};
    r.chunk = block_bytes > CHUNK_BYTES ? block_bytes : CHUNK_BYTES / block_bytes * block_bytes;
    r.is_corrupt = calloc(n_blocks ? n_blocks : 1, sizeof *r.is_corrupt);
    if (!r.is_corrupt) return -ENOMEM;
    int error = mpk__prim_open_slot(path, direct, false, &r.direct_fd, &r.buffered_fd);
    if (!error) {
        read_together(&r);
        mpk__prim_close(r.direct_fd);
        mpk__prim_close(r.buffered_fd);
        error = atomic_load(&r.error);
    }
    for (size_t b = 0; b < n_blocks && !error; b++)
        if (r.is_corrupt[b]) corrupt[(*n_corrupt)++] = b;
    free(r.is_corrupt);
    return error;
}
