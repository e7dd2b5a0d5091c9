/* What is counted of an epoch: who drained its bytes, and each write that the protection held up. */
#include "check.h"

enum { BLOCK = 65536, BLOCKS = 16, BYTES = BLOCKS * BLOCK, OBJECTS = 100 };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES, objects_at = checksums_at + 4096;

static mpk_progress progress_of(mpk_session *s) {
    mpk_progress now;
    mpk_session_progress(s, &now);
    return now;
}

static void cut(mpk_session *s, const char *path, uint64_t epoch) {
    static const uint8_t objects[OBJECTS];
    mpk_plan plan = {.path = path,
                     .data_offsets = &data_at,
                     .checksum_offsets = &checksums_at,
                     .objects = objects,
                     .objects_bytes = OBJECTS,
                     .objects_offset = objects_at,
                     .epoch = epoch};
    CHECK(mpk_cut(s, &plan) == 0);
}

/* Boosted, the urgent threads drain all; otherwise all but what the commit itself writes is the idle threads'. */
static void test_bytes(mpk_session *s, const char *path, uint8_t *memory) {
    for (uint64_t epoch = 1; epoch <= 4; epoch++) {
        int boost = epoch % 2;
        mpk_session_boost(s, boost);
        memset(memory, (int)epoch, BYTES);
        cut(s, path, epoch);
        CHECK(mpk_session_wait(s, -1) == 1);
        mpk_progress now = progress_of(s);
        CHECK(now.bytes_written == BYTES + OBJECTS && now.bytes_waiting == 0);
        CHECK(now.bytes_urgent == (boost ? BYTES + OBJECTS : OBJECTS));
    }
    mpk_session_boost(s, 0);
}

/* The first write to a block after a cut is one fault, before it is saved and after; the next cut starts again. */
static void test_faults(mpk_session *s, const char *path, uint8_t *memory) {
    cut(s, path, 1);
    for (int i = 0; i < 3; i++) memory[i * BLOCK] = memory[i * BLOCK + 1] = 7;
    CHECK(progress_of(s).faults == 3);
    CHECK(mpk_session_wait(s, -1) == 1);
    uint64_t spent = progress_of(s).fault_ns;
    CHECK(spent > 0);
    memory[9 * BLOCK] = memory[0] = 7;
    mpk_progress now = progress_of(s);
    CHECK(now.faults == 4 && now.fault_ns > spent);
    cut(s, path, 2);
    CHECK(mpk_session_wait(s, -1) == 1);
    now = progress_of(s);
    CHECK(now.faults == 0 && now.fault_ns == 0);
}

/* A session that is unsealed and sealed again begins with no block closed, and counts from there. */
static void test_closed(mpk_session *s, const char *path, uint8_t *memory) {
    cut(s, path, 1);
    CHECK(atomic_load(&s->blocks.n_closed) == BLOCKS);
    CHECK(mpk_session_unseal(s) == 0 && atomic_load(&s->blocks.n_closed) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    cut(s, path, 2);
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(atomic_load(&s->blocks.n_closed) == BLOCKS);
}

static void with_session(const char *path, uint8_t *memory, void (*test)(mpk_session *, const char *, uint8_t *)) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    test(s, path, memory);
    mpk_session_destroy(s);
}

int main(void) {
    char *path = make_slot(objects_at + 4096);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    with_session(path, memory, test_bytes);
    with_session(path, memory, test_faults);
    with_session(path, memory, test_closed);
    unlink(path);
    free(path);
    mpk_free(memory, BYTES);
    return 0;
}
