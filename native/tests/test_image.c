/* The image in the slot is the memory as it was at the cut: threads write at random while it drains, and after each
 * of a thousand cuts (or as many as the first argument says) every byte and every checksum is compared.
 *
 * 1 to 4 threads; arrays on pages of their own, and of any alignment, which share pages with their neighbours; a pool
 * of one block, of a quarter and of all; O_DIRECT and buffered. Three slots are written to in any order, and from cut to
 * cut the threads write to everything, to a part of one array, or to nothing, or sweep through arrays, so that slots lack more
 * or less, and blocks are opened ahead of writes that come or do not. Some epochs fail. */
#include "check.h"
#include "chaos.h"

enum {
    BLOCK = 16384,
    UNIT = 4 * BLOCK,
    REGIONS = 5,
    MAX_THREADS = 4,
    SLOTS = 3,
    RECORD_AT = 0,
    OBJECTS_AT = 4096,
    DATA_AT = 8192
};

typedef struct config {
    int threads, aligned, pool_part, direct;
} config;

typedef struct region {
    uint8_t *memory, *expected;
    size_t bytes;
} region;

static region regions[REGIONS];
static pthread_barrier_t gate;
static _Atomic int running, finished;

/* What the threads write to until the next cut. */
static struct window {
    const region *only; /* NULL: all regions */
    size_t from, bytes; /* of `only` */
    bool sweeps; /* each goes through all of a region, forwards or backwards */
} window;

typedef struct counts {
    uint64_t copied, stalled, blocks, dirty, failed, ahead;
} counts;

static void choose_window(uint64_t *seed) {
    region *r = &regions[next_random(seed) % REGIONS];
    window = (struct window){0};
    switch (next_random(seed) % 5) {
    case 0: return;
    case 1: window = (struct window){r, 0, 0, false}; return; /* nothing */
    case 2: window.sweeps = true; return;
    default:
        window.only = r;
        window.from = next_random(seed) % r->bytes;
        window.bytes = next_random(seed) % (3 * BLOCK) + 1;
        if (window.bytes > r->bytes - window.from) window.bytes = r->bytes - window.from;
    }
}

static void sweep(const region *r, uint8_t value, bool backwards) {
    for (size_t i = 0; i < r->bytes && atomic_load(&running); i += 512)
        ((volatile uint8_t *)r->memory)[backwards ? r->bytes - 1 - i : i] = value;
}

static void *scribble(void *argument) {
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    for (;;) {
        pthread_barrier_wait(&gate); /* the cut is behind us */
        if (atomic_load(&finished)) return NULL;
        while (atomic_load(&running)) {
            const region *r = window.only ? window.only : &regions[next_random(&seed) % REGIONS];
            if (window.sweeps) {
                sweep(r, (uint8_t)seed, next_random(&seed) % 2);
                continue;
            }
            size_t from = window.only ? window.from : 0, end = window.only ? from + window.bytes : r->bytes;
            if (from == end) {
                usleep(100);
                continue;
            }
            size_t at = from + next_random(&seed) % (end - from);
            size_t most = next_random(&seed) % 4 ? 8 : 3 * BLOCK;
            size_t n = next_random(&seed) % most + 1;
            if (n > end - at) n = end - at;
            for (size_t i = 0; i < n; i += n > 64 ? 512 : 1) ((volatile uint8_t *)r->memory)[at + i] = (uint8_t)seed;
            if (next_random(&seed) % 16 == 0) mpk__chaos();
        }
        pthread_barrier_wait(&gate); /* quiet until the next cut */
    }
}

static void compare(const char *path, const region *r, uint64_t data_offset, uint64_t checksum_offset) {
    uint8_t *image = malloc(r->bytes);
    size_t n = (r->bytes + BLOCK - 1) / BLOCK;
    uint32_t *checksums = calloc(n, sizeof *checksums);
    read_slot(path, image, r->bytes, data_offset);
    read_slot(path, checksums, n * sizeof *checksums, checksum_offset);
    CHECK(memcmp(image, r->expected, r->bytes) == 0);
    for (size_t k = 0; k < n; k++) {
        size_t length = r->bytes - k * BLOCK < BLOCK ? r->bytes - k * BLOCK : BLOCK;
        CHECK(checksums[k] == mpk_crc32c(0, r->expected + k * BLOCK, length));
    }
    free(image);
    free(checksums);
}

