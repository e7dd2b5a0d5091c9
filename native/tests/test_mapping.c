/* Memory that others may write to without a fault: shared mappings are copied at the cut and never protected, private views of
 * files become memory of the process's own, huge pages of hugetlbfs are copied too; and what cannot be saved is named. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "check.h"

enum { BLOCK = 16384, BLOCKS = 32, BYTES = BLOCKS * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;

static mpk_progress cut(mpk_session *s, const char *path, uint64_t epoch) {
    mpk_plan plan = {.path = path, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = epoch, .run = 7};
    CHECK(mpk_cut(s, &plan) == 0);
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

static mpk_progress wait_for_drain(mpk_session *s) {
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(mpk__session_is_valid(s));
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

/* The slot holds `expected`, or anything if that is NULL, with checksums that agree. */
static void check_image(const char *path, const uint8_t *expected, size_t bytes) {
    uint8_t *image = malloc(bytes);
    uint32_t checksums[BLOCKS];
    read_slot(path, image, bytes, data_at);
    read_slot(path, checksums, sizeof checksums, checksums_at);
    CHECK(!expected || memcmp(image, expected, bytes) == 0);
    for (size_t k = 0; k * BLOCK < bytes; k++) {
        size_t n = bytes - k * BLOCK < BLOCK ? bytes - k * BLOCK : BLOCK;
        CHECK(checksums[k] == mpk_crc32c(0, image + k * BLOCK, n));
    }
    free(image);
}

static bool is_pinned(mpk_session *s, enum mpk_mapping mapping) {
    mpk_memory memory;
    CHECK(mpk_region_memory(s, 0, &memory) == 0);
    CHECK(memory.mapping == mapping && memory.error == 0);
    return memory.is_pinned;
}

static int shared_file(size_t bytes) {
    int fd = memfd_create("mpickpt-test", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static uint8_t *map(int fd, int how) {
    uint8_t *memory = mmap(NULL, BYTES + 4096, PROT_READ | PROT_WRITE, how, fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* A region that begins `lead` bytes into memory which is mapped twice, and is written to by its other name from the cut on. */
static void test_shared(const char *path, size_t lead) {
    int fd = shared_file(BYTES + 4096);
    uint8_t *memory = map(fd, MAP_SHARED), *alias = map(fd, MAP_SHARED), *before = malloc(BYTES);
    size_t bytes = BYTES - lead;
    uint64_t seed = 5;
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory + lead, bytes, 0) == 0);
    CHECK(mpk_session_seal(s, BLOCK, (BLOCKS - 2) * BLOCK) == -ENOBUFS);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    CHECK(is_pinned(s, MPK_MAPPED_SHARED));
    for (uint64_t epoch = 1; epoch <= 20; epoch++) {
        fill_random(alias, BYTES, &seed);
        memcpy(before, memory + lead, bytes);
        mpk_progress p = cut(s, path, epoch);
        CHECK(p.torn_region == -1 && p.faults == 0);
        for (int again = 0; again < 3; again++) fill_random(alias, BYTES, &seed);
        p = wait_for_drain(s);
        CHECK(p.state == MPK_DRAIN_COMPLETE && p.blocks_dirty == p.blocks);
        check_image(path, before, bytes);
    }
    mpk_session_destroy(s);
    munmap(memory, BYTES + 4096), munmap(alias, BYTES + 4096);
    free(before);
    close(fd);
}

static uint8_t *written_to;
static _Atomic int stop;

static void *write_all_the_time(void *unused) {
    (void)unused;
    for (uint8_t n = 1; !atomic_load(&stop); n++)
        for (size_t i = 0; i < BYTES; i += 512) written_to[i] = n;
    return NULL;
}

/* Who writes during the cut itself makes an image of no instant: the epoch fails, however quickly it could be committed. */
static void test_torn(const char *path) {
    int fd = shared_file(BYTES + 4096);
    uint8_t *memory = map(fd, MAP_SHARED);
    written_to = map(fd, MAP_SHARED);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, 0) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, write_all_the_time, NULL) == 0);
    int failed = 0;
    uint64_t epoch = 0;
    while (failed < 3 && epoch < 5000) { /* a writer that is not running just then does no harm */
        mpk_progress p = cut(s, path, ++epoch);
        int torn = p.torn_region == 0;
        p = wait_for_drain(s);
        CHECK(torn == (p.state == MPK_DRAIN_FAILED) && p.error == (torn ? EREMCHG : 0));
        CHECK(read_record(path, 0).state == (torn ? MPK_FAILED : MPK_COMPLETE));
        failed += torn;
    }
    CHECK(failed == 3);
    atomic_store(&stop, 1);
    pthread_join(writer, NULL);
    CHECK(cut(s, path, epoch + 1).torn_region == -1);
    CHECK(wait_for_drain(s).state == MPK_DRAIN_COMPLETE);
    check_image(path, memory, BYTES);
    mpk_session_destroy(s);
    munmap(memory, BYTES + 4096), munmap(written_to, BYTES + 4096);
    close(fd);
}

