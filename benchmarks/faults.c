/* How long a write to a read-only block that is not saved yet takes: the fault, with the copy of the block into the pool.
 * Alternately, the memcpy alone of another block is timed; block and target have been unused for as long. Both are timed
 * while the drain works, as in a program.
 *
 *     faults FILE 4k|huge MIB SAMPLES
 *
 * FILE is created and removed. The blocks are written in a random order, which differs in each epoch. Writes to blocks that
 * the drain had saved already make no copy and are not counted. Prints one JSON object, times in nanoseconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "mpickpt.h"

enum { BLOCK = 256 * 1024 };

static void demand(int holds, const char *what) {
    if (holds) return;
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Present, page-aligned memory in pages of one kind. */
static uint8_t *map(size_t bytes, int huge) {
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    demand(memory != MAP_FAILED, "mmap");
    madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(memory, 1, bytes);
    return memory;
}

static void shuffle(uint32_t *order, uint32_t n, uint64_t *seed) {
    for (uint32_t i = n - 1; i > 0; i--) {
        *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17; /* xorshift64 */
        uint32_t j = (uint32_t)(*seed % (i + 1)), other = order[j];
        order[j] = order[i];
        order[i] = other;
    }
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_percentiles(const char *name, uint64_t *times, size_t n) {
    qsort(times, n, sizeof *times, ascending);
    printf("\"%s\": {\"p50\": %llu, \"p90\": %llu, \"p99\": %llu, \"max\": %llu}", name, (unsigned long long)times[n / 2],
           (unsigned long long)times[n * 9 / 10], (unsigned long long)times[n * 99 / 100], (unsigned long long)times[n - 1]);
}

/* Writes to all blocks of one epoch, as long as samples are wanted; returns how many there are then. */
static size_t write_blocks(mpk_session *s, uint8_t *state, const uint8_t *from, uint8_t *to, const uint32_t *order,
                           uint32_t n_blocks, uint64_t *faults, uint64_t *copies, size_t n, size_t wanted) {
    for (uint32_t i = 0; i < n_blocks && n < wanted; i++) {
        mpk_progress before, after;
        mpk_session_progress(s, &before);
        uint64_t begin = now_ns();
        *(volatile uint8_t *)(state + (size_t)order[i] * BLOCK) += 1;
        faults[n] = now_ns() - begin;
        mpk_session_progress(s, &after);
        size_t other = (size_t)order[n_blocks - 1 - i] * BLOCK;
        begin = now_ns();
        memcpy(to + other, from + other, BLOCK);
        __asm__ volatile("" : : "r"(to) : "memory");
        copies[n] = now_ns() - begin;
        n += after.blocks_copied > before.blocks_copied;
    }
    return n;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: %s FILE 4k|huge MIB SAMPLES\n", argv[0]), 2;
    int huge = strcmp(argv[2], "huge") == 0;
    size_t bytes = strtoul(argv[3], NULL, 10) << 20, wanted = strtoul(argv[4], NULL, 10), n = 0;
    uint32_t n_blocks = (uint32_t)(bytes / BLOCK);
    demand(n_blocks > 0 && wanted > 0, "MIB and SAMPLES");

    uint64_t data_at = MPK_RECORD_BYTES, checksums_at = data_at + bytes;
    int file = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0600);
    demand(file >= 0, argv[1]);
    demand(posix_fallocate(file, 0, (off_t)(checksums_at + (uint64_t)n_blocks * 4 + 4096)) == 0, "posix_fallocate");

    uint8_t *state = map(bytes, huge), *from = map(bytes, huge), *to = map(bytes, 1); /* the pool has huge pages, too */
    uint32_t *order = malloc(n_blocks * sizeof *order);
    uint64_t *faults = malloc((wanted + 1) * sizeof *faults), *copies = malloc((wanted + 1) * sizeof *copies);
    demand(order && faults && copies, "malloc");
    for (uint32_t i = 0; i < n_blocks; i++) order[i] = i;

    mpk_session *s;
    demand(mpk_session_create(&s, 0) == 0 && mpk_region_add(s, state, bytes, 0) == 0, "session");
    demand(mpk_session_seal(s, BLOCK, bytes) == 0, "seal");
    uint64_t seed = 2026;
    for (uint64_t epoch = 1; n < wanted; epoch++) {
        mpk_plan plan = {.path = argv[1], .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = epoch};
        shuffle(order, n_blocks, &seed);
        demand(mpk_cut(s, &plan) == 0, "cut");
        n = write_blocks(s, state, from, to, order, n_blocks, faults, copies, n, wanted);
        mpk_session_wait(s, -1);
        mpk_progress progress;
        mpk_session_progress(s, &progress);
        demand(progress.state == MPK_DRAIN_COMPLETE, "drain");
    }
    mpk_session_destroy(s);
    close(file);
    unlink(argv[1]);

    printf("{\"samples\": %zu, ", n);
    print_percentiles("fault", faults, n);
    printf(", ");
    print_percentiles("memcpy", copies, n);
    printf("}\n");
    return 0;
}