/* Memory for the regions. Aligned: whole units. Not aligned: one piece of malloc's, cut up so that regions meet within a
 * page. */
static uint8_t *lay_out(int aligned) {
    static const size_t sizes[REGIONS] = {70 * BLOCK + 777, 100, 9 * BLOCK, 4097, 13 * BLOCK - 1};
    size_t all = 0;
    for (int i = 0; i < REGIONS; i++) all += sizes[i];
    uint8_t *heap = aligned ? NULL : malloc(all + 64), *at = heap ? heap + 24 : NULL;
    for (int i = 0; i < REGIONS; i++) {
        regions[i].bytes = sizes[i];
        regions[i].expected = malloc(sizes[i]);
        regions[i].memory = aligned ? aligned_alloc(UNIT, (sizes[i] + UNIT - 1) / UNIT * UNIT) : at;
        if (!aligned) at += sizes[i];
    }
    return heap;
}

/* Before the first block is overwritten the record of the slot's old epoch is gone. */
static void check_order(const mpk_session *s, const mpk_plan *plan) {
    mpk_progress p;
    mpk_session_progress(s, &p);
    if (p.bytes_written == 0) return;
    mpk_record record;
    read_slot(plan->path, &record, sizeof record, RECORD_AT);
    CHECK(record.epoch == plan->epoch);
}

static void check_epoch(const mpk_plan *plan) {
    mpk_record record = read_record(plan->path, RECORD_AT);
    CHECK(record.state == MPK_COMPLETE && record.epoch == plan->epoch && record.step == plan->step);
    CHECK(record.objects_bytes == plan->objects_bytes);
    char objects[64];
    read_slot(plan->path, objects, plan->objects_bytes, OBJECTS_AT);
    CHECK(memcmp(objects, plan->objects, plan->objects_bytes) == 0);
    CHECK(record.objects_crc == mpk_crc32c(0, objects, plan->objects_bytes));
    for (int i = 0; i < REGIONS; i++) compare(plan->path, &regions[i], plan->data_offsets[i], plan->checksum_offsets[i]);
}

static void one_round(mpk_session *s, const mpk_plan *plan, uint64_t *seed, counts *sum) {
    for (int i = 0; i < REGIONS; i++) memcpy(regions[i].expected, regions[i].memory, regions[i].bytes);
    CHECK(mpk_cut(s, plan) == 0);
    choose_window(seed);
    atomic_store(&running, 1);
    pthread_barrier_wait(&gate);
    int boost = next_random(seed) % 2, fail = next_random(seed) % 16 == 0;
    if (boost) mpk_session_boost(s, 1);
    do {
        check_order(s, plan);
        if (fail && next_random(seed) % 2) mpk_fail_epoch(s, ECANCELED); /* needlessly if it is over already */
    } while (!mpk_session_wait(s, (int64_t)(next_random(seed) % 2000000)));
    if (boost) mpk_session_boost(s, 0);
    atomic_store(&running, 0);
    pthread_barrier_wait(&gate);
    mpk_progress p;
    mpk_session_progress(s, &p);
    CHECK(p.untracked_region == -1); /* all writes are seen */
    CHECK(p.blocks_saved == p.blocks_dirty && p.epoch == plan->epoch);
    CHECK(mpk__session_is_valid(s));
    CHECK(p.state == MPK_DRAIN_COMPLETE || (fail && p.state == MPK_DRAIN_FAILED && p.error == ECANCELED));
    sum->copied += p.blocks_copied;
    sum->stalled += p.stall_ns > 0;
    sum->blocks += p.blocks;
    sum->dirty += p.blocks_dirty;
    for (uint32_t b = 0; b < s->blocks.n; b++) sum->ahead += atomic_load(&s->history.block[b].is_ahead);
    if (p.state == MPK_DRAIN_COMPLETE)
        check_epoch(plan);
    else
        sum->failed++;
}

