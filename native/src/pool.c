/* The pool is a fixed number of block-sized entries, which the fault handler takes and the drain threads give back. Its free
 * entries form a lock-free stack. A writer that finds none sleeps on a futex. It never spins, because the idle drain threads,
 * which have to make room, get no processor time while another thread spins. */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "blocks.h"

#define TAG_UNIT ((uint64_t)1 << 32)
#define PIECE ((size_t)1536) /* bytes that are checked and then copied: their stores are on the way while the next are loaded */
#define WAIT_NS 20000000 /* a writer tries again this often even if nobody wakes it */

/* An entry has one owner from when it is taken until it is given back. */
#ifdef MPICKPT_CHECKS
static bool create_owners(mpk__pool *pool) {
    return (pool->is_taken = calloc(pool->n_entries, sizeof *pool->is_taken)) != NULL;
}
static void destroy_owners(mpk__pool *pool) { free((void *)pool->is_taken); }
static void note_owner_in_handler(mpk__pool *pool, uint32_t entry, bool is_taken) {
    MPK__ASSERT(entry < pool->n_entries);
    MPK__ASSERT(atomic_exchange(&pool->is_taken[entry], is_taken) != is_taken);
}
#else
static bool create_owners(mpk__pool *pool) { return pool != NULL; }
static void destroy_owners(mpk__pool *pool) { (void)pool; }
static void note_owner_in_handler(mpk__pool *pool, uint32_t entry, bool is_taken) { (void)pool, (void)entry, (void)is_taken; }
#endif

/* Makes the memory present step by step; gives the bytes that are. */
static size_t populate(uint8_t *memory, size_t bytes, const mpk__taking *taking, int *error) {
    size_t done = 0;
    while (done < bytes && mpk__may_take(taking, done)) {
        size_t step = bytes - done < MPK_TAKING_STEP ? bytes - done : MPK_TAKING_STEP;
        *error = mpk__prim_populate(memory + done, step);
        if (*error) break;
        done += step;
    }
    return done;
}

int mpk__pool_create(mpk__pool *pool, size_t entry_bytes, size_t n_entries, size_t least, const mpk__taking *taking) {
    if (n_entries == 0 || n_entries >= MPK__NO_ENTRY || n_entries > SIZE_MAX / entry_bytes) return -EINVAL;
    size_t bytes = entry_bytes * n_entries, taken = 0;
    int error = -ENOMEM;
    pool->memory = mpk__prim_map(bytes, true);
    if (pool->memory) {
        error = 0;
        taken = populate(pool->memory, bytes, taking, &error) / entry_bytes * entry_bytes;
        if (!error && (taken == 0 || taken < least * entry_bytes)) error = -EDQUOT;
        mpk__prim_unmap(taken < bytes ? pool->memory + taken : NULL, bytes - taken);
    }
    if (error) {
        if (taken) mpk__prim_unmap(pool->memory, taken);
        pool->memory = NULL;
        return error;
    }
    n_entries = taken / entry_bytes;
    pool->next = calloc(n_entries, sizeof *pool->next);
    pool->crc = calloc(n_entries, sizeof *pool->crc);
    pool->entry_bytes = entry_bytes;
    pool->n_entries = (uint32_t)n_entries;
    if (!create_owners(pool) || !pool->next || !pool->crc) {
        mpk__pool_destroy(pool);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < pool->n_entries; i++) atomic_init(&pool->next[i], i + 1 < pool->n_entries ? i + 2 : 0);
    atomic_init(&pool->free_list, 1);
    atomic_init(&pool->used, 0);
    atomic_init(&pool->given, 0);
    atomic_init(&pool->waiters, 0);
    return 0;
}

void mpk__pool_destroy(mpk__pool *pool) {
    mpk__prim_unmap(pool->memory, pool->entry_bytes * pool->n_entries);
    destroy_owners(pool);
    free((void *)pool->next);
    free(pool->crc);
    *pool = (mpk__pool){0};
}

