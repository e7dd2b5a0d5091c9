/* The order of the drain: earliest expected write first, each chunk with dirty blocks once, and what is too late left
 * out. A drain in made-up time then saves nearly as many chunks in time as can be (compared with all subsets). */
#include "check.h"

enum { BLOCK = 16384, CHUNK = MPK__CHUNK_BLOCKS, CHUNKS = 9, BLOCKS = CHUNKS * CHUNK - 5, RUN_US = 100 };

static uint32_t deadlines[CHUNKS]; /* of each chunk; 0: nothing is dirty in it */

static void expect(mpk_session *s, uint64_t *seed) {
    uint32_t most = next_random(seed) % 3 ? CHUNKS * RUN_US * 3 / 2 : 100 * RUN_US;
    memset(deadlines, 0, sizeof deadlines);
    int kind = (int)(next_random(seed) % 3);
    for (uint32_t b = 0; b < s->blocks.n; b++) {
        mpk__block_history *h = &s->history.block[b];
        uint32_t *deadline = &deadlines[b / CHUNK];
        h->is_dirty = kind == 0 ? true : kind == 1 ? next_random(seed) % 2 : next_random(seed) % CHUNKS < b / CHUNK;
        h->is_pinned = next_random(seed) % 20 == 0;
        h->deadline_us = next_random(seed) % 60 ? MPK__NOT_WRITTEN : 1 + (uint32_t)(next_random(seed) % most);
        if (!h->is_dirty) continue;
        if (*deadline == 0) *deadline = MPK__NOT_WRITTEN;
        if (!h->is_pinned && h->deadline_us < *deadline) *deadline = h->deadline_us;
    }
}

/* How many of the chunks end in time, one after another. */
static int in_time(const uint32_t *order, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) count += (uint32_t)(i + 1) * RUN_US <= deadlines[order[i]];
    return count;
}

static int by_deadline(const void *a, const void *b) {
    uint32_t x = deadlines[*(const uint32_t *)a], y = deadlines[*(const uint32_t *)b];
    return x < y ? -1 : x > y;
}

/* The largest set of chunks that all end in time, by trying all sets. */
static int best(void) {
    int found = 0;
    for (uint32_t set = 0; set < 1u << CHUNKS; set++) {
        uint32_t chosen[CHUNKS];
        int n = 0;
        for (uint32_t c = 0; c < CHUNKS; c++)
            if (set >> c & 1 && deadlines[c]) chosen[n++] = c;
        qsort(chosen, (size_t)n, sizeof *chosen, by_deadline);
        if (n > found && in_time(chosen, n) == n) found = n;
    }
    return found;
}

/* Drains in made-up time, a run each RUN_US, as the threads do: gives the number of chunks that were in time. */
static int drain(const mpk_session *s) {
    int count = 0;
    uint64_t now = 0;
    uint32_t n = atomic_load(&s->order.n);
    for (uint32_t at = 0; (at = mpk__order_in_time(&s->order, at, now)) < n; at++) {
        now += RUN_US;
        CHECK(now <= deadlines[atomic_load(&s->order.sequence[at])]); /* what was taken up was not too late */
        count++;
    }
    return count;
}

static void check_order(const mpk_session *s, bool by_address) {
    uint32_t n = atomic_load(&s->order.n), wanted = 0;
    bool seen[CHUNKS] = {false};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = atomic_load(&s->order.sequence[i]), before = i ? atomic_load(&s->order.sequence[i - 1]) : 0;
        CHECK(!seen[c] && deadlines[c]);
        seen[c] = true;
        CHECK(atomic_load(&s->order.deadlines_us[i]) == deadlines[c]);
        CHECK(i == 0 || (by_address ? before < c : deadlines[before] <= deadlines[c]));
    }
    for (uint32_t c = 0; c < CHUNKS; c++) wanted += deadlines[c] != 0;
    CHECK(n == wanted);
    uint32_t written = 0; /* for those that are not, it is never too late */
    while (written < n && (by_address || deadlines[atomic_load(&s->order.sequence[written])] != MPK__NOT_WRITTEN)) written++;
    CHECK(mpk__order_in_time(&s->order, 0, UINT64_MAX / 2) == written);
}

static void test_what_a_run_takes(mpk_session *s) {
    atomic_store(&s->order.run_us, 0);
    mpk__order_note_run(&s->order, 800);
    CHECK(atomic_load(&s->order.run_us) == 800);
    mpk__order_note_run(&s->order, 1600);
    CHECK(atomic_load(&s->order.run_us) == 900);
    mpk__order_note_run(&s->order, 1000000000000); /* a thread that did not get the processor */
    CHECK(atomic_load(&s->order.run_us) == (7 * 900 + 4 * 900) / 8);
    for (int i = 0; i < 200; i++) mpk__order_note_run(&s->order, 0);
    CHECK(atomic_load(&s->order.run_us) == 0);
    mpk__order_note_run(&s->order, 1000000000000);
    CHECK(atomic_load(&s->order.run_us) == MPK__LONGEST_RUN_US);
}

int main(void) {
    uint64_t seed = mpk__prim_wall_clock_ns() | 1;
    printf("seed %#llx\n", (unsigned long long)seed);
    uint8_t *memory = mpk_alloc((size_t)BLOCKS * BLOCK, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, (size_t)BLOCKS * BLOCK, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BLOCK) == 0);
    CHECK(s->order.n_chunks == CHUNKS && s->blocks.n == BLOCKS);
    test_what_a_run_takes(s);
    atomic_store(&s->order.run_us, RUN_US);
    int put_off = 0, better = 0;
    for (int round = 0; round < 2000; round++) {
        expect(s, &seed);
        s->order.ignores_deadlines = true;
        mpk__order_chunks(&s->order, &s->history);
        check_order(s, true);
        uint32_t by_address[CHUNKS];
        int n = (int)atomic_load(&s->order.n);
        for (int i = 0; i < n; i++) by_address[i] = atomic_load(&s->order.sequence[i]);
        s->order.ignores_deadlines = false;
        mpk__order_chunks(&s->order, &s->history);
        check_order(s, false);
        int count = drain(s);
        CHECK(count <= best() && count >= best() - 1); /* the margin may cost one */
        put_off += count < n;
        better += in_time(by_address, n) < count;
    }
    printf("in %d of 2000 rounds not all were in time; in %d more were than by address\n", put_off, better);
    CHECK(put_off > 200 && better > 200);
    mpk_session_destroy(s);
    mpk_free(memory, (size_t)BLOCKS * BLOCK);
    return 0;
}
