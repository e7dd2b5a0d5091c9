/* Preallocated room for the images of blocks that the program wrote to before they were saved. */
#ifndef MPK_POOL_H
#define MPK_POOL_H

#include "invariant.h"
#include "mpickpt.h"
#include "prim.h"

typedef struct mpk__pool {
    uint8_t *memory;
    size_t entry_bytes;
    uint32_t n_entries;
    uint32_t (*crc)[2]; /* per entry: checksums of its image, as in mpk__blocks.crc */
    _Atomic uint64_t free_list; /* top entry + 1, with a count of changes above it against ABA */
    _Atomic uint32_t *next; /* per entry: the one below it + 1 */
    _Atomic uint32_t used;
    _Atomic uint32_t given; /* counts entries given back: the word that writers wait on */
    _Atomic uint32_t waiters;
#ifdef MPICKPT_CHECKS
    _Atomic bool *is_taken; /* per entry */
#endif
} mpk__pool;

/* Who is asked before memory is taken; may: NULL, nobody. */
typedef struct mpk__taking {
    mpk_may_take *may;
    void *context;
} mpk__taking;
static inline bool mpk__may_take(const mpk__taking *taking, size_t taken) {
    return !taking->may || taking->may(taking->context, taken);
}

/* At least so many entries, up to n_entries, as many as may be taken; -EDQUOT if those are fewer. */
int mpk__pool_create(mpk__pool *pool, size_t entry_bytes, size_t n_entries, size_t least, const mpk__taking *taking);
void mpk__pool_destroy(mpk__pool *pool);
uint32_t mpk__pool_take_in_handler(mpk__pool *pool); /* MPK__NO_ENTRY when it is full */
void mpk__pool_give_in_handler(mpk__pool *pool, uint32_t entry);
/* Copies an image, which begins on a page, into an entry. Checked: with its checksums, before and behind the border. */
void mpk__pool_put_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes);
void mpk__pool_put_checked_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes, size_t border);
/* Sleeps until an entry was given back after `given` was read, or a block was saved; at most a short while. */
void mpk__pool_wait_in_handler(mpk__pool *pool, uint32_t given);
void mpk__pool_notify_in_handler(mpk__pool *pool); /* a block was saved: whoever waited to copy it need not */
static inline uint8_t *mpk__pool_image(const mpk__pool *pool, uint32_t entry) {
    MPK__ASSERT(entry < pool->n_entries);
    return pool->memory + (size_t)entry * pool->entry_bytes;
}
/* More than half full: the urgent threads take part. */
static inline bool mpk__pool_is_pressed(const mpk__pool *pool) {
    return (uint64_t)atomic_load(&pool->used) * 2 > pool->n_entries;
}
bool mpk__pool_is_free(const mpk__pool *pool); /* each entry is on the free list, once; while nobody takes or gives */

#endif
