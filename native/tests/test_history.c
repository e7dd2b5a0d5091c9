/* A slot gets what it lacks, and no more: each block that changed since the epoch that it has, all of them when what it
 * has cannot be relied on. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/syscall.h>

#include "check.h"
#include "writer.h"

enum { BLOCK = 16384, BLOCKS = 64, BYTES = BLOCKS * BLOCK, REST = 5000 };
static const uint64_t data_at[2] = {4096, 4096 + BYTES}, checksums_at[2] = {4096 + 2 * BYTES, 8192 + 2 * BYTES};
static uint8_t *arrays[2];
static _Atomic int refuse_protection;

/* In place of the C library's. */
int mprotect(void *memory, size_t bytes, int protection) {
    if (protection == PROT_READ && atomic_load(&refuse_protection)) return errno = ENOMEM, -1;
    return (int)syscall(SYS_mprotect, memory, bytes, protection);
}

/* Two regions: BLOCKS whole blocks, and a part of one. */
static mpk_session *open_session(void) {
    mpk_session *s;
    mpk_progress p;
    CHECK(mpk_session_create(&s, 0) == 0);
    mpk_session_progress(s, &p);
    CHECK(p.untracked_region == -1 && p.blocks == 0);
    CHECK(mpk_region_add(s, arrays[0], BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_region_add(s, arrays[1], REST, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    return s;
}

static mpk_progress cut(mpk_session *s, const char *path, uint64_t epoch) {
    mpk_plan plan = {.path = path, .data_offsets = data_at, .checksum_offsets = checksums_at, .epoch = epoch, .run = 7};
    CHECK(mpk_cut(s, &plan) == 0);
    end_drain(s);
    CHECK(mpk__session_is_valid(s));
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

static void check_slot(const char *path, uint64_t epoch) {
    CHECK(mpk__record_is_complete(&(mpk_record[]){read_record(path, 0)}[0], epoch));
    uint8_t *image = malloc(BYTES);
    for (int i = 0; i < 2; i++) {
        size_t bytes = i ? REST : BYTES, n = (bytes + BLOCK - 1) / BLOCK;
        uint32_t checksums[BLOCKS];
        read_slot(path, image, bytes, data_at[i]);
        read_slot(path, checksums, n * sizeof *checksums, checksums_at[i]);
        CHECK(memcmp(image, arrays[i], bytes) == 0);
        for (size_t k = 0; k < n; k++)
            CHECK(checksums[k] == mpk_crc32c(0, image + k * BLOCK, bytes - k * BLOCK < BLOCK ? bytes - k * BLOCK : BLOCK));
    }
    free(image);
}

/* Cuts, and checks how many blocks were dirty and that the slot has everything. */
static void cut_and_check(mpk_session *s, const char *path, uint64_t epoch, uint64_t dirty) {
    mpk_progress p = cut(s, path, epoch);
    CHECK(p.state == MPK_DRAIN_COMPLETE && p.blocks == BLOCKS + 1);
    if (p.blocks_dirty != dirty) fprintf(stderr, "epoch %d: %d dirty blocks\n", (int)epoch, (int)p.blocks_dirty);
    CHECK(p.blocks_dirty == dirty && p.blocks_saved == dirty);
    check_slot(path, epoch);
}

static void change(uint32_t block) { arrays[0][(size_t)block * BLOCK + 77]++; }

static void test_turns(const char *a, const char *b) {
    mpk_session *s = open_session();
    cut_and_check(s, a, 1, BLOCKS + 1);
    cut_and_check(s, b, 2, BLOCKS + 1); /* the other slot has nothing yet */
    cut_and_check(s, a, 3, 0);
    change(3), change(4), change(60);
    cut_and_check(s, b, 4, 3);
    change(4), arrays[1][10]++;
    cut_and_check(s, a, 5, 4); /* what changed before epoch 4, too */
    cut_and_check(s, b, 6, 2);
    cut_and_check(s, b, 7, 0);
    change(0);
    mpk_progress p;
    mpk_plan plan = {.path = a, .data_offsets = data_at, .checksum_offsets = checksums_at, .epoch = 8, .run = 7};
    CHECK(mpk_cut(s, &plan) == 0);
    change(0), change(1), change(2); /* the first is dirty, the others are not */
    end_drain(s);
    mpk_session_progress(s, &p);
    CHECK(p.blocks_dirty == 1 && p.blocks_copied <= 1);
    cut_and_check(s, a, 9, 3);
    cut_and_check(s, b, 10, 3);
    mpk_session_destroy(s);
    s = open_session();
    cut_and_check(s, a, 11, BLOCKS + 1); /* a session knows nothing of the one before */
    mpk_session_destroy(s);
}

static void put_first_record(const char *path, mpk_record record, bool valid) {
    record.crc = mpk_crc32c(0, &record, offsetof(mpk_record, crc)) ^ !valid;
    int fd = open(path, O_WRONLY);
    CHECK(pwrite(fd, &record, sizeof record, 0) == sizeof record);
    close(fd);
}

/* Whatever goes wrong, the slot gets all of it the next time. */
static void test_failures(const char *a, const char *b) {
    mpk_session *s = open_session();
    cut_and_check(s, a, 1, BLOCKS + 1);
    cut_and_check(s, b, 2, BLOCKS + 1);
    change(5);
    mpk_plan plan = {.path = a,
                     .data_offsets = data_at,
                     .checksum_offsets = checksums_at,
                     .epoch = 3,
                     .run = 7,
                     .channels_follow = 1,
                     .channels_spill_path = "never-written"};
    CHECK(mpk_cut(s, &plan) == 0);
    CHECK(mpk_fail_epoch(s, ECANCELED) == 0);
    end_drain(s);
    change(6);
    cut_and_check(s, b, 4, 2);
    cut_and_check(s, a, 5, BLOCKS + 1);

    mpk_record record = read_record(a, 0); /* another rank set was here meanwhile */
    record.run = 8;
    put_first_record(a, record, true);
    mpk_progress p = cut(s, a, 6);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ESTALE);
    CHECK(read_record(a, 0).run == 8 && read_record(a, 0).state == MPK_COMPLETE); /* its epoch is unharmed */
    cut_and_check(s, a, 7, BLOCKS + 1);

    char *copy = make_slot(8192 + 2 * BYTES + 4096); /* the same bytes in another file: perhaps not the same bytes */
    uint8_t *all = malloc(8192 + 2 * BYTES);
    read_slot(a, all, 8192 + 2 * BYTES, 0);
    int fd = open(copy, O_WRONLY);
    CHECK(pwrite(fd, all, 8192 + 2 * BYTES, 0) == 8192 + 2 * BYTES);
    close(fd);
    free(all);
    CHECK(rename(copy, a) == 0);
    free(copy);
    p = cut(s, a, 8);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ESTALE);
    cut_and_check(s, a, 9, BLOCKS + 1);

    change(9);
    atomic_store(&refuse_protection, 1); /* the block stays writable, although it counts as protected */
    p = cut(s, b, 10);
    atomic_store(&refuse_protection, 0);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ENOMEM);
    change(9);
    cut_and_check(s, a, 11, BLOCKS + 1);
    cut_and_check(s, b, 12, BLOCKS + 1);
    cut_and_check(s, a, 13, 0);
    mpk_session_destroy(s);
}

/* A slot of another layout is not the one that was made for this rank, although nothing is left out yet. */
static void test_replaced_slot(void) {
    char *path = make_slot(8192 + 2 * BYTES + 4096);
    mpk_session *s = open_session();
    cut_and_check(s, path, 1, BLOCKS + 1);
    mpk_record record = read_record(path, 0);
    mpk_session_destroy(s);
    s = open_session();
    record.digest[31] ^= 1;
    put_first_record(path, record, true);
    mpk_progress p = cut(s, path, 2);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ESTALE);
    CHECK(read_record(path, 0).epoch == 1 && read_record(path, 0).state == MPK_COMPLETE); /* unharmed */
    put_first_record(path, record, false); /* a corrupt record tells nothing, and is fixed */
    cut_and_check(s, path, 3, BLOCKS + 1);
    mpk_session_destroy(s);
    unlink(path);
    free(path);
}

