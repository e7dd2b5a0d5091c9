/* Opening memory ahead of a program that sweeps through it. */
#ifndef MPK_AHEAD_H
#define MPK_AHEAD_H

#include "history.h"
#include "order.h"

typedef struct mpk__sweep {
    size_t unit_bytes; /* what is opened ahead of a sweep: a huge page, less in tests; */
    uint32_t us; /* in so long a sweep goes through that */
} mpk__sweep;

/* The blocks that a write to block b opens: b, and those that a program which sweeps through memory will soon come to. */
mpk__chunk mpk__ahead_in_handler(const mpk__sweep *sweep, const mpk__blocks *blocks, mpk__history *history, uint32_t b,
                                 uint64_t us_since_cut);

#endif
