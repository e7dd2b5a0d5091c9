/* A program that sweeps through its memory has it opened a unit at a time; one that writes here and there has not. What was
 * opened needlessly is left out afterwards. And whatever is opened, the slot has the image of the cut. */
#include "check.h"

enum {
    PAGE = 4096,
    BLOCK = 2 * PAGE,
    PER_UNIT = 4,
    UNIT = PER_UNIT * BLOCK,
    UNITS = 8,
    BLOCKS = UNITS * PER_UNIT,
    BYTES = BLOCKS * BLOCK
};
enum { LONG_US = 10000000 }; /* longer than a test lasts, so that the machine may be as slow as it likes */
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;
static char *slot;
static uint8_t *memory;
static uint64_t epoch;

/* A session of `bytes` from `lead` bytes behind the beginning of a unit. */
static mpk_session *open_session(size_t lead, size_t bytes) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    s->sweep.unit_bytes = UNIT;
    s->sweep.us = LONG_US;
    CHECK(mpk_region_add(s, memory + lead, bytes, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    return s;
}

static void start(mpk_session *s) {
    mpk_plan plan = {.path = slot, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = ++epoch, .run = 7};
    CHECK(mpk_cut(s, &plan) == 0);
}

static uint64_t finish(mpk_session *s) {
    mpk_progress p;
    end_drain(s);
    CHECK(mpk__session_is_valid(s));
    mpk_session_progress(s, &p);
    CHECK(p.state == MPK_DRAIN_COMPLETE);
    return p.blocks_dirty;
}

/* All is saved, and closed. Gives the number of blocks that were written. */
static uint64_t cut(mpk_session *s) {
    start(s);
    uint64_t dirty = finish(s);
    CHECK(atomic_load(&s->blocks.n_closed) == s->blocks.n);
    return dirty;
}

static uint32_t n_open(const mpk_session *s) { return s->blocks.n - atomic_load(&s->blocks.n_closed); }

/* Writes to block b of the session's memory; gives the number of blocks that this opened. */
static uint32_t open_by_write(const mpk_session *s, uint32_t b) {
    uint32_t before = n_open(s);
    ((volatile uint8_t *)s->blocks.regions[0].pages)[(size_t)b * BLOCK + 77]++;
    CHECK(atomic_load(&s->blocks.opened[b]));
    return n_open(s) - before;
}

static void write_to_unit(const mpk_session *s, uint32_t unit) {
    for (uint32_t b = unit * PER_UNIT; b < (unit + 1) * PER_UNIT; b++) open_by_write(s, b);
}

static void test_sweeps(void) {
    mpk_session *s = open_session(0, BYTES);
    cut(s);
    for (uint32_t b = 0; b < PER_UNIT; b++) CHECK(open_by_write(s, b) == 1);
    for (uint32_t b = PER_UNIT; b < BLOCKS; b++) CHECK(open_by_write(s, b) == (b % PER_UNIT ? 0 : PER_UNIT));
    mpk_session_destroy(s);
    s = open_session(0, BYTES);
    cut(s);
    for (uint32_t b = BLOCKS; b-- > BLOCKS - PER_UNIT;) CHECK(open_by_write(s, b) == 1);
    for (uint32_t b = BLOCKS - PER_UNIT; b-- > 0;) CHECK(open_by_write(s, b) == (b % PER_UNIT == PER_UNIT - 1 ? PER_UNIT : 0));
    mpk_session_destroy(s);
}

static void test_no_sweep(void) {
    mpk_session *s = open_session(0, BYTES);
    cut(s);
    CHECK(open_by_write(s, 9) == 1); /* inside a unit */
    CHECK(open_by_write(s, 16) == 1 && open_by_write(s, 23) == 1); /* at its ends, but from nowhere */
    CHECK(open_by_write(s, 17) == 1 && open_by_write(s, 18) == 1); /* a sweep that began inside a unit */
    CHECK(open_by_write(s, 19) == 1 && open_by_write(s, 20) == PER_UNIT - 1); /* is one at the next */
    CHECK(open_by_write(s, 11) == 1);
    s->sweep.us = 1000;
    usleep(2 * s->sweep.us);
    CHECK(open_by_write(s, 12) == 1);
    CHECK(cut(s) == 11);
    mpk_session_destroy(s);
}

/* Only a unit that is all of the region's is opened as one. */
static void test_borders(void) {
    mpk_session *s = open_session(2 * BLOCK, BYTES - 3 * BLOCK);
    cut(s);
    CHECK(open_by_write(s, 2) == 1 && open_by_write(s, 1) == 1); /* a sweep into half a unit */
    CHECK(open_by_write(s, BLOCKS - 7) == 1 && open_by_write(s, BLOCKS - 6) == 1); /* and into three quarters of one */
    CHECK(open_by_write(s, BLOCKS - 10) == 1 && open_by_write(s, BLOCKS - 11) == PER_UNIT); /* and into a whole one */
    mpk_session_destroy(s);
    s = open_session(PAGE, BYTES - BLOCK); /* the ends of units lie inside blocks */
    cut(s);
    for (uint32_t b = s->blocks.n; b-- > 0;) CHECK(open_by_write(s, b) == 1);
    mpk_session_destroy(s);
}

/* What was opened needlessly is written once more, and then no longer; until it is written to. */
static void test_needless(void) {
    mpk_session *s = open_session(0, BYTES);
    cut(s);
    CHECK(open_by_write(s, 3) == 1 && open_by_write(s, 4) == PER_UNIT); /* and no further */
    CHECK(cut(s) == 1 + PER_UNIT);
    CHECK(open_by_write(s, 4) == 1);
    CHECK(cut(s) == 1);
    CHECK(open_by_write(s, 4) == 1 && open_by_write(s, 6) == 1);
    CHECK(cut(s) == 2);
    CHECK(open_by_write(s, 4) == 1 && open_by_write(s, 5) == 2); /* 6 is looked upon as before, but only next to 5 */
    CHECK(cut(s) == 3);
    write_to_unit(s, 1);
    CHECK(cut(s) == PER_UNIT);
    CHECK(open_by_write(s, 4) == PER_UNIT);
    mpk_session_destroy(s);
}

/* A unit that was part of a sweep is opened whole for eight cuts, wherever the first write to it is. */
static void test_habit(void) {
    mpk_session *s = open_session(0, BYTES);
    cut(s);
    write_to_unit(s, 0);
    write_to_unit(s, 1);
    for (int i = 0; i < 8; i++) {
        cut(s);
        CHECK(open_by_write(s, 6) == PER_UNIT);
        write_to_unit(s, 1);
    }
    cut(s);
    CHECK(open_by_write(s, 6) == 1);
    mpk_session_destroy(s);
}

/* Sweeps that begin before all is saved: the image is that of the cut, also of blocks that were opened ahead. */
static void test_image(void) {
    uint8_t *expected = malloc(BYTES), *image = malloc(BYTES);
    mpk_session *s = open_session(0, BYTES);
    uint64_t ahead = 0;
    uint64_t began = mpk__prim_now_ns();
    for (int round = 0; goes_on(round, 300, began, 20); round++) {
        memcpy(expected, memory, BYTES);
        start(s);
        for (uint32_t i = 0; i < BLOCKS; i++) open_by_write(s, round % 2 ? BLOCKS - 1 - i : i);
        mpk_progress p;
        mpk_session_progress(s, &p);
        ahead += p.blocks_copied > p.faults;
        finish(s);
        read_slot(slot, image, BYTES, data_at);
        CHECK(memcmp(image, expected, BYTES) == 0);
    }
    CHECK(ahead > 0); /* blocks were copied ahead of a write */
    mpk_session_destroy(s);
    free(expected), free(image);
}

int main(void) {
    alarm(HANG_SECONDS);
    memory = aligned_alloc(UNIT, BYTES);
    memset(memory, 1, BYTES);
    slot = make_slot(checksums_at + 4096);
    test_sweeps();
    test_no_sweep();
    test_borders();
    test_needless();
    test_habit();
    test_image();
    unlink(slot);
    free(slot), free(memory);
    return 0;
}
