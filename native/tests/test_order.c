/* The order of the drain: as many chunks as can be are saved before they are expected to be written to (compared with all
 * subsets), each chunk that has something due appears once, and those that are late come last. */
#include "check.h"

enum { BLOCK = 16384, CHUNK = MPK__CHUNK_BLOCKS, CHUNKS = 9, BLOCKS = CHUNKS * CHUNK - 5 };

typedef struct job {
    uint32_t blocks, deadline_us;
} job;

static job jobs[CHUNKS];

static void expect(mpk_session *s, uint64_t *seed) {
    uint32_t most = next_random(seed) % 3 ? 900 : 100000;
    for (uint32_t c = 0; c < CHUNKS; c++) jobs[c] = (job){.deadline_us = MPK__NOT_WRITTEN};
    int kind = (int)(next_random(seed) % 4);
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        mpk__history *h = &s->history[b];
        job *j = &jobs[b / CHUNK];
        h->is_due = kind == 0   ? true
                    : kind == 1 ? next_random(seed) % 2
                    : kind == 2 ? next_random(seed) % CHUNKS < b / CHUNK
                                : b % 4 == 0 || b / CHUNK % 2; /* two sizes */
        h->is_held = next_random(seed) % 20 == 0;
        h->deadline_us = next_random(seed) % 60 ? MPK__NOT_WRITTEN : (uint32_t)(next_random(seed) % most);
        if (!h->is_due) continue;
        j->blocks++;
        if (!h->is_held && h->deadline_us < j->deadline_us) j->deadline_us = h->deadline_us;
    }
}

/* How many of the jobs in `order` end in time, one after another. */
static int in_time(const uint32_t *order, int n, double block_us) {
    uint32_t total = 0;
    int count = 0;
    for (int i = 0; i < n; i++) {
        total += jobs[order[i]].blocks;
        count += jobs[order[i]].deadline_us == MPK__NOT_WRITTEN || total * block_us <= jobs[order[i]].deadline_us;
    }
    return count;
}

static int by_deadline(const void *a, const void *b) {
    uint32_t x = jobs[*(const uint32_t *)a].deadline_us, y = jobs[*(const uint32_t *)b].deadline_us;
    return x < y ? -1 : x > y;
}

/* The largest set of jobs that all end in time, by trying all sets. */
static int best(double block_us) {
    int found = 0;
    for (uint32_t set = 0; set < 1u << CHUNKS; set++) {
        uint32_t chosen[CHUNKS];
        int n = 0;
        for (uint32_t c = 0; c < CHUNKS; c++)
            if (set >> c & 1 && jobs[c].blocks) chosen[n++] = c;
        qsort(chosen, (size_t)n, sizeof *chosen, by_deadline);
        if (n > found && in_time(chosen, n, block_us) == n) found = n;
    }
    return found;
}

static int check_order(mpk_session *s, double block_us) {
    uint32_t order[CHUNKS], n = atomic_load(&s->n_ordered), wanted = 0;
    bool seen[CHUNKS] = {false};
    for (uint32_t i = 0; i < n; i++) {
        order[i] = atomic_load(&s->order[i]);
        CHECK(!seen[order[i]] && jobs[order[i]].blocks);
        seen[order[i]] = true;
    }
    for (uint32_t c = 0; c < CHUNKS; c++) wanted += jobs[c].blocks != 0;
    CHECK(n == wanted);
    int count = in_time(order, (int)n, block_us), late = 0;
    uint32_t total = 0;
    for (uint32_t i = 0; i < n; i++) { /* whoever is late is behind all who are not */
        total += jobs[order[i]].blocks;
        bool is_late = jobs[order[i]].deadline_us != MPK__NOT_WRITTEN && total * block_us > jobs[order[i]].deadline_us;
        CHECK(!late || is_late);
        late += is_late;
    }
    return count;
}

int main(void) {
    uint64_t seed = mpk__prim_wall_clock_ns() | 1;
    printf("seed %#llx\n", (unsigned long long)seed);
    uint8_t *memory = mpk_alloc((size_t)BLOCKS * BLOCK, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, (size_t)BLOCKS * BLOCK, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BLOCK) == 0);
    CHECK(s->n_chunks == CHUNKS && s->n_blocks == BLOCKS);
    int put_off = 0, better = 0;
    for (int round = 0; round < 2000; round++) {
        expect(s, &seed);
        s->drain_us = (double)(next_random(&seed) % 50) / 10;
        s->ignores_deadlines = false;
        mpk__order_chunks(s);
        int count = check_order(s, s->drain_us);
        CHECK(count == best(s->drain_us));
        put_off += count < (int)atomic_load(&s->n_ordered);
        s->ignores_deadlines = true;
        mpk__order_chunks(s);
        uint32_t before = 0;
        for (uint32_t i = 0; i < atomic_load(&s->n_ordered); i++) {
            CHECK(i == 0 || atomic_load(&s->order[i]) > before);
            before = atomic_load(&s->order[i]);
        }
        uint32_t order[CHUNKS];
        for (uint32_t i = 0; i < atomic_load(&s->n_ordered); i++) order[i] = atomic_load(&s->order[i]);
        better += in_time(order, (int)atomic_load(&s->n_ordered), s->drain_us) < count;
    }
    printf("in %d of 2000 rounds not all could be in time; in %d more were than by address\n", put_off, better);
    CHECK(put_off > 200 && better > 200);
    mpk_session_destroy(s);
    mpk_free(memory, (size_t)BLOCKS * BLOCK);
    return 0;
}
