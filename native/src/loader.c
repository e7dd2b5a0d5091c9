/* Lazy reading. The program computes on private mappings of the slot, and the threads of this file bring them into memory of their
 * own. A thread reads a chunk through the page cache, which is what an untouched page of the program shows, and compares it with
 * its checksums. It does not compare the program's memory, because the program may have written to it. Then it makes each page
 * of the chunk the program's own, whatever the page contains by now, and drops the chunk from the page cache.
 *
 * One idle thread loads, and two urgent ones while they are boosted. They take chunks by a counter in each part, so that none
 * waits for another. Parts are only ever added, at the end of a list. fork() waits until all is loaded: the child has none of
 * these threads, and the parent may soon overwrite the file that the child's pages show. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"
#include "mpickpt.h"
#include "retry.h"
#include "workers.h"

#ifndef MPK_LOAD_CHUNK_BYTES /* tests have smaller ones */
#define MPK_LOAD_CHUNK_BYTES ((size_t)1 << 20)
#endif
#define AHEAD_BYTES ((size_t)8 << 20) /* so much is asked of the storage before it is read */
#define PART_SHIFT 40

typedef struct part {
    uint8_t *memory;
    size_t bytes;
    uint64_t offset;
    uint32_t number;
    uint32_t *checksums;
    _Atomic size_t next; /* the first byte that no thread has taken up */
    _Atomic(struct part *) behind;
} part;

struct mpk_loader {
    int fd;
    size_t block_bytes, chunk;
    _Atomic(part *) first;
    part *last;
    uint32_t n_parts;
    mpk__workers workers;
    _Atomic uint32_t pending; /* chunks that are not loaded; waited on */
    _Atomic uint64_t bytes, bytes_loaded;
    _Atomic uint64_t corrupt; /* the first block that was found to be: part, block, and a bit that says that there is one */
    _Atomic int error;
};

/* Locked over a fork(), so that the child finds no loader that is half created or half destroyed. */
static pthread_mutex_t living = PTHREAD_MUTEX_INITIALIZER;
static mpk_loader *alive;

static void note_corrupt(mpk_loader *l, const part *p, size_t block) {
    uint64_t none = 0;
    atomic_compare_exchange_strong(&l->corrupt, &none, (uint64_t)p->number << PART_SHIFT | block << 1 | 1);
}

/* After the first failure nothing is tried again: the epoch is lost. */
static bool try_again(const mpk_loader *l, int error, unsigned *tries) {
    return !atomic_load(&l->error) && mpk__try_again(error, tries);
}

static int check(mpk_loader *l, const part *p, size_t at, size_t bytes, uint8_t *buffer) {
    unsigned tries = 0;
    int64_t have;
    do have = mpk__prim_read(l->fd, buffer, bytes, p->offset + at);
    while (have < 0 && try_again(l, (int)-have, &tries));
    for (size_t in = 0; in < bytes && have >= 0; in += l->block_bytes) {
        size_t b = (at + in) / l->block_bytes;
        size_t length = bytes - in < l->block_bytes ? bytes - in : l->block_bytes;
        if (in + length > (size_t)have || mpk_crc32c(0, buffer + in, length) != p->checksums[b]) note_corrupt(l, p, b);
    }
    return have < 0 ? (int)have : 0;
}

static void read_ahead(const mpk_loader *l, const part *p) {
    size_t from = atomic_load(&p->next);
    if (from >= p->bytes) return;
    mpk__prim_read_ahead(l->fd, p->offset + from, p->bytes - from < AHEAD_BYTES ? p->bytes - from : AHEAD_BYTES);
}

/* Loads the next chunk of a part, if there is one that nobody has taken up. */
static bool load_chunk(mpk_loader *l, part *p, uint8_t *buffer) {
    if (atomic_load(&p->next) >= p->bytes) return false;
    size_t at = atomic_fetch_add(&p->next, l->chunk);
    if (at >= p->bytes) return false;
    size_t bytes = p->bytes - at < l->chunk ? p->bytes - at : l->chunk;
    read_ahead(l, p);
    int error = check(l, p, at, bytes, buffer);
    mpk__chaos();
    unsigned tries = 0;
    int failed;
    do failed = mpk__prim_own_pages(p->memory + at, bytes);
    while (failed && try_again(l, -failed, &tries));
    if (!error) error = failed;
    int none = 0;
    if (error) atomic_compare_exchange_strong(&l->error, &none, -error);
    mpk__prim_forget_range(l->fd, p->offset + at, bytes);
    atomic_fetch_add(&l->bytes_loaded, bytes);
    if (atomic_fetch_sub(&l->pending, 1) == 1) mpk__prim_wake_in_handler(&l->pending);
    return true;
}

static bool is_wanted(const mpk_loader *l, const mpk__worker *self) {
    return !atomic_load(&l->workers.stop) && self->urgent == (atomic_load(&l->workers.boost) != 0);
}

static int64_t turn(void *loader, mpk__worker *self, uint32_t wakeups) {
    mpk_loader *l = loader;
    (void)wakeups; /* it goes on until there is nothing to do */
    for (part *p = atomic_load(&l->first); p; p = atomic_load(&p->behind))
        while (is_wanted(l, self) && load_chunk(l, p, self->buffer)) continue;
    return -1;
}

