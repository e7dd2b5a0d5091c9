/* Reading again: errors that may pass cost a pause, others and those that stay are told, and nobody tries for ever. The
 * calls of the C library that read are this file's own here, and fail as they are told. */
#include <sys/mman.h>
#include <sys/syscall.h>

#include "check.h"

enum { BLOCK = 8192, BLOCKS = 300, BYTES = BLOCK * BLOCKS, MANY = 1 << 30, TRIES = 3, THREADS = 8 };

static _Atomic int fail_read, fail_populate, fail_with, calls;

static bool fails(_Atomic int *count) {
    int left = atomic_load(count);
    while (left > 0)
        if (atomic_compare_exchange_weak(count, &left, left - 1)) {
            atomic_fetch_add(&calls, 1);
            return true;
        }
    return false;
}

ssize_t pread(int fd, void *memory, size_t bytes, off_t offset) {
    if (fails(&fail_read)) {
        errno = atomic_load(&fail_with);
        return -1;
    }
    return syscall(SYS_pread64, fd, memory, bytes, offset);
}

int madvise(void *memory, size_t bytes, int advice) {
    if (advice == 23 /* MADV_POPULATE_WRITE */ && fails(&fail_populate)) {
        errno = EFAULT;
        return -1;
    }
    return (int)syscall(SYS_madvise, memory, bytes, advice);
}

static char *path;
static uint8_t *content, *back;
static uint32_t checksums[BLOCKS];
static size_t corrupt[BLOCKS], n;

static uint64_t repeated(void) {
    int error;
    uint64_t count = mpk_reads_repeated(&error);
    CHECK(count == 0 || error != 0);
    return count;
}

static void plan(_Atomic int *what, int times, int error) {
    atomic_store(&calls, 0);
    atomic_store(&fail_with, error);
    atomic_store(&fail_read, 0);
    atomic_store(&fail_populate, 0);
    atomic_store(what, times);
}

static int read_all_blocks(int direct) {
    memset(back, 0, BYTES);
    return mpk_read_blocks(path, 0, back, BYTES, BLOCK, checksums, direct, corrupt, &n);
}

static void test_reader(int direct) {
    const int passing[] = {EIO, ESTALE, EINTR, EAGAIN, ETIMEDOUT, EREMOTEIO};
    for (size_t i = 0; i < sizeof passing / sizeof *passing; i++)
        for (int times = 1; times < TRIES; times++) {
            uint64_t before = repeated();
            plan(&fail_read, times, passing[i]);
            CHECK(read_all_blocks(direct) == 0 && n == 0 && memcmp(back, content, BYTES) == 0);
            CHECK(atomic_load(&fail_read) == 0);
            CHECK(passing[i] == EINTR || repeated() == before + (uint64_t)times); /* EINTR is asked again at once */
        }
    plan(&fail_read, MANY, EIO);
    CHECK(read_all_blocks(direct) == -EIO);
    CHECK(atomic_load(&calls) >= TRIES && atomic_load(&calls) <= TRIES * THREADS);
    uint64_t before = repeated();
    plan(&fail_read, MANY, ENXIO);
    CHECK(read_all_blocks(direct) == -ENXIO && repeated() == before);
    plan(&fail_read, 0, 0);
}

static mpk_loading load(void **memory) {
    mpk_loader *loader;
    mpk_loading now;
    CHECK(mpk_loader_create(&loader, path, BLOCK) == 0);
    CHECK(mpk_loader_map(loader, 0, BYTES, checksums, memory) == 0);
    mpk_loader_boost(loader, 1);
    CHECK(mpk_loader_wait(loader, -1) == 1);
    mpk_loader_progress(loader, &now);
    mpk_loader_destroy(loader);
    return now;
}

static void test_loader(_Atomic int *what) {
    void *memory;
    uint64_t before = repeated();
    plan(what, 2, EIO);
    mpk_loading now = load(&memory);
    CHECK(now.error == 0 && !now.is_corrupt && atomic_load(what) == 0 && repeated() == before + 2);
    CHECK(memcmp(memory, content, BYTES) == 0);
    mpk_free(memory, BYTES);
    uint64_t start = mpk__prim_now_ns();
    plan(what, MANY, EIO);
    now = load(&memory);
    CHECK(now.error == EIO);
    CHECK(mpk__prim_now_ns() - start < 20000000000); /* the rest is not tried again, of 150 chunks */
    CHECK(repeated() - before < 2 + 3 * TRIES);
    plan(what, 0, 0);
    mpk_free(memory, BYTES);
}

int main(void) {
    uint64_t seed = 5;
    path = make_slot(BYTES);
    content = malloc(BYTES), back = mpk_alloc(BYTES, 0);
    fill_random(content, BYTES, &seed);
    for (size_t b = 0; b < BLOCKS; b++) checksums[b] = mpk_crc32c(0, content + b * BLOCK, BLOCK);
    int fd = open(path, O_WRONLY);
    CHECK(pwrite(fd, content, BYTES, 0) == BYTES);
    close(fd);
    test_reader(0);
    test_reader(1);
    test_loader(&fail_read);
    void *page = mpk_alloc(4096, 0);
    if (madvise(page, 4096, 23) == 0) test_loader(&fail_populate); /* since Linux 5.14 */
    mpk_free(page, 4096);
    mpk_free(back, BYTES);
    free(content);
    unlink(path);
    free(path);
    return 0;
}
