/* The order in which the drain takes up blocks. */
#ifndef MPK_ORDER_H
#define MPK_ORDER_H

#include "history.h"

/* Adjacent blocks of a region: the unit of the drain's order, and the most that is written in one call. */
#define MPK__CHUNK_BYTES ((size_t)4 << 20) /* at most, unless a block is larger */
#define MPK__CHUNK_BLOCKS 64
typedef struct mpk__chunk {
    uint32_t first, count;
} mpk__chunk;

#define MPK__LONGEST_RUN_US 10000000u

typedef struct mpk__order {
    bool ignores_deadlines;
    mpk__chunk *chunks;
    uint32_t n_chunks, chunk_blocks; /* how many; blocks of each but the last of a region */
    _Atomic uint32_t *sequence; /* chunks with dirty blocks, as they are to be drained; made when the slot is opened */
    _Atomic uint32_t *deadlines_us; /* from the cut to the expected first write to each of these */
    _Atomic uint32_t n; /* of these */
    _Atomic uint32_t run_us; /* that the drain of a run recently took; 0: not known */
    _Atomic uint32_t cursor; /* where in the sequence to look for the next chunk that is in time, */
    _Atomic uint32_t late_cursor; /* and for the next of all */
} mpk__order;

int mpk__order_create(mpk__order *order, const mpk__blocks *blocks);
void mpk__order_destroy(mpk__order *order);
void mpk__order_begin(mpk__order *order); /* at a cut: nothing is taken up yet */
void mpk__order_chunks(mpk__order *order, const mpk__history *history); /* for the cut that begins to be drained */
/* The first place in the sequence, at or behind `from`, of a chunk that can still be saved before it is expected to be
 * written to, so long after the cut; n if there is none, or deadlines are ignored. What is too late now is so for the rest of
 * the epoch. */
uint32_t mpk__order_in_time(const mpk__order *order, uint32_t from, uint64_t now_us);
void mpk__order_note_run(mpk__order *order, uint64_t us); /* that a run took */

#endif
