/* Finding untracked writes. A block counts as unchanged while it is CLEAN, so a write that raises no fault and that
 * the guard does not know (docs/limits.md) would never be saved. In each interval an idle thread compares some of the CLEAN
 * blocks with the checksums that they were saved with. If one differs, the next cut saves everything.
 *
 * An untracked write while a block is being written to the slot makes the file differ from its checksum. If that epoch counted as
 * complete, nothing could be restored once the older slot is overwritten. So each block that was written straight from memory is
 * compared again after the write. If it differs the epoch fails, and the older slot is kept. */
#include "untracked.h"

#include "chaos.h"

#define SHARE 16 /* of all blocks, one in so many in each interval, */
#define BYTES_PER_SECOND ((uint64_t)2 << 20) /* but no more than this much for each second of the interval */

void mpk__untracked_forget(mpk__untracked *untracked) {
    atomic_store(&untracked->found, -1);
    atomic_store(&untracked->to_compare, 0);
}

bool mpk__untracked_begin(mpk__untracked *untracked, const mpk__blocks *blocks, uint64_t interval_ns) {
    bool found = atomic_exchange(&untracked->found, -1) >= 0; /* in one step: it may be found just now */
    uint64_t share = (blocks->n + SHARE - 1) / SHARE;
    uint64_t room = 1 + interval_ns / 1000 * BYTES_PER_SECOND / 1000000 / blocks->block_bytes;
    atomic_store(&untracked->to_compare, (uint32_t)(share < room ? share : room));
    return found;
}

static bool is_as_saved(const mpk__blocks *blocks, uint32_t b) {
    uint32_t crc[2], known[2] = {blocks->crc[b][0], blocks->crc[b][1]};
    mpk__place place = mpk__block_place_in_handler(blocks, b);
    mpk__checksum_in_handler(blocks, &place, place.memory, crc);
    mpk__chaos();
    atomic_thread_fence(memory_order_seq_cst);
    return crc[0] == known[0] && crc[1] == known[1];
}

/* The program's own writes copy the block first, and change its word. Then the block is written again in any case. */
bool mpk__untracked_is_as_written(mpk__untracked *untracked, const mpk__blocks *blocks, uint32_t b) {
    uint64_t before = atomic_load(&blocks->words[b]);
    bool same = is_as_saved(blocks, b);
    if (mpk__state_of(before) != MPK__DRAINING || atomic_load(&blocks->words[b]) != before || same) return true;
    atomic_store(&untracked->found, b);
    return false;
}

static bool take_one(mpk__untracked *untracked) {
    uint32_t left = atomic_load(&untracked->to_compare);
    while (left != 0)
        if (atomic_compare_exchange_weak(&untracked->to_compare, &left, left - 1)) return true;
    return false;
}

/* The block must be the same CLEAN one before and after it was read: the program's own writes change its word first. */
bool mpk__untracked_compare_next(mpk__untracked *untracked, const mpk__blocks *blocks, const mpk__history *history) {
    if (!take_one(untracked)) return false;
    uint32_t b = atomic_fetch_add(&untracked->next, 1) % blocks->n;
    uint64_t before = atomic_load(&blocks->words[b]);
    if (mpk__state_of(before) != MPK__CLEAN || !atomic_load(&history->block[b].crc_is_known)) return true;
    bool same = is_as_saved(blocks, b);
    if (atomic_load(&blocks->words[b]) == before && !same) atomic_store(&untracked->found, b);
    return true;
}
