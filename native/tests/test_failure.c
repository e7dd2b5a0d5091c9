/* Storage that fails: the epoch fails with its errno, the record never says COMPLETE, the program goes on, and the next
 * cut works. */
#include <sys/resource.h>

#include "check.h"

enum { BLOCK = 65536, BYTES = 32 * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;

/* memory: written to while it drains, or NULL. */
static mpk_progress cut_and_wait(mpk_session *s, const char *path, uint8_t *memory, uint64_t epoch) {
    mpk_plan plan = {.path = path, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = epoch};
    CHECK(mpk_cut(s, &plan) == 0);
    int again = mpk_cut(s, &plan);
    CHECK(again == -EBUSY || again == 0); /* 0: the drain was over already, and this is the same cut once more */
    if (memory) memset(memory, (int)epoch, BYTES); /* needs the pool, also while the epoch fails: nothing may hang */
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(mpk__session_is_valid(s));
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

int main(void) {
    alarm(HANG_SECONDS);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BLOCK) == 0);

    mpk_progress p = cut_and_wait(s, "no-such-folder/slot", memory, 1);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ENOENT);

    char *path = make_slot(4096);
    struct rlimit before, small = {.rlim_cur = BYTES / 2};
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0); /* the file cannot grow beyond half of the blocks */
    p = cut_and_wait(s, path, memory, 2);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == EFBIG);
    mpk_record record = read_record(path, 0);
    CHECK(record.state == MPK_FAILED && record.error == EFBIG && record.epoch == 2);

    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    p = cut_and_wait(s, path, memory, 3);
    CHECK(p.state == MPK_DRAIN_COMPLETE && p.error == 0);
    CHECK(read_record(path, 0).state == MPK_COMPLETE);
    uint8_t image[BLOCK];
    read_slot(path, image, BLOCK, data_at + BYTES - BLOCK);
    for (size_t i = 0; i < BLOCK; i++) CHECK(image[i] == 2); /* what it was at the cut of epoch 3 */

    p = cut_and_wait(s, "no-such-folder/slot", NULL, 4); /* no checksum is computed for what is not written */
    CHECK(p.state == MPK_DRAIN_FAILED);
    for (uint64_t epoch = 5; epoch < 7; epoch++) { /* nor is there one of the epoch before; and then one that is kept */
        p = cut_and_wait(s, path, NULL, epoch);
        CHECK(p.state == MPK_DRAIN_COMPLETE);
        uint32_t checksums[BYTES / BLOCK];
        read_slot(path, checksums, sizeof checksums, checksums_at);
        for (size_t b = 0; b < BYTES / BLOCK; b++) CHECK(checksums[b] == mpk_crc32c(0, memory + b * BLOCK, BLOCK));
    }
    mpk_session_destroy(s);
    unlink(path);
    free(path);
    mpk_free(memory, BYTES);
    return 0;
}
