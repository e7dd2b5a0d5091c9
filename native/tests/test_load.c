/* Lazy reading: threads write while everything is loaded, and not a byte is lost; what the file holds later shows in no
 * page; corruption is found in the file, not in what the program has written; a child of fork() has all. */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "chaos.h"

enum { BLOCK = 8192, ROUNDS = 2000, PARTS = 3, MOST = 40 * BLOCK, WRITERS = 2, FILE_BYTES = PARTS * (MOST + 4096) };

typedef struct shown {
    uint8_t *memory, *model; /* what the program's memory must hold */
    uint64_t offset;
    size_t bytes;
    uint32_t checksums[MOST / BLOCK];
} shown;

static char *path;
static int file;
static uint8_t *content;
static shown parts[PARTS];
static size_t n_parts;
static _Atomic int stop;

/* Writes to bytes of its own, next to the other writer's. */
static void *write_anywhere(void *argument) {
    size_t me = (size_t)(uintptr_t)argument;
    uint64_t seed = mpk__prim_now_ns() * (me + 1) | 1;
    do {
        const shown *p = &parts[next_random(&seed) % n_parts];
        size_t at = next_random(&seed) % (p->bytes / WRITERS) * WRITERS + me;
        p->model[at] = (uint8_t)next_random(&seed);
        ((volatile uint8_t *)p->memory)[at] = p->model[at];
        if (at % 64 < 2) mpk__chaos();
    } while (!atomic_load(&stop));
    return NULL;
}

static mpk_loader *begin(uint64_t *seed) {
    fill_random(content, FILE_BYTES, seed);
    CHECK(pwrite(file, content, FILE_BYTES, 0) == FILE_BYTES);
    mpk_loader *loader;
    CHECK(mpk_loader_create(&loader, path, BLOCK) == 0);
    n_parts = 1 + next_random(seed) % PARTS;
    for (size_t i = 0; i < n_parts; i++) {
        shown *p = &parts[i];
        p->bytes = WRITERS + next_random(seed) % (MOST - WRITERS);
        p->offset = i * (MOST + 4096) + next_random(seed) % 2 * 4096;
        memcpy(p->model, content + p->offset, p->bytes);
        for (size_t at = 0; at < p->bytes; at += BLOCK)
            p->checksums[at / BLOCK] = mpk_crc32c(0, p->model + at, p->bytes - at < BLOCK ? p->bytes - at : BLOCK);
    }
    return loader;
}

static void map(mpk_loader *loader) {
    for (size_t i = 0; i < n_parts; i++)
        CHECK(mpk_loader_map(loader, parts[i].offset, parts[i].bytes, parts[i].checksums, (void **)&parts[i].memory) == 0);
}

static void spoil_file(void) {
    memset(content, 0xa5, FILE_BYTES);
    CHECK(pwrite(file, content, FILE_BYTES, 0) == FILE_BYTES);
}

static void compare(void) {
    for (size_t i = 0; i < n_parts; i++) CHECK(memcmp(parts[i].memory, parts[i].model, parts[i].bytes) == 0);
}

static void end(mpk_loader *loader) {
    mpk_loader_destroy(loader);
    for (size_t i = 0; i < n_parts; i++) mpk_free(parts[i].memory, parts[i].bytes);
}

static mpk_loading progress(const mpk_loader *loader) {
    mpk_loading now;
    mpk_loader_progress(loader, &now);
    return now;
}

static void test_writers_and_corruption(int round, uint64_t *seed) {
    mpk_loader *loader = begin(seed);
    bool corrupt = round % 3 == 0;
    size_t part = next_random(seed) % n_parts, at = next_random(seed) % parts[part].bytes;
    if (corrupt) {
        uint8_t flipped = content[parts[part].offset + at] ^ (uint8_t)(1 << next_random(seed) % 8);
        parts[part].model[at] = flipped;
        CHECK(pwrite(file, &flipped, 1, (off_t)(parts[part].offset + at)) == 1);
    }
    map(loader);
    pthread_t writers[WRITERS];
    atomic_store(&stop, 0);
    for (size_t i = 0; i < WRITERS; i++) CHECK(pthread_create(&writers[i], NULL, write_anywhere, (void *)i) == 0);
    if (round % 4) mpk_loader_boost(loader, 1);
    if (round % 5 == 0) mpk_loader_wait(loader, 1000);
    mpk_loader_boost(loader, 1); /* an idle thread may get nothing beside other programs */
    CHECK(mpk_loader_wait(loader, -1) == 1);
    mpk_loading now = progress(loader);
    CHECK(now.error == 0 && now.bytes == now.bytes_loaded && now.is_corrupt == corrupt);
    CHECK(!corrupt || (now.part == part && now.block == at / BLOCK));
    spoil_file();
    atomic_store(&stop, 1);
    for (size_t i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
    compare();
    end(loader);
}

/* The child looks only when the file holds something else. */
static void test_fork(uint64_t *seed) {
    mpk_loader *loader = begin(seed);
    map(loader);
    int go[2], status;
    char byte;
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(go[1]);
        CHECK(read(go[0], &byte, 1) == 0);
        compare();
        end(loader);
        _exit(0);
    }
    spoil_file();
    close(go[0]);
    close(go[1]);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    compare();
    end(loader);
}

