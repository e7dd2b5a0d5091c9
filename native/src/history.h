/* What is known of the blocks, and of the slots, from the cuts before. */
#ifndef MPK_HISTORY_H
#define MPK_HISTORY_H

#include "blocks.h"

#define MPK__NOT_WRITTEN UINT32_MAX
#define MPK__RESTORED_CUT 1u /* the number of the cut that a restored image counts as; the first real one comes after it */

/* Of one block. All but the atomics belongs to the owner of the session, and while an epoch is drained to the drain thread
 * that has the block in hand. */
typedef struct mpk__block_history {
    uint32_t version; /* the first cut at which it was as it is now */
    uint32_t deadline_us; /* from a cut to its first write: in the interval before this cut; MPK__NOT_WRITTEN */
    _Atomic uint32_t written_us; /* the same since this cut */
    uint32_t restored_crc; /* of a block that `is_restored`: its checksum in the slot that was restored */
    _Atomic bool is_ahead; /* opened since this cut, for a write to another block (ahead.c), */
    bool was_ahead; /* and in the interval before this cut */
    _Atomic bool is_left_out; /* it was opened so needlessly, and not written to since */
    _Atomic uint32_t swept; /* of a unit's first block: the last cut after which the program swept into the unit; 0: never */
    bool is_dirty; /* the slot of this cut lacks it */
    bool is_pinned; /* copied at this cut, as others may be writing to it */
    bool is_restored; /* read from a slot, and not compared with it since */
    _Atomic bool crc_is_known; /* mpk__blocks.crc is that of its content at this cut */
} mpk__block_history;

/* What a slot file has of this rank. */
typedef struct mpk__holding {
    struct mpk__holding *next;
    char *path;
    uint32_t cut; /* the image of this cut; 0: nothing that can be relied on */
    uint64_t epoch, run;
    uint64_t file[2]; /* which file it was */
} mpk__holding;

typedef struct mpk__history {
    mpk__block_history *block; /* one each */
    mpk__holding *holdings; /* a list: one for each slot that was written to or restored */
} mpk__history;

int mpk__history_create(mpk__history *history, uint32_t n_blocks);
void mpk__history_destroy(mpk__history *history);
/* Finds out at a cut what changed since the last one and what a slot lacks that has the image of `slot_cut`; gives the number
 * of dirty blocks. */
uint32_t mpk__history_advance(mpk__history *history, const mpk__blocks *blocks, uint32_t slot_cut);
void mpk__history_note_write_in_handler(mpk__history *history, uint32_t b, uint64_t us_since_cut);
/* The block is saved as it was at the cut and was not written to since. */
void mpk__history_note_saved(mpk__history *history, const mpk__blocks *blocks, uint32_t b, bool crc_is_known);
mpk__holding *mpk__holding_of(mpk__history *history, const char *path); /* NULL: no memory */

#endif
