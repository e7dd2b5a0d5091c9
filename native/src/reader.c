/* Reading a region back: O_DIRECT straight into the program's memory, each block compared with its checksum while
 * the processor still has it in its caches. Any thread may call it; no session is needed. */
#include <errno.h>
#include <string.h>

#include "session.h"

#define CHUNK_BYTES ((size_t)4 << 20)

typedef struct source {
    int direct_fd, buffered_fd;
    uint8_t *bounce; /* for memory or offsets that O_DIRECT cannot use, and for the ragged end */
} source;

/* Bytes read, fewer at the end of the file, or -errno. */
static int64_t read_chunk(const source *from, uint8_t *memory, size_t bytes, uint64_t offset) {
    if (from->direct_fd < 0 || offset % MPK__IO_ALIGN) return mpk__prim_read(from->buffered_fd, memory, bytes, offset);
    bool straight = (uintptr_t)memory % MPK__IO_ALIGN == 0;
    size_t whole = bytes / MPK__IO_ALIGN * MPK__IO_ALIGN;
    uint8_t *to = straight ? memory : from->bounce;
    int64_t have = whole ? mpk__prim_read(from->direct_fd, to, whole, offset) : 0;
    if (have == -EINVAL) return mpk__prim_read(from->buffered_fd, memory, bytes, offset);
    if (have > 0 && !straight) memcpy(memory, from->bounce, (size_t)have);
    if (have < (int64_t)whole || whole == bytes) return have;
    int64_t rest = mpk__prim_read(from->buffered_fd, memory + whole, bytes - whole, offset + whole);
    return rest < 0 ? rest : have + rest;
}

int mpk_read_blocks(const char *path, uint64_t offset, void *memory, size_t bytes, size_t block_bytes,
                    const uint32_t *checksums, int direct, size_t *damaged, size_t *n_damaged) {
    source from;
    *n_damaged = 0;
    if (block_bytes == 0 || block_bytes % MPK__IO_ALIGN) return -EINVAL;
    size_t chunk = block_bytes > CHUNK_BYTES ? block_bytes : CHUNK_BYTES / block_bytes * block_bytes;
    int error = mpk__prim_open_slot(path, direct, false, &from.direct_fd, &from.buffered_fd);
    if (error) return error;
    from.bounce = mpk__prim_map(chunk, false, false);
    if (!from.bounce) error = -ENOMEM;
    for (size_t at = 0; at < bytes && !error; at += chunk) {
        size_t wanted = bytes - at < chunk ? bytes - at : chunk;
        uint8_t *to = (uint8_t *)memory + at;
        int64_t have = read_chunk(&from, to, wanted, offset + at);
        if (have < 0) {
            error = (int)have;
            break;
        }
        for (size_t in = 0; in < wanted; in += block_bytes) {
            size_t b = (at + in) / block_bytes;
            size_t length = wanted - in < block_bytes ? wanted - in : block_bytes;
            if (in + length > (size_t)have || mpk_crc32c(0, to + in, length) != checksums[b])
                damaged[(*n_damaged)++] = b;
        }
    }
    mpk__prim_unmap(from.bounce, chunk);
    mpk__prim_close(from.direct_fd);
    mpk__prim_close(from.buffered_fd);
    return error;
}
