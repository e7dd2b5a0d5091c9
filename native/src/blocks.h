/* The memory that is saved: regions, and the blocks that they are divided into.
 *
 * A block's state is one 64-bit word, changed by compare-and-swap alone:
 *
 *     cut number (32 bits) | pool entry (24) | state (8)
 *
 *     WRITABLE        nothing pending; the program writes freely
 *     PROTECTED       read-only, to be saved
 *     DRAINING        read-only, a drain thread is writing it straight from the program's memory
 *     COPIED          its image lies in a pool entry, writable again
 *     DRAINING_COPY   COPIED, and a drain thread is writing it from the pool
 *     CLEAN           nothing pending, read-only until its first write: as it was at the last cut
 *
 *     cut:    WRITABLE -> PROTECTED     CLEAN -> PROTECTED, if the slot holds something older, else CLEAN
 *     drain:  PROTECTED -> DRAINING -> CLEAN
 *             COPIED -> DRAINING_COPY -> WRITABLE, or COPIED if it was claimed PROTECTED
 *     write:  PROTECTED -> COPIED       DRAINING -> DRAINING_COPY       CLEAN -> WRITABLE
 *     write, once the epoch has failed: PROTECTED or DRAINING -> WRITABLE, without a copy
 *
 * The cut number makes a word of an earlier cut differ from the same state in this one, so that a handler that was delayed
 * for a whole epoch cannot succeed with an old copy. Whoever wins a swap owns what follows from it. A block leaves read-only
 * before its page does, so a page that is writable never has an image still pending. */
#ifndef MPK_BLOCKS_H
#define MPK_BLOCKS_H

#include "invariant.h"
#include "mpickpt.h"
#include "prim.h"

enum mpk__block_state {
    MPK__WRITABLE = 0,
    MPK__PROTECTED,
    MPK__DRAINING,
    MPK__COPIED,
    MPK__DRAINING_COPY,
    MPK__CLEAN,
};

#define MPK__NO_ENTRY 0xffffffu /* also the limit of a pool, in entries */

static inline uint64_t mpk__word(uint32_t cut, uint32_t entry, enum mpk__block_state state) {
    MPK__ASSERT(entry <= MPK__NO_ENTRY);
    return (uint64_t)cut << 32 | (uint64_t)entry << 8 | state;
}
static inline enum mpk__block_state mpk__state_of(uint64_t word) { return (enum mpk__block_state)(word & 0xff); }
static inline uint32_t mpk__entry_of(uint64_t word) { return (uint32_t)(word >> 8) & 0xffffff; }
static inline uint32_t mpk__cut_of(uint64_t word) { return (uint32_t)(word >> 32); }

/* Whether the states above allow that one word follows another: a cut never goes back, and only begins when all is done. */
static inline bool mpk__may_follow(uint64_t before, uint64_t word) {
    static const uint8_t next[] = {
        [MPK__WRITABLE] = 1 << MPK__COPIED, /* a pinned block */
        [MPK__PROTECTED] = 1 << MPK__DRAINING | 1 << MPK__COPIED | 1 << MPK__WRITABLE,
        [MPK__DRAINING] = 1 << MPK__CLEAN | 1 << MPK__DRAINING_COPY | 1 << MPK__WRITABLE,
        [MPK__COPIED] = 1 << MPK__DRAINING_COPY,
        [MPK__DRAINING_COPY] = 1 << MPK__WRITABLE | 1 << MPK__COPIED,
        [MPK__CLEAN] = 1 << MPK__WRITABLE,
    };
    enum mpk__block_state from = mpk__state_of(before), to = mpk__state_of(word);
    if (mpk__cut_of(word) == mpk__cut_of(before)) return next[from] >> to & 1;
    return mpk__cut_of(word) > mpk__cut_of(before) && (from == MPK__WRITABLE || from == MPK__CLEAN) &&
           (to == MPK__WRITABLE || to == MPK__PROTECTED || to == MPK__CLEAN);
}

/* A named range of the program's memory. Only whole pages of its own can be protected: what shares a page with
 * foreign data, at either end, is an edge and is copied at the cut.
 *
 *     memory               pages                                     pages + data          memory + bytes
 *       |--- edge (head) ---|==== blocks of block_bytes ... ==== last |--- edge (tail) ------|             */
typedef struct mpk__region {
    uint8_t *memory;
    size_t bytes;
    uint8_t *pages; /* the first protected page */
    size_t span; /* bytes of protected pages; what an owned region's last page has beyond data is padding */
    size_t head, data, tail;
    uint32_t first_block; /* blocks are numbered through all regions */
    uint32_t n_blocks;
    uint8_t *edges; /* images of head and tail, head + tail bytes */
    enum mpk_mapping mapping; /* what was found out about the memory, once (mapping.c): */
    bool has_file; /* a part of it is a private view of a file */
    size_t mapped_bytes; /* so much of its pages is mapped */
    int mapping_error; /* why it cannot be watched, as -errno */
    char *mapped_path; /* for messages, or NULL */
} mpk__region;

