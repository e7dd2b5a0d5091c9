/* Opening memory ahead of a program that sweeps through it.
 *
 * Opening a single block splits its huge page, and a program stays slower as long as it computes in split pages. So memory is
 * opened in units as large as a huge page: when a write faults at an end of a unit, and the block beyond that end was written to
 * just before, the whole unit is opened in one call. The sweep will reach the rest of it before a drain would. A program that
 * sweeps once will sweep again, so a unit that was part of a sweep is opened whole at some further cuts too, wherever the first
 * write to it falls: a cut may find the program inside a unit.
 *
 * A block that is opened ahead is copied, and counts as changed, whether or not it is written to. If its checksum at the next
 * cut shows that it was not, it is left out from then on, until a write to it faults. */
#include "ahead.h"

#define REMEMBERED 8 /* cuts */

/* The unit that block b is in: whole blocks on whole pages of its region. */
static bool find_unit_in_handler(const mpk__sweep *sweep, const mpk__blocks *blocks, uint32_t b, mpk__chunk *unit) {
    const mpk__region *r = &blocks->regions[blocks->region_of[b]];
    uintptr_t pages = (uintptr_t)r->pages, at = pages + (uintptr_t)(b - r->first_block) * blocks->block_bytes;
    uintptr_t start = at - at % sweep->unit_bytes;
    if (blocks->block_bytes >= sweep->unit_bytes || pages % blocks->block_bytes) return false;
    if (start < pages || start + sweep->unit_bytes > pages + r->span) return false;
    unit->first = r->first_block + (uint32_t)((start - pages) / blocks->block_bytes);
    unit->count = (uint32_t)(sweep->unit_bytes / blocks->block_bytes);
    return true;
}

static bool was_written_just_now_in_handler(const mpk__sweep *sweep, const mpk__history *history, uint32_t b, uint64_t now_us) {
    uint32_t us = atomic_load(&history->block[b].written_us);
    return us != MPK__NOT_WRITTEN && now_us < us + (uint64_t)sweep->us;
}

/* A block beside b, from which a sweep forwards or backwards comes into the unit; false: b is at no end of it. */
static bool find_neighbour_in_handler(const mpk__blocks *blocks, const mpk__chunk *unit, uint32_t b, uint32_t *beside) {
    const mpk__region *r = &blocks->regions[blocks->region_of[b]];
    *beside = b - 1;
    if (b == unit->first && b > r->first_block) return true;
    *beside = b + 1;
    return b == unit->first + unit->count - 1 && b + 1 < r->first_block + r->n_blocks;
}

static bool is_left_out_in_handler(const mpk__history *history, uint32_t b) {
    return atomic_load(&history->block[b].is_left_out);
}

mpk__chunk mpk__ahead_in_handler(const mpk__sweep *sweep, const mpk__blocks *blocks, mpk__history *history, uint32_t b,
                                 uint64_t now_us) {
    mpk__chunk unit, alone = {.first = b, .count = 1};
    uint32_t first = b, end = b + 1, beside;
    if (!find_unit_in_handler(sweep, blocks, b, &unit)) return alone;
    _Atomic uint32_t *swept = &history->block[unit.first].swept;
    bool is_at_end = find_neighbour_in_handler(blocks, &unit, b, &beside);
    if (is_at_end && was_written_just_now_in_handler(sweep, history, beside, now_us)) atomic_store(swept, blocks->cut);
    uint32_t last = atomic_load(swept);
    if (last == 0 || blocks->cut - last > REMEMBERED) return alone;
    while (first > unit.first && !is_left_out_in_handler(history, first - 1)) first--;
    while (end < unit.first + unit.count && !is_left_out_in_handler(history, end)) end++;
    return (mpk__chunk){.first = first, .count = end - first};
}
