/* A process that has as many memory mappings as it may have: to open a block inside a closed run would take two
 * more. The program goes on all the same, what it saves is right, and at the end all is open. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "check.h"

enum { PAGE = 4096, BLOCK = 65536, BLOCKS = 32, BYTES = BLOCKS * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES, half_at = 4096 + BYTES / 2, half_checksums_at = 8192 + BYTES;

static uint8_t *used_up; /* every second page is read-only, each a mapping of its own */
static size_t used_up_bytes;

static long limit(void) {
    long n = 0;
    FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
    CHECK(file && fscanf(file, "%ld", &n) == 1);
    fclose(file);
    return n;
}

static void use_up(void) {
    used_up_bytes = (size_t)(limit() + 4) * PAGE;
    used_up = mmap(NULL, used_up_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(used_up != MAP_FAILED);
    CHECK(mprotect(used_up, PAGE, PROT_NONE) == 0); /* so that it is joined to nothing beside it */
    CHECK(mprotect(used_up + used_up_bytes - PAGE, PAGE, PROT_NONE) == 0);
    size_t at = 2 * PAGE, end = used_up_bytes - PAGE;
    while (mprotect(used_up + at, PAGE, PROT_READ) == 0) at += 2 * PAGE;
    CHECK(errno == ENOMEM && at < end);
    mprotect(used_up + at, end - at, PROT_READ); /* not even one more, which the end of a closed run would take */
    CHECK(mprotect(used_up + at + PAGE, PAGE, PROT_NONE) != 0 && errno == ENOMEM);
}

static void give_back(void) { CHECK(munmap(used_up, used_up_bytes) == 0); }

static mpk_session *open_session(uint8_t *memory, size_t bytes, size_t regions, size_t pool) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    for (size_t i = 0; i < regions; i++)
        CHECK(mpk_region_add(s, memory + i * bytes / regions, bytes / regions, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, pool) == 0);
    return s;
}

static void cut(mpk_session *s, const char *path, uint64_t epoch) {
    uint64_t data[2] = {data_at, half_at}, checksums[2] = {checksums_at, half_checksums_at};
    mpk_plan plan = {.path = path, .data_offsets = data, .checksum_offsets = checksums, .epoch = epoch};
    CHECK(mpk_cut(s, &plan) == 0);
}

static void check_saved(mpk_session *s, const char *path, const uint8_t *expected) {
    mpk_progress progress;
    mpk_session_wait(s, -1);
    mpk_session_progress(s, &progress);
    CHECK(progress.state == MPK_DRAIN_COMPLETE && mpk__session_is_valid(s));
    uint8_t *image = malloc(BYTES);
    read_slot(path, image, BYTES, data_at);
    CHECK(memcmp(image, expected, BYTES) == 0);
    free(image);
}

static int writable_blocks(const mpk_session *s) {
    int n = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) n += atomic_load(&s->blocks.opened[b]);
    return n;
}

/* Writes to blocks inside what is closed, while it is drained or afterwards. */
static void test_writes(uint8_t *memory, const char *path, size_t regions, bool drained) {
    uint8_t *expected = malloc(BYTES);
    memset(memory, 1, BYTES);
    memset(expected, 1, BYTES);
    mpk_session *s = open_session(memory, BYTES, regions, 2 * BLOCK);
    cut(s, path, 1);
    if (drained) check_saved(s, path, expected);
    use_up();
    for (size_t b = 5; b < BLOCKS; b += 7) memory[b * BLOCK + 9] = 2;
    CHECK(writable_blocks(s) == BLOCKS); /* one run, one mapping */
    check_saved(s, path, expected);
    for (size_t b = 5; b < BLOCKS; b += 7) expected[b * BLOCK + 9] = 2;
    give_back();
    cut(s, path, 2);
    check_saved(s, path, expected);
    int zero = open("/dev/zero", O_RDONLY);
    use_up();
    mpk__blocks_open_all(&s->blocks);
    CHECK(read(zero, memory, BYTES) == BYTES); /* by the kernel, which no handler helps */
    close(zero);
    mpk_session_destroy(s);
    give_back();
    free(expected);
}

/* Up to the nearest open block only. */
static void test_no_more_than_needed(uint8_t *memory, const char *path) {
    memset(memory, 1, BYTES);
    mpk_session *s = open_session(memory, BYTES, 1, BYTES);
    cut(s, path, 1);
    mpk_session_wait(s, -1);
    memory[4 * BLOCK] = memory[20 * BLOCK] = 2;
    use_up();
    memory[7 * BLOCK] = 2;
    CHECK(writable_blocks(s) == 5); /* 4 to 7, and 20 */
    memory[18 * BLOCK] = 2;
    CHECK(writable_blocks(s) == 7); /* 18 to 20, too */
    memory[30 * BLOCK] = 2;
    CHECK(writable_blocks(s) == 17);
    give_back();
    mpk_session_destroy(s);
}

/* Where not all can be protected, the epoch fails; the next one saves all. */
static void test_cut(uint8_t *memory, const char *path) {
    mpk_progress progress;
    memset(memory, 1, BYTES);
    mpk_session *s = open_session(memory + BLOCK, BYTES - 2 * BLOCK, 1, BLOCK); /* inside a mapping */
    use_up();
    cut(s, path, 1);
    mpk_session_wait(s, -1);
    mpk_session_progress(s, &progress);
    CHECK(progress.state == MPK_DRAIN_FAILED && progress.error == ENOMEM);
    memory[3 * BLOCK] = 2;
    give_back();
    cut(s, path, 2);
    mpk_session_wait(s, -1);
    mpk_session_progress(s, &progress);
    CHECK(progress.state == MPK_DRAIN_COMPLETE && mpk__session_is_valid(s));
    mpk_session_destroy(s);
}

int main(void) {
    if (limit() > 1 << 20) {
        printf("vm.max_map_count is %ld: too many to use up\n", limit());
        return 77;
    }
    char *path = make_slot(checksums_at + 8192);
    uint8_t *around = mpk_alloc(BYTES + 2 * PAGE, 0), *memory = around + PAGE;
    CHECK(mprotect(around, PAGE, PROT_NONE) == 0); /* a mapping that is joined to nothing beside it */
    CHECK(mprotect(memory + BYTES, PAGE, PROT_NONE) == 0);
    for (size_t regions = 1; regions <= 2; regions++) {
        test_writes(memory, path, regions, true);
        test_writes(memory, path, regions, false);
    }
    test_no_more_than_needed(memory, path);
    test_cut(memory, path);
    unlink(path);
    free(path);
    mpk_free(around, BYTES + 2 * PAGE);
    return 0;
}
