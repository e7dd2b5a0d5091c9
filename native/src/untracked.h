/* Finding writes that raised no fault and that the guard did not see. */
#ifndef MPK_UNTRACKED_H
#define MPK_UNTRACKED_H

#include "history.h"

typedef struct mpk__untracked {
    _Atomic uint32_t to_compare; /* so many blocks are still to be compared in this interval, */
    _Atomic uint32_t next; /* this one (modulo their number) next */
    _Atomic int64_t found; /* a block that had an untracked write; -1 */
} mpk__untracked;

void mpk__untracked_forget(mpk__untracked *untracked);
/* At a cut, so long after the one before. Tells whether an untracked write was found since that one. */
bool mpk__untracked_begin(mpk__untracked *untracked, const mpk__blocks *blocks, uint64_t interval_ns);
/* A block that was just written to the slot straight from memory, and is protected since: false if memory has changed, so that
 * what reached the file may not be what its checksum says. */
bool mpk__untracked_is_as_written(mpk__untracked *untracked, const mpk__blocks *blocks, uint32_t b);
/* Compares the next block; false when no more are to be compared in this interval. */
bool mpk__untracked_compare_next(mpk__untracked *untracked, const mpk__blocks *blocks, const mpk__history *history);

#endif
