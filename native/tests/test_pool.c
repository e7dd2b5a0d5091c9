/* The pool's free list under many threads: no slot has two owners, none is lost, a full pool says so. */
#include "check.h"

enum { SLOTS = 5, THREADS = 8, ROUNDS = 20000 };
static mpk__pool pool;
static _Atomic int owners[SLOTS];

static void *take_and_give(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t given = atomic_load(&pool.given);
        uint32_t slot = mpk__pool_take_in_handler(&pool);
        if (slot == MPK__NO_SLOT) {
            mpk__pool_wait_in_handler(&pool, given);
            continue;
        }
        CHECK(slot < SLOTS);
        CHECK(atomic_fetch_add(&owners[slot], 1) == 0);
        *(volatile int *)mpk__pool_slot(&pool, slot) = i;
        if (i % 64 == 0) mpk__chaos();
        CHECK(atomic_fetch_sub(&owners[slot], 1) == 1);
        mpk__pool_give_in_handler(&pool, slot);
    }
    return NULL;
}

int main(void) {
    CHECK(mpk__pool_create(&pool, 4096, 0) == -EINVAL);
    CHECK(mpk__pool_create(&pool, 4096, SLOTS) == 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, take_and_give, NULL) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < SLOTS; i++) CHECK(mpk__pool_take_in_handler(&pool) != MPK__NO_SLOT);
    CHECK(mpk__pool_take_in_handler(&pool) == MPK__NO_SLOT);
    mpk__pool_destroy(&pool);
    return 0;
}