/* Its place in the file is gone: that is told, and takes nobody's life but that of who looks at the memory. */
static void test_truncated(uint64_t *seed) {
    mpk_loader *loader = begin(seed);
    CHECK(ftruncate(file, (off_t)(parts[0].offset + parts[0].bytes - 1)) == 0);
    void *memory;
    CHECK(mpk_loader_map(loader, parts[0].offset, parts[0].bytes, parts[0].checksums, &memory) == -ENODATA);
    CHECK(ftruncate(file, FILE_BYTES) == 0);
    mpk_loader_destroy(loader);
    size_t many = (size_t)64 << 20; /* too much to be loaded before it is cut off */
    CHECK(ftruncate(file, (off_t)many) == 0);
    uint32_t *none = calloc(many / BLOCK, sizeof *none);
    CHECK(mpk_loader_create(&loader, path, BLOCK) == 0);
    CHECK(mpk_loader_map(loader, 0, many, none, &memory) == 0);
    CHECK(ftruncate(file, BLOCK) == 0);
    mpk_loader_boost(loader, 1);
    CHECK(mpk_loader_wait(loader, -1) == 1);
    CHECK(progress(loader).is_corrupt && progress(loader).error == EIO);
    mpk_loader_destroy(loader);
    mpk_free(memory, many);
    free(none);
}

static void test_misuse(uint64_t *seed) {
    mpk_loader *loader = begin(seed), *second;
    void *memory;
    CHECK(mpk_loader_create(&second, path, BLOCK) == -EBUSY);
    CHECK(mpk_loader_map(loader, 512, BLOCK, parts[0].checksums, &memory) == -EINVAL);
    CHECK(mpk_loader_map(loader, 0, 0, parts[0].checksums, &memory) == -EINVAL);
    CHECK(mpk_loader_wait(loader, 0) == 1); /* nothing to wait for */
    map(loader);
    mpk_loader_destroy(loader); /* long before it is done */
    compare();
    for (size_t i = 0; i < n_parts; i++) mpk_free(parts[i].memory, parts[i].bytes);
    CHECK(mpk_loader_create(&loader, path, 1000) == -EINVAL);
    CHECK(mpk_loader_create(&loader, "no-such-file", BLOCK) == -ENOENT);
}

/* An older kernel has no way to ask for pages that may not be there, but SIGBUS. */
static bool can_ask_for_pages(void) {
    void *page = mpk_alloc(4096, 0);
    bool can = madvise(page, 4096, 23 /* MADV_POPULATE_WRITE, Linux 5.14 */) == 0;
    mpk_free(page, 4096);
    return can;
}

/* A loader ends whatever its threads are about to do just then: also when they are about to wait. */
static void test_end_at_any_instant(uint64_t *seed) {
    alarm(HANG_SECONDS); /* a thread that misses the end waits for ever, and so would this */
    uint64_t began = mpk__prim_now_ns();
    for (int round = 0; goes_on(round, 1000, began, 20); round++) {
        mpk_loader *loader;
        CHECK(mpk_loader_create(&loader, path, BLOCK) == 0);
        for (uint64_t spin = next_random(seed) % 40000; spin; spin--) atomic_signal_fence(memory_order_seq_cst);
        mpk_loader_destroy(loader);
    }
    alarm(0);
}

int main(void) {
    uint64_t seed = 11;
    path = make_slot(FILE_BYTES);
    file = open(path, O_RDWR);
    content = malloc(FILE_BYTES);
    for (size_t i = 0; i < PARTS; i++) parts[i].model = malloc(MOST);
    uint64_t began = mpk__prim_now_ns();
    for (int round = 0; goes_on(round, ROUNDS, began, 30); round++) test_writers_and_corruption(round, &seed);
    for (int round = 0; round < 20; round++) test_fork(&seed);
    for (int round = 0; round < 5; round++) test_misuse(&seed);
    test_end_at_any_instant(&seed);
    if (can_ask_for_pages()) test_truncated(&seed);
    for (size_t i = 0; i < PARTS; i++) free(parts[i].model);
    free(content);
    close(file);
    unlink(path);
    free(path);
    return 0;
}