static void before_fork(void) {
    pthread_mutex_lock(&living);
    if (!alive) return;
    mpk_loader_boost(alive, 1);
    mpk_loader_wait(alive, -1);
}

static void after_fork(void) { pthread_mutex_unlock(&living); }

static void register_fork(void) { pthread_atfork(before_fork, after_fork, after_fork); }

static int become_alive(mpk_loader *l) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork);
    pthread_mutex_lock(&living);
    bool is_first = !alive;
    if (is_first) alive = l;
    pthread_mutex_unlock(&living);
    return is_first ? 0 : -EBUSY;
}

int mpk_loader_create(mpk_loader **out, const char *path, size_t block_bytes) {
    if (block_bytes == 0 || block_bytes % mpk__prim_page_size()) return -EINVAL;
    mpk_loader *l = calloc(1, sizeof *l);
    if (!l) return -ENOMEM;
    l->block_bytes = block_bytes;
    l->chunk = block_bytes > MPK_LOAD_CHUNK_BYTES ? block_bytes : MPK_LOAD_CHUNK_BYTES / block_bytes * block_bytes;
    int direct_fd, error = mpk__prim_open_slot(path, false, false, &direct_fd, &l->fd);
    if (!error) error = become_alive(l);
    if (error) {
        mpk__prim_close(l->fd);
        free(l);
        return error;
    }
    mpk_crc32c(0, "", 0); /* makes its tables */
    const mpk__work work = {.turn = turn,
                            .idle_name = "mpickpt-lazy",
                            .urgent_name = "mpickpt-load",
                            .n_idle = 1,
                            .n_urgent = 2,
                            .buffer_bytes = l->chunk};
    error = mpk__workers_start(&l->workers, &work, l);
    if (error)
        mpk_loader_destroy(l);
    else
        *out = l;
    return error;
}

static part *new_part(const mpk_loader *l, uint64_t offset, size_t bytes, const uint32_t *checksums) {
    size_t blocks = (bytes + l->block_bytes - 1) / l->block_bytes;
    part *p = calloc(1, sizeof *p);
    uint32_t *copy = malloc(blocks * sizeof *copy);
    if (!p || !copy) {
        free(p);
        free(copy);
        return NULL;
    }
    memcpy(copy, checksums, blocks * sizeof *copy);
    p->offset = offset;
    p->bytes = bytes;
    p->checksums = copy;
    p->number = l->n_parts;
    return p;
}

int mpk_loader_map(mpk_loader *l, uint64_t offset, size_t bytes, const uint32_t *checksums, void **memory) {
    if (bytes == 0 || offset % mpk__prim_page_size()) return -EINVAL;
    int64_t end = mpk__prim_file_bytes(l->fd);
    if (end < 0) return (int)end;
    if ((uint64_t)end < offset || (uint64_t)end - offset < bytes) return -ENODATA;
    part *p = new_part(l, offset, bytes, checksums);
    if (!p) return -ENOMEM;
    p->memory = mpk__prim_map_file(l->fd, offset, bytes);
    if (!p->memory) {
        int error = -errno;
        free(p->checksums);
        free(p);
        return error;
    }
    *memory = p->memory;
    atomic_fetch_add(&l->pending, (uint32_t)((bytes + l->chunk - 1) / l->chunk));
    atomic_fetch_add(&l->bytes, bytes);
    atomic_store(l->last ? &l->last->behind : &l->first, p);
    l->last = p;
    l->n_parts++;
    mpk__workers_wake_in_handler(&l->workers, MPK__WAKE_ALL);
    return 0;
}

void mpk_loader_boost(mpk_loader *l, int on) { mpk__workers_boost(&l->workers, on != 0); }

int mpk_loader_wait(mpk_loader *l, int64_t timeout_ns) {
    uint64_t start = mpk__prim_now_ns();
    uint32_t pending;
    while ((pending = atomic_load(&l->pending)) != 0) {
        int64_t left = timeout_ns < 0 ? -1 : timeout_ns - (int64_t)(mpk__prim_now_ns() - start);
        if (timeout_ns >= 0 && left <= 0) return 0;
        mpk__prim_wait_in_handler(&l->pending, pending, left);
    }
    return 1;
}

void mpk_loader_progress(const mpk_loader *l, mpk_loading *out) {
    uint64_t found = atomic_load(&l->corrupt);
    *out = (mpk_loading){
        .bytes = atomic_load(&l->bytes),
        .bytes_loaded = atomic_load(&l->bytes_loaded),
        .is_corrupt = (int)(found & 1),
        .part = (uint32_t)(found >> PART_SHIFT),
        .block = (found & (((uint64_t)1 << PART_SHIFT) - 1)) >> 1,
        .error = atomic_load(&l->error),
    };
}

void mpk_loader_destroy(mpk_loader *l) {
    if (!l) return;
    mpk__workers_stop(&l->workers);
    pthread_mutex_lock(&living);
    alive = NULL;
    pthread_mutex_unlock(&living);
    for (part *p = atomic_load(&l->first), *behind; p; p = behind) {
        behind = atomic_load(&p->behind);
        free(p->checksums);
        free(p);
    }
    mpk__prim_close(l->fd);
    free(l);
}
