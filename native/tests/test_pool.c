/* The pool's free list under many threads: no entry has two owners, none is lost, a full pool says so. */
#include "check.h"
#include "chaos.h"
#include "pool.h"

enum { ENTRIES = 5, THREADS = 8, ROUNDS = 20000 };
static mpk__pool pool;
static _Atomic int owners[ENTRIES];

static void *take_and_give(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t given = atomic_load(&pool.given);
        uint32_t entry = mpk__pool_take_in_handler(&pool);
        if (entry == MPK__NO_ENTRY) {
            mpk__pool_wait_in_handler(&pool, given);
            continue;
        }
        CHECK(entry < ENTRIES);
        CHECK(atomic_fetch_add(&owners[entry], 1) == 0);
        *(volatile int *)mpk__pool_image(&pool, entry) = i;
        if (i % 64 == 0) mpk__chaos();
        CHECK(atomic_fetch_sub(&owners[entry], 1) == 1);
        mpk__pool_give_in_handler(&pool, entry);
    }
    return NULL;
}

static int may_take(void *context, size_t taken) { return taken < *(size_t *)context; }

/* A pool is as large as somebody who is asked step by step allows, or is not made. */
static void test_steps(void) {
    enum { ENTRY = 1 << 20, STEP = MPK_TAKING_STEP / ENTRY };
    size_t allowed = 2 * MPK_TAKING_STEP;
    const mpk__taking taking = {.may = may_take, .context = &allowed};
    CHECK(mpk__pool_create(&pool, ENTRY, 4 * STEP, 1, &taking) == 0);
    CHECK(pool.n_entries == 2 * STEP && mpk__prim_absent_bytes(pool.memory, 2 * MPK_TAKING_STEP) == 0);
    for (uint32_t i = 0; i < 2 * STEP; i++) CHECK(mpk__pool_take_in_handler(&pool) < 2 * STEP);
    CHECK(mpk__pool_take_in_handler(&pool) == MPK__NO_ENTRY);
    mpk__pool_destroy(&pool);
    CHECK(mpk__pool_create(&pool, ENTRY, 4 * STEP, 2 * STEP + 1, &taking) == -EDQUOT && !pool.memory);
    allowed = 0;
    CHECK(mpk__pool_create(&pool, ENTRY, 4 * STEP, 0, &taking) == -EDQUOT && !pool.memory);
}

int main(void) {
    const mpk__taking nobody = {0};
    test_steps();
    CHECK(mpk__pool_create(&pool, 4096, 0, 0, &nobody) == -EINVAL);
    CHECK(mpk__pool_create(&pool, 4096, ENTRIES, 0, &nobody) == 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, take_and_give, NULL) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < ENTRIES; i++) CHECK(mpk__pool_take_in_handler(&pool) != MPK__NO_ENTRY);
    CHECK(mpk__pool_take_in_handler(&pool) == MPK__NO_ENTRY);
    mpk__pool_destroy(&pool);
    return 0;
}
