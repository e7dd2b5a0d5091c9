/* Finding untracked writes. A block counts as unchanged while it is CLEAN, so a write that raises no fault and that
 * the guard does not know (docs/limits.md) would never be saved. In each interval an idle thread compares a part of the
 * blocks that are CLEAN with the checksums that they were saved with; if one differs the next cut saves everything.
 *
 * A write that comes while a block is on its way to the slot makes the file differ from its checksum, and were the epoch complete,
 * nothing would be left to restore once the older slot is overwritten. So each block that was written straight from memory is
 * compared once more behind the write. The epoch fails if one differs, and the older slot is spared. */
#include "session.h"

#define SHARE 16 /* of all blocks, one in so many in each interval, */
#define BYTES_PER_SECOND ((uint64_t)2 << 20) /* but no more than so much: to compare 1 GiB takes 80 ms */

void mpk__check_begin(mpk_session *s, uint64_t interval_ns) {
    uint64_t share = (s->n_blocks + SHARE - 1) / SHARE;
    uint64_t room = 1 + interval_ns / 1000 * BYTES_PER_SECOND / 1000000 / s->block_bytes;
    atomic_store(&s->to_check, (uint32_t)(share < room ? share : room));
}

static bool take_one(mpk_session *s) {
    uint32_t left = atomic_load(&s->to_check);
    while (left != 0)
        if (atomic_compare_exchange_weak(&s->to_check, &left, left - 1)) return true;
    return false;
}

bool mpk__check_written(mpk_session *s, uint32_t b) {
    uint64_t before = atomic_load(&s->blocks[b]);
    uint32_t crc[2], known[2] = {s->crc[b][0], s->crc[b][1]};
    mpk__place place = mpk__block_place(s, b);
    mpk__checksum_in_handler(s, &place, place.memory, crc);
    mpk__chaos();
    atomic_thread_fence(memory_order_seq_cst);
    /* Whoever writes to it as he should has copied it first: then it is written once more in any case. */
    if (mpk__state_of(before) != MPK__DRAINING || atomic_load(&s->blocks[b]) != before) return true;
    if (crc[0] == known[0] && crc[1] == known[1]) return true;
    atomic_store(&s->untracked, b);
    return false;
}

/* The block must be the same CLEAN one before and after it was read: whoever writes to it as he should takes that away first. */
static void check_block(mpk_session *s, uint32_t b) {
    uint64_t before = atomic_load(&s->blocks[b]);
    if (mpk__state_of(before) != MPK__CLEAN || !atomic_load(&s->history[b].crc_is_known)) return;
    uint32_t crc[2], known[2] = {s->crc[b][0], s->crc[b][1]};
    mpk__place place = mpk__block_place(s, b);
    mpk__checksum_in_handler(s, &place, place.memory, crc);
    mpk__chaos();
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&s->blocks[b]) != before) return;
    if (crc[0] != known[0] || crc[1] != known[1]) atomic_store(&s->untracked, b);
}

void mpk__check_blocks(mpk_session *s, uint32_t wakeups) {
    while (atomic_load(&s->wakeups) == wakeups && !atomic_load(&s->stop) && take_one(s))
        check_block(s, atomic_fetch_add(&s->check_at, 1) % s->n_blocks);
}
