/* What is opened ahead of a program that sweeps through its memory.
 *
 * A block that is opened by itself splits its huge page, and a program that computes in split pages is slower for good:
 * by a fifth where it does little else than go through memory. So a write at the end of a unit of memory as large as a
 * huge page, where the block before that end was written to just now, opens all of the unit in one call: the sweep will come to
 * the rest of it before a drain would. A program sweeps again and again: a unit that was part of a sweep is opened whole for some
 * cuts more, wherever the first write to it falls, as a cut may find a program inside a unit.
 *
 * A block that is opened ahead is copied, and counts as changed, whether or not it is written to. If its checksum at the
 * next cut says that it was not, it is left out from then on, until a write to it is seen. */
#include "session.h"

#define REMEMBERED 8 /* cuts */

/* The unit that block b is in: whole blocks on whole pages of its region. */
static bool find_unit(const mpk_session *s, uint32_t b, mpk__chunk *unit) {
    const mpk__region *r = &s->regions[s->block_region[b]];
    uintptr_t pages = (uintptr_t)r->pages, at = pages + (uintptr_t)(b - r->first_block) * s->block_bytes;
    uintptr_t start = at - at % s->unit_bytes;
    if (s->block_bytes >= s->unit_bytes || pages % s->block_bytes) return false;
    if (start < pages || start + s->unit_bytes > pages + r->span) return false;
    unit->first = r->first_block + (uint32_t)((start - pages) / s->block_bytes);
    unit->count = (uint32_t)(s->unit_bytes / s->block_bytes);
    return true;
}

static bool was_written_just_now(const mpk_session *s, uint32_t b, uint64_t now_us) {
    uint32_t us = atomic_load(&s->history[b].written_us);
    return us != MPK__NOT_WRITTEN && now_us < us + (uint64_t)s->sweep_us;
}

/* A write to block b comes from the unit beside, by a sweep forwards or backwards. */
static bool is_swept_into(const mpk_session *s, const mpk__chunk *unit, uint32_t b, uint64_t now_us) {
    const mpk__region *r = &s->regions[s->block_region[b]];
    if (b == unit->first && b > r->first_block) return was_written_just_now(s, b - 1, now_us);
    bool is_last = b == unit->first + unit->count - 1 && b + 1 < r->first_block + r->n_blocks;
    return is_last && was_written_just_now(s, b + 1, now_us);
}

static bool is_opened_whole(mpk_session *s, const mpk__chunk *unit, uint32_t b, uint64_t now_us) {
    _Atomic uint32_t *swept = &s->history[unit->first].swept;
    if (is_swept_into(s, unit, b, now_us)) atomic_store(swept, s->cut);
    uint32_t last = atomic_load(swept);
    return last != 0 && s->cut - last <= REMEMBERED;
}

static bool is_left_out(const mpk_session *s, uint32_t b) { return atomic_load(&s->history[b].is_left_out); }

mpk__chunk mpk__ahead_in_handler(mpk_session *s, uint32_t b, uint64_t now_ns) {
    mpk__chunk unit;
    uint32_t first = b, end = b + 1;
    if (find_unit(s, b, &unit) && is_opened_whole(s, &unit, b, (now_ns - s->epoch.started_ns) / 1000)) {
        while (first > unit.first && !is_left_out(s, first - 1)) first--;
        while (end < unit.first + unit.count && !is_left_out(s, end)) end++;
    }
    return (mpk__chunk){.first = first, .count = end - first};
}