uint32_t mpk__pool_take_in_handler(mpk__pool *pool) {
    uint64_t top = atomic_load(&pool->free_list);
    for (;;) {
        uint32_t first = (uint32_t)top;
        if (first == 0) return MPK__NO_ENTRY;
        uint64_t below = atomic_load(&pool->next[first - 1]);
        if (atomic_compare_exchange_weak(&pool->free_list, &top, ((top + TAG_UNIT) & ~(TAG_UNIT - 1)) | below)) {
            atomic_fetch_add(&pool->used, 1);
            note_owner_in_handler(pool, first - 1, true);
            return first - 1;
        }
    }
}

void mpk__pool_give_in_handler(mpk__pool *pool, uint32_t entry) {
    note_owner_in_handler(pool, entry, false);
    uint64_t top = atomic_load(&pool->free_list);
    do atomic_store(&pool->next[entry], (uint32_t)top);
    while (!atomic_compare_exchange_weak(&pool->free_list, &top, ((top + TAG_UNIT) & ~(TAG_UNIT - 1)) | (entry + 1)));
    atomic_fetch_sub(&pool->used, 1);
    mpk__pool_notify_in_handler(pool);
}

void mpk__pool_wait_in_handler(mpk__pool *pool, uint32_t given) {
    atomic_fetch_add(&pool->waiters, 1);
    mpk__prim_wait_in_handler(&pool->given, given, WAIT_NS);
    atomic_fetch_sub(&pool->waiters, 1);
}

void mpk__pool_notify_in_handler(mpk__pool *pool) {
    atomic_fetch_add(&pool->given, 1);
    if (atomic_load(&pool->waiters)) mpk__prim_wake_in_handler(&pool->given);
}

/* Nobody reads the copy before the storage does, so it is written past the caches: memory is not first read for it, and
 * the program's own data stay in them. */
static void copy_past_caches_in_handler(uint8_t *to, const uint8_t *image, size_t bytes) {
#if defined(__SSE2__)
    for (; bytes >= 64; bytes -= 64, image += 64, to += 64) {
        const __m128i *from = (const __m128i *)(const void *)image;
        __m128i a = _mm_load_si128(from), b = _mm_load_si128(from + 1), c = _mm_load_si128(from + 2),
                d = _mm_load_si128(from + 3);
        _mm_stream_si128((__m128i *)(void *)to, a);
        _mm_stream_si128((__m128i *)(void *)to + 1, b);
        _mm_stream_si128((__m128i *)(void *)to + 2, c);
        _mm_stream_si128((__m128i *)(void *)to + 3, d);
    }
#endif
    memcpy(to, image, bytes);
}

static void finish_copies_in_handler(void) {
#if defined(__SSE2__)
    _mm_sfence(); /* before the swap that tells of the copy: these stores keep no order with others */
#endif
}

void mpk__pool_put_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes) {
    copy_past_caches_in_handler(mpk__pool_image(pool, entry), image, bytes);
    finish_copies_in_handler();
}

void mpk__pool_put_checked_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes, size_t border) {
    uint32_t crc[2] = {0, 0};
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        size_t before = at >= border ? 0 : border - at < n ? border - at : n;
        crc[0] = mpk_crc32c(crc[0], image + at, before);
        crc[1] = mpk_crc32c(crc[1], image + at + before, n - before);
        copy_past_caches_in_handler(mpk__pool_image(pool, entry) + at, image + at, n);
    }
    finish_copies_in_handler();
    memcpy(pool->crc[entry], crc, sizeof crc);
}

bool mpk__pool_is_free(const mpk__pool *pool) {
    uint32_t n = 0;
    for (uint32_t i = (uint32_t)atomic_load(&pool->free_list); i && n <= pool->n_entries; n++)
        i = atomic_load(&pool->next[i - 1]);
    return n == pool->n_entries && atomic_load(&pool->used) == 0;
}