/* After a restart the slot that was restored gets what has changed since, the other one all. */
static void test_restart(const char *a, const char *b) {
    mpk_session *s = open_session();
    cut_and_check(s, a, 1, BLOCKS + 1);
    mpk_session_destroy(s);
    s = open_session();
    change(7); /* untracked */
    CHECK(mpk_session_resume(s, a, 0, checksums_at, 2) == -ESTALE);
    CHECK(mpk_session_resume(s, a, 0, checksums_at, 1) == 0);
    change(8);
    cut_and_check(s, b, 2, BLOCKS + 1);
    CHECK(mpk_session_resume(s, a, 0, checksums_at, 1) == -EBUSY);
    change(9);
    cut_and_check(s, a, 3, 3);
    cut_and_check(s, b, 4, 1);
    mpk_session_destroy(s);
    s = open_session(); /* the restored slot itself first: nothing was compared yet */
    CHECK(mpk_session_resume(s, b, 0, checksums_at, 4) == 0);
    change(10);
    cut_and_check(s, b, 5, BLOCKS + 1);
    cut_and_check(s, b, 6, 0);
    mpk_session_destroy(s);
    s = open_session(); /* the first epoch after the restart fails: what it did not compare is written */
    CHECK(mpk_session_resume(s, b, 0, checksums_at, 6) == 0);
    arrays[0][0]++;
    mpk_progress p = cut(s, "no-such-folder/slot", 7);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ENOENT);
    cut_and_check(s, a, 8, BLOCKS + 1);
    cut_and_check(s, b, 9, 1);
    mpk_session_destroy(s);
    s = open_session();
    atomic_store(&refuse_protection, 1);
    CHECK(mpk_session_resume(s, b, 0, checksums_at, 9) == -ENOMEM);
    atomic_store(&refuse_protection, 0);
    change(11);
    cut_and_check(s, a, 10, BLOCKS + 1);
    cut_and_check(s, b, 11, BLOCKS + 1);
    mpk_session_destroy(s);
}