typedef struct mpk__blocks {
    mpk__region *regions; /* in the order of mpk_region_add */
    uint32_t n_regions;
    uint32_t *by_address; /* indices into regions, ascending addresses */
    size_t block_bytes;
    uint32_t n;
    uint32_t n_pinned; /* blocks of regions that are never protected (mapping.c) */
    uint32_t cut; /* counts cuts; part of each word */
    bool is_distrusted; /* not all could be protected at the last cut: any block may have changed untracked */
    _Atomic uint32_t n_closed; /* blocks that are not opened */
    _Atomic uint64_t *words; /* per block, and so are all below: its state */
    uint32_t *region_of;
    _Atomic uint8_t *opened; /* its pages are writable since the last cut */
    _Atomic uint16_t *pins; /* ranges that others may write to at any time; never protected while there are any */
    uint32_t (*crc)[2]; /* before and behind the border of the region's blocks in the file */
} mpk__blocks;

/* All changes of a word. Setting one is for whoever owns the block: nobody else may change it meanwhile. */
static inline bool mpk__word_swap_in_handler(mpk__blocks *blocks, uint32_t b, uint64_t *expected, uint64_t word) {
    MPK__ASSERT(mpk__may_follow(*expected, word));
    return atomic_compare_exchange_strong(&blocks->words[b], expected, word);
}
static inline void mpk__word_set(mpk__blocks *blocks, uint32_t b, uint64_t word, memory_order order) {
    MPK__ASSERT(mpk__may_follow(atomic_load(&blocks->words[b]), word));
    atomic_store_explicit(&blocks->words[b], word, order);
}

/* Where a block lies. */
typedef struct mpk__place {
    const mpk__region *region;
    uint8_t *memory;
    size_t bytes; /* of data: what is copied, checked and written */
    size_t span; /* of pages: what is protected */
    size_t offset; /* in the region */
} mpk__place;

int mpk__regions_add(mpk__blocks *blocks, void *memory, size_t bytes, bool owned);
void mpk__regions_forget(mpk__blocks *blocks);
/* Divides the regions into blocks, all of them writable. */
int mpk__blocks_create(mpk__blocks *blocks, size_t block_bytes);
void mpk__blocks_destroy(mpk__blocks *blocks); /* the regions stay */
bool mpk__blocks_are_done(const mpk__blocks *blocks); /* nothing of a cut is pending: all are WRITABLE or CLEAN */
bool mpk__blocks_are_counted(const mpk__blocks *blocks); /* n_closed is right; while nobody opens one */

mpk__place mpk__block_place_in_handler(const mpk__blocks *blocks, uint32_t b);
/* The block that owns address, or -1. */
int64_t mpk__block_at_in_handler(const mpk__blocks *blocks, uintptr_t address);
/* The block that ends where b begins, or begins where b ends, in memory; false when there is none. */
bool mpk__block_beside_in_handler(const mpk__blocks *blocks, uint32_t b, bool behind, uint32_t *beside);

/* Notes that the pages of a block are read-only, or open. Inline, as a cut does so for each block. */
static inline void mpk__block_note_closed(mpk__blocks *blocks, uint32_t b) {
    if (atomic_load(&blocks->opened[b]) && atomic_exchange(&blocks->opened[b], 0)) atomic_fetch_add(&blocks->n_closed, 1);
}
static inline void mpk__block_note_opened_in_handler(mpk__blocks *blocks, uint32_t b) {
    if (!atomic_exchange(&blocks->opened[b], 1)) atomic_fetch_sub(&blocks->n_closed, 1);
}
/* Makes all pages writable, whatever the states say: at the end, and in a child process. */
void mpk__blocks_open_all(const mpk__blocks *blocks);

/* CRC-32C of a block's image. In the file a region's blocks begin `head` bytes earlier than in memory, so that an image
 * lies in two of the file's blocks, and has a checksum for its part in each. */
static inline size_t mpk__bytes_before_border(const mpk__blocks *blocks, const mpk__place *place) {
    MPK__ASSERT(place->region->head < blocks->block_bytes);
    size_t before = blocks->block_bytes - place->region->head;
    return before < place->bytes ? before : place->bytes;
}
void mpk__checksum_in_handler(const mpk__blocks *blocks, const mpk__place *place, const uint8_t *image, uint32_t crc[2]);

#endif