/* Gives the number of cuts that were made. */
static int run(const config *c, int rounds, uint64_t *seed, counts *sum) {
    uint8_t *heap = lay_out(c->aligned);
    uint64_t data[REGIONS], checksums[REGIONS], at = DATA_AT;
    for (int i = 0; i < REGIONS; i++) {
        data[i] = at;
        at = (at + regions[i].bytes + 4095) / 4096 * 4096;
    }
    for (int i = 0; i < REGIONS; i++, at += 4096) checksums[i] = at;
    char *paths[SLOTS];
    for (int i = 0; i < SLOTS; i++) paths[i] = make_slot(at);
    mpk_session *s;
    CHECK(mpk_session_create(&s, c->direct ? 0 : MPK_SESSION_BUFFERED) == 0);
    size_t blocks = 0;
    for (int i = 0; i < REGIONS; i++) {
        fill_random(regions[i].memory, regions[i].bytes, seed);
        blocks += regions[i].bytes / BLOCK + 1;
        CHECK(mpk_region_add(s, regions[i].memory, regions[i].bytes, c->aligned ? MPK_REGION_OWNED : 0) == 0);
    }
    s->sweep.unit_bytes = UNIT;
    size_t pool = c->pool_part == 0 ? 1 : c->pool_part == 1 ? blocks / 4 : blocks;
    CHECK(mpk_session_seal(s, BLOCK, pool * BLOCK) == 0);
    CHECK(pthread_barrier_init(&gate, NULL, (unsigned)c->threads + 1) == 0);
    pthread_t threads[MAX_THREADS];
    atomic_store(&finished, 0);
    for (int i = 0; i < c->threads; i++)
        CHECK(pthread_create(&threads[i], NULL, scribble, (void *)(uintptr_t)(next_random(seed) | 1)) == 0);
    int done = 0;
    for (uint64_t began = mpk__prim_now_ns(); goes_on(done, rounds, began, 3); done++) {
        int round = done + 1;
        char objects[64];
        int n = snprintf(objects, sizeof objects, "objects of round %d", round);
        mpk_plan plan = {.path = paths[next_random(seed) % SLOTS],
                         .data_offsets = data,
                         .checksum_offsets = checksums,
                         .record_offset = RECORD_AT,
                         .objects = objects,
                         .objects_bytes = (size_t)n,
                         .objects_offset = OBJECTS_AT,
                         .epoch = (uint64_t)round,
                         .step = (uint64_t)round * 10};
        one_round(s, &plan, seed, sum);
    }
    atomic_store(&finished, 1);
    pthread_barrier_wait(&gate);
    for (int i = 0; i < c->threads; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&gate);
    mpk_session_destroy(s);
    for (int i = 0; i < SLOTS; i++) {
        unlink(paths[i]);
        free(paths[i]);
    }
    for (int i = 0; i < REGIONS; i++) {
        memset(regions[i].memory, 1, regions[i].bytes); /* writable again, and no handler is needed */
        free(regions[i].expected);
        if (c->aligned) free(regions[i].memory);
    }
    free(heap);
    return done;
}

int main(int argc, char **argv) {
    int cuts = argc > 1 ? atoi(argv[1]) : 1000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : mpk__prim_wall_clock_ns() | 1;
    printf("%d cuts, seed %#llx\n", cuts, (unsigned long long)seed);
    const int configs = MAX_THREADS * 2 * 3 * 2;
    counts sum = {0};
    int done = 0;
    for (int threads = 1; threads <= MAX_THREADS; threads++)
        for (int aligned = 0; aligned < 2; aligned++)
            for (int pool_part = 0; pool_part < 3; pool_part++)
                for (int direct = 0; direct < 2; direct++) {
                    config c = {threads, aligned, pool_part, direct};
                    int rounds = (cuts + configs - 1) / configs;
                    done += run(&c, rounds, &seed, &sum);
                }
    printf("%d cuts, %llu of them failed; %.0f %% of the blocks written, %llu copied by the writers, %llu opened ahead, %llu "
           "cuts with a "
           "full pool\n",
           done, (unsigned long long)sum.failed, 100.0 * (double)sum.dirty / (double)sum.blocks, (unsigned long long)sum.copied,
           (unsigned long long)sum.ahead, (unsigned long long)sum.stalled);
    /* Or the threads wrote too little, or slots lacked too much or too little, for this to prove a thing. */
    CHECK(sum.copied > (uint64_t)done && sum.stalled > 0 && sum.failed > 0 && sum.ahead > (uint64_t)done);
    CHECK(sum.dirty < sum.blocks * 9 / 10 && sum.dirty > sum.blocks / 10);
    return 0;
}
