/* Several writes at once: all of them arrive, whatever becomes of the queue, and one that fails is told of. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/resource.h>

#include "check.h"

enum { PIECE = 4096, WRITES = 16, PIECES = 3, ROUNDS = 300, PLACES = 64 };

typedef struct batch {
    struct iovec pieces[WRITES][PIECES];
    mpk__write writes[WRITES];
    int n;
} batch;

static uint8_t *memory, expected[PLACES * PIECES * PIECE];

static void fill(uint64_t *seed) {
    for (size_t i = 0; i < WRITES * PIECES; i++) memset(memory + i * PIECE, (int)(next_random(seed) >> 56), PIECE);
}

/* Writes of one to three pieces each, to places that differ; what the file should hold then is in `expected`. */
static void make(batch *b, uint64_t *seed) {
    b->n = 1 + (int)(next_random(seed) % WRITES);
    size_t first = next_random(seed) % PLACES;
    for (int i = 0; i < b->n; i++) {
        size_t at = (first + 3 * (size_t)i) % PLACES * PIECES * PIECE; /* 3 and PLACES have no common divisor */
        int n = 1 + (int)(next_random(seed) % PIECES);
        for (int k = 0; k < n; k++) {
            b->pieces[i][k] = (struct iovec){memory + (size_t)(i * PIECES + k) * PIECE, PIECE};
            memcpy(expected + at + (size_t)k * PIECE, b->pieces[i][k].iov_base, PIECE);
        }
        b->writes[i] = (mpk__write){b->pieces[i], n, at};
    }
}

static void check_file(const char *path) {
    static uint8_t found[sizeof expected];
    read_slot(path, found, sizeof found, 0);
    CHECK(memcmp(found, expected, sizeof found) == 0);
}

static void test_all_arrive(unsigned long queue, int fd, const char *path) {
    uint64_t seed = 1;
    for (int round = 0; round < ROUNDS; round++) {
        batch b;
        fill(&seed);
        make(&b, &seed);
        CHECK(mpk__prim_write_all(queue, fd, b.writes, b.n) == 0);
        if (round % 20 == 0) check_file(path);
    }
    check_file(path);
}

/* One of them reads memory that is not there: the others arrive, and it is told of. */
static void test_one_fails(unsigned long queue, int fd, const char *path) {
    uint64_t seed = 2;
    for (int round = 0; round < ROUNDS; round++) {
        batch b;
        fill(&seed);
        make(&b, &seed);
        int bad = b.n - 1;
        size_t at = b.writes[bad].offset, bytes = (size_t)b.writes[bad].n * PIECE;
        b.pieces[bad][0].iov_base = NULL;
        CHECK(mpk__prim_write_all(queue, fd, b.writes, b.n) == -EFAULT);
        read_slot(path, expected + at, bytes, at);
        if (b.n > 1) check_file(path);
    }
}

/* The file may not grow beyond the middle of a write: what is written in part must not count as complete. */
static void test_too_little_room(unsigned long queue) {
    char *path = make_slot(PIECE);
    int fd = open(path, O_RDWR | O_DIRECT);
    CHECK(fd >= 0);
    struct rlimit before;
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    struct rlimit small = {4 * PIECE, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    struct iovec a = {memory, PIECE}, b[3] = {{memory, PIECE}, {memory, PIECE}, {memory, PIECE}};
    mpk__write writes[2] = {{&a, 1, 0}, {b, 3, 2 * PIECE}};
    CHECK(mpk__prim_write_all(queue, fd, writes, 2) == -EFBIG);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    close(fd);
    unlink(path);
    free(path);
}

static int open_queues(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    int n = 0;
    for (char line[512]; fgets(line, sizeof line, maps);) n += strstr(line, "[aio]") != NULL;
    fclose(maps);
    return n;
}

/* The drain's queues outlive a session, and serve the next one: neither is one closed, nor does one come with each. */
static void test_sessions_share_queues(void) {
    for (int i = 0; i < 3; i++) {
        mpk_session *s;
        CHECK(mpk_session_create(&s, 0) == 0);
        CHECK(mpk_region_add(s, memory, WRITES * PIECES * PIECE, MPK_REGION_OWNED) == 0);
        CHECK(mpk_session_seal(s, 65536, 65536) == 0);
        CHECK(open_queues() == MPK__DRAIN_THREADS);
        mpk_session_destroy(s);
        CHECK(open_queues() == MPK__DRAIN_THREADS);
    }
}

int main(void) {
    alarm(HANG_SECONDS);
    memory = mpk_alloc(WRITES * PIECES * PIECE, 0);
    char *path = make_slot(sizeof expected);
    int fd = open(path, O_RDWR | O_DIRECT);
    CHECK(fd >= 0);
    unsigned long queue = mpk__prim_open_queue(WRITES), closed = mpk__prim_open_queue(WRITES);
    CHECK(queue && closed);
    mpk__prim_close_queue(closed);
    unsigned long queues[] = {queue, closed, 0}; /* 0: the system has none */
    for (int i = 0; i < 3; i++) {
        test_all_arrive(queues[i], fd, path);
        test_one_fails(queues[i], fd, path);
        test_too_little_room(queues[i]);
    }
    mpk__prim_close_queue(queue);
    test_sessions_share_queues();
    close(fd);
    unlink(path);
    free(path);
    mpk_free(memory, WRITES * PIECES * PIECE);
    return 0;
}