/* What is pinned for known writers may change at any time; the checksum is that of what was copied. */
static void test_held(const char *path) {
    written_to = mpk_alloc(BYTES, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, written_to, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    CHECK(mpk_pin(written_to, BYTES) == 0);
    atomic_store(&stop, 0);
    pthread_t writer;
    CHECK(pthread_create(&writer, NULL, write_all_the_time, NULL) == 0);
    for (uint64_t epoch = 1; epoch <= 30; epoch++) {
        cut(s, path, epoch);
        mpk_progress p = wait_for_drain(s);
        CHECK(p.state == MPK_DRAIN_COMPLETE && p.torn_region == -1 && p.faults == 0);
        check_image(path, NULL, BYTES);
    }
    atomic_store(&stop, 1);
    pthread_join(writer, NULL);
    mpk_unpin(written_to, BYTES);
    mpk_session_destroy(s);
    mpk_free(written_to, BYTES);
}

/* A private view of a file: what is written into the file after sealing does not show. */
static void test_private_file(const char *path) {
    int fd = shared_file(BYTES + 4096);
    uint8_t *expected = malloc(BYTES), *noise = malloc(BYTES);
    uint64_t seed = 6;
    fill_random(expected, BYTES, &seed), fill_random(noise, BYTES, &seed);
    CHECK(pwrite(fd, expected, BYTES, 0) == BYTES);
    uint8_t *memory = map(fd, MAP_PRIVATE);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory + 24, BYTES - 24 - 100, 0) ==
          0); /* with edges, which the file must not show through either */
    CHECK(mpk_session_seal(s, BLOCK, BYTES / 4) == 0);
    CHECK(!is_pinned(s, MPK_MAPPED_PRIVATE));
    CHECK(pwrite(fd, noise, BYTES, 0) == BYTES);
    CHECK(memcmp(memory, expected, BYTES) == 0);
    cut(s, path, 1);
    memory[5 * BLOCK] ^= 1; /* protected as any other */
    CHECK(wait_for_drain(s).faults == 1);
    check_image(path, expected + 24, BYTES - 24 - 100);
    mpk_session_destroy(s);
    CHECK(mpk_session_create(&s, 0) == 0);
    uint8_t *longer = mmap(NULL, BYTES + 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0); /* than its file */
    CHECK(longer != MAP_FAILED);
    CHECK(mpk_region_add(s, longer, BYTES + 65536, 0) == 0);
    CHECK(mpk_session_look_up(s) == -EIO);
    mpk_memory found;
    CHECK(mpk_region_memory(s, 0, &found) == 0 && found.error == EIO);
    mpk_session_destroy(s);
    munmap(longer, BYTES + 65536), munmap(memory, BYTES + 4096);
    free(expected), free(noise);
    close(fd);
}

static _Atomic int memory_fd, first_written; /* blocks from there on */

/* As the kernel, a debugger or a card writes: no page is too protected for it. No value comes twice: what changes and changes
 * back while a block is written is what a comparison cannot see. */
static void *write_past_protection(void *unused) {
    (void)unused;
    for (uint64_t n = 1; !atomic_load(&stop); n++)
        for (int b = atomic_load(&first_written); b < BLOCKS; b++)
            CHECK(pwrite(memory_fd, &n, sizeof n, (off_t)(uintptr_t)(written_to + b * BLOCK + 96)) == sizeof n);
    return NULL;
}

/* A writer that nobody knows of, while blocks are saved: epochs fail, or what is in their slots agrees with its checksums; and the
 * other slot stays as it was. */
