/* What the tests share: a check that says where it failed, random numbers with a seed, a slot file, a session's plan. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "session.h"

#define CHECK(condition)                                                                                    \
    do {                                                                                                    \
        if (!(condition)) {                                                                                 \
            fprintf(stderr, "%s:%d: %s does not hold (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            abort();                                                                                        \
        }                                                                                                   \
    } while (0)

/* xorshift64*: small, and each thread has its own. */
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static inline void fill_random(uint8_t *data, size_t bytes, uint64_t *state) {
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(next_random(state) >> 56);
}

enum { HANG_SECONDS = 200 }; /* for alarm(): what takes longer, also on a busy machine, hangs */

/* Whether a test in which idle threads take part goes on: beside other programs these get little, and it makes fewer rounds. */
static inline bool goes_on(int round, int rounds, uint64_t since_ns, uint64_t seconds) {
    return round < rounds && (round < rounds / 10 || mpk__prim_now_ns() - since_ns < seconds * 1000000000u);
}

/* Wait for the end of a drain. Beside other programs the idle threads may get nothing: then the urgent ones do the rest. */
static inline void end_drain(mpk_session *s) {
    if (mpk_session_wait(s, 100000000)) return;
    mpk_session_boost(s, 1);
    CHECK(mpk_session_wait(s, -1) == 1);
    mpk_session_boost(s, 0);
}

static inline char *make_slot(size_t bytes) {
    char *path = strdup("mpickpt-test-XXXXXX");
    int fd = mkstemp(path); /* in the build folder: O_DIRECT works there, unlike in many a /tmp */
    CHECK(fd >= 0);
    CHECK(posix_fallocate(fd, 0, (off_t)bytes) == 0);
    close(fd);
    return path;
}

static inline void read_slot(const char *path, void *data, size_t bytes, uint64_t offset) {
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    CHECK(pread(fd, data, bytes, (off_t)offset) == (ssize_t)bytes);
    close(fd);
}

static inline mpk_record read_record(const char *path, uint64_t offset) {
    mpk_record record;
    read_slot(path, &record, sizeof record, offset);
    CHECK(record.crc == mpk_crc32c(0, &record, offsetof(mpk_record, crc)));
    return record;
}

#endif