/* A write that nobody sees is found out in the end, and then all is saved. */
static void test_untracked_write(const char *a, const char *b) {
    mpk_session *s = open_session();
    const char *slots[2] = {a, b};
    uint64_t epoch = 1;
    mpk_progress p;
    for (; epoch <= 40; epoch++) {
        cut_and_check(s, slots[epoch % 2], epoch, epoch <= 2 ? BLOCKS + 1 : 0);
        usleep(2000);
        mpk_session_progress(s, &p);
        CHECK(p.untracked_region == -1);
    }
    uint8_t *page = arrays[0] + (size_t)40 * BLOCK;
    syscall(SYS_mprotect, page, 4096, PROT_READ | PROT_WRITE);
    page[5]++;
    syscall(SYS_mprotect, page, 4096, PROT_READ);
    for (; p.untracked_region == -1; epoch++) { /* one is compared in each interval, if the idle thread gets that much time */
        CHECK(cut(s, slots[epoch % 2], epoch).blocks_dirty == 0);
        usleep(2000);
        mpk_session_progress(s, &p);
    }
    CHECK(p.untracked_region == 0 && p.untracked_offset == (uint64_t)40 * BLOCK);
    cut_and_check(s, slots[epoch % 2], epoch, BLOCKS + 1);
    cut_and_check(s, slots[(epoch + 1) % 2], epoch + 1, BLOCKS + 1);
    cut_and_check(s, slots[epoch % 2], epoch + 2, 0);
    mpk_session_destroy(s);
}

int main(void) {
    alarm(HANG_SECONDS);
    uint64_t seed = 5;
    arrays[0] = mpk_alloc(BYTES, 0), arrays[1] = mpk_alloc(REST, 0);
    fill_random(arrays[0], BYTES, &seed);
    char *a = make_slot(12288 + 2 * BYTES), *b = make_slot(12288 + 2 * BYTES);
    test_turns(a, b);
    test_failures(a, b);
    test_replaced_slot();
    test_restart(a, b);
    test_untracked_write(a, b);
    unlink(a), unlink(b);
    free(a), free(b);
    mpk_free(arrays[0], BYTES), mpk_free(arrays[1], REST);
    return 0;
}