static void test_untracked(const char *path, const char *other) {
    const char *slots[2] = {path, other};
    memory_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    CHECK(memory_fd >= 0);
    written_to = mpk_alloc(BYTES, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, written_to, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    cut(s, slots[0], 1);
    CHECK(wait_for_drain(s).state == MPK_DRAIN_COMPLETE);
    int newest = 0, failed = 0;
    uint64_t epoch = 1;
    for (int round = 0; round < 4; round++) {
        atomic_store(&stop, 0);
        atomic_store(&first_written, round < 2 ? BLOCKS - 1 : 0); /* one block, then all */
        pthread_t writer;
        CHECK(pthread_create(&writer, NULL, write_past_protection, NULL) == 0);
        for (int had = failed; failed < had + 3 && epoch < 5000;) {
            memset(written_to, (int)epoch, BYTES);
            mpk_session_boost(s, round % 2); /* the idle threads, and the urgent ones */
            cut(s, slots[1 - newest], ++epoch);
            mpk_progress p = wait_for_drain(s);
            if (p.state == MPK_DRAIN_COMPLETE) {
                newest = 1 - newest;
            } else {
                CHECK(p.error == EREMCHG && p.untracked_region == 0 && p.torn_region == -1);
                failed++;
            }
            CHECK(read_record(slots[newest], 0).state == MPK_COMPLETE);
            check_image(slots[newest], NULL, BYTES);
        }
        atomic_store(&stop, 1);
        pthread_join(writer, NULL);
        cut(s, slots[1 - newest], ++epoch);
        mpk_progress p = wait_for_drain(s);
        CHECK(p.state == MPK_DRAIN_COMPLETE && p.blocks_dirty == BLOCKS); /* nothing is taken over from before */
        newest = 1 - newest;
        check_image(slots[newest], written_to, BYTES);
    }
    CHECK(failed >= 12);
    mpk_session_destroy(s);
    mpk_free(written_to, BYTES);
    close(memory_fd);
}

static void test_not_mapped(void) {
    uint8_t *owned = mpk_alloc(BLOCK, 0); /* first, or it might fill the gap */
    uint8_t *memory = mmap(NULL, 3 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && munmap(memory + BLOCK, BLOCK) == 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, owned, BLOCK, MPK_REGION_OWNED) == 0);
    CHECK(mpk_region_add(s, memory, 3 * BLOCK, 0) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == -EFAULT);
    mpk_memory found;
    CHECK(mpk_region_memory(s, 0, &found) == 0 && found.error == 0);
    CHECK(mpk_region_memory(s, 1, &found) == 0 && found.error == EFAULT);
    CHECK(mpk_region_memory(s, 2, &found) == -EINVAL);
    mpk_session_destroy(s);
    munmap(memory, BLOCK), munmap(memory + 2 * BLOCK, BLOCK);
    mpk_free(owned, BLOCK);
}

/* -- huge pages of hugetlbfs, which the machine has to have, or to be given ------------------------------------------- */

static const char *const pages = "/proc/sys/vm/nr_hugepages";

static int huge_pages(void) {
    FILE *file = fopen(pages, "r");
    int n = -1;
    if (file && fscanf(file, "%d", &n) != 1) n = -1;
    if (file) fclose(file);
    return n;
}

static void set_huge_pages(int n) {
    FILE *file = fopen(pages, "w");
    if (!file) return;
    fprintf(file, "%d\n", n);
    fclose(file);
}

static void test_huge(const char *path) {
    int had = huge_pages(), how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    if (had >= 0) set_huge_pages(had + 1);
    uint8_t *memory = mmap(NULL, MPK__HUGE_PAGE, PROT_READ | PROT_WRITE, how, -1, 0), *before = malloc(BYTES);
    if (had >= 0) set_huge_pages(had);
    if (memory == MAP_FAILED) {
        printf("no huge page can be had: not tested\n");
        free(before);
        return;
    }
    uint64_t seed = 8;
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, 0) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    CHECK(is_pinned(s, MPK_MAPPED_HUGE));
    for (uint64_t epoch = 1; epoch <= 3; epoch++) {
        fill_random(memory, BYTES, &seed);
        memcpy(before, memory, BYTES);
        CHECK(cut(s, path, epoch).torn_region == -1);
        fill_random(memory, BYTES, &seed);
        CHECK(wait_for_drain(s).state == MPK_DRAIN_COMPLETE);
        check_image(path, before, BYTES);
    }
    mpk_session_destroy(s);
    munmap(memory, MPK__HUGE_PAGE);
    set_huge_pages(had);
    free(before);
}

int main(void) {
    char *path = make_slot(checksums_at + 4096);
    test_shared(path, 0);
    test_shared(path, 24);
    test_torn(path);
    test_held(path);
    char *other = make_slot(checksums_at + 4096);
    test_untracked(path, other);
    unlink(other);
    free(other);
    test_private_file(path);
    test_not_mapped();
    test_huge(path);
    unlink(path);
    free(path);
    return 0;
}
