/* A copy of a file beside the program: it has all bytes, whatever the length; it rests while an epoch is being drained, and goes
 * on thereafter; it can be stopped, at rest and at work; what the storage refuses is told. */
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include "check.h"
#include "chaos.h"

enum { BLOCK = 8192, BLOCKS = 4, BYTES = BLOCK * BLOCKS, RECORD_AT = 0, OBJECTS_AT = 4096, CHANNELS_AT = 8192 };
enum { ROOM = 4096, DATA_AT = CHANNELS_AT + ROOM, ROUNDS = 80, MOST = 20 * 16384 };
static const uint64_t data_at = DATA_AT, checksums_at = DATA_AT + BYTES;

static char *from, *to;
static uint8_t content[MOST], copied[MOST];

typedef struct task {
    mpk_copier *copier;
    pthread_t thread;
    _Atomic int done;
    int result;
} task;

static void *copy(void *argument) {
    task *t = argument;
    t->result = mpk_copier_run(t->copier, from, to);
    atomic_store(&t->done, 1);
    return NULL;
}

static void start(task *t) {
    *t = (task){0};
    CHECK(mpk_copier_create(&t->copier) == 0);
    CHECK(pthread_create(&t->thread, NULL, copy, t) == 0);
}

static int end(task *t) {
    CHECK(pthread_join(t->thread, NULL) == 0);
    return t->result;
}

static void fill_file(const char *path, const uint8_t *data, size_t bytes) {
    int fd = open(path, O_WRONLY | O_TRUNC);
    CHECK(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    close(fd);
}

static void check_all_bytes(uint64_t *seed) {
    uint64_t since = mpk__prim_now_ns();
    for (int round = 0; goes_on(round, ROUNDS, since, 20); round++) {
        size_t bytes = round == 0 ? 0 : round % 3 ? next_random(seed) % MOST : next_random(seed) % (MOST / 4096) * 4096;
        fill_random(content, bytes, seed);
        fill_file(from, content, bytes);
        fill_file(to, content, 0);
        task t;
        start(&t);
        CHECK(end(&t) == 0);
        CHECK(mpk_copier_bytes(t.copier) == bytes);
        struct stat found;
        CHECK(stat(to, &found) == 0 && (size_t)found.st_size == bytes);
        read_slot(to, copied, bytes, 0);
        CHECK(memcmp(content, copied, bytes) == 0);
        mpk_copier_destroy(t.copier);
    }
}

/* An epoch whose channels are pending is being drained for as long as we like. */
static void check_that_it_rests(uint8_t *memory) {
    char *slot = make_slot(DATA_AT + BYTES + 4096);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0 && mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    for (uint64_t epoch = 1; epoch <= 3; epoch++) {
        mpk_plan plan = {.path = slot,
                         .data_offsets = &data_at,
                         .checksum_offsets = &checksums_at,
                         .record_offset = RECORD_AT,
                         .objects = "",
                         .objects_offset = OBJECTS_AT,
                         .channels_follow = 1,
                         .channels_offset = CHANNELS_AT,
                         .channels_room = ROOM,
                         .channels_spill_path = "mpickpt-test-none",
                         .epoch = epoch};
        memset(memory, (int)epoch, BYTES);
        CHECK(mpk_cut(s, &plan) == 0);
        task t;
        start(&t);
        CHECK(mpk_session_wait(s, 200000000) == 0); /* in this time it would be done long since */
        CHECK(!atomic_load(&t.done) && mpk_copier_bytes(t.copier) == 0);
        if (epoch == 2) {
            mpk_copier_stop(t.copier);
            CHECK(end(&t) == -ECANCELED && mpk_copier_bytes(t.copier) == 0);
        }
        CHECK(mpk_add_channels(s, "", 0) == 0);
        if (epoch != 2) CHECK(end(&t) == 0 && mpk_copier_bytes(t.copier) != 0);
        end_drain(s);
        mpk_copier_destroy(t.copier);
    }
    mpk_session_destroy(s);
    unlink(slot);
    free(slot);
}

static void check_failures(void) {
    task t;
    fill_file(from, content, MOST);
    start(&t);
    mpk_copier_stop(t.copier);
    CHECK(end(&t) == -ECANCELED || mpk_copier_bytes(t.copier) == MOST);
    CHECK(mpk_copier_run(t.copier, from, to) == -ECANCELED); /* for good */
    mpk_copier_destroy(t.copier);

    CHECK(mpk_copier_create(&t.copier) == 0);
    CHECK(mpk_copier_run(t.copier, "mpickpt-test-none", to) == -ENOENT);
    CHECK(mpk_copier_run(t.copier, from, "mpickpt-test-none") == -ENOENT);
    CHECK(mpk_copier_run(t.copier, ".", to) == -EINVAL);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, small = {MOST / 2, RLIM_INFINITY};
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0 && setrlimit(RLIMIT_FSIZE, &small) == 0);
    fill_file(to, content, 0);
    CHECK(mpk_copier_run(t.copier, from, to) == -EFBIG);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    mpk_copier_destroy(t.copier);
}

int main(void) {
    alarm(HANG_SECONDS);
    uint64_t seed = mpk__prim_now_ns() | 1;
    printf("seed %llu\n", (unsigned long long)seed);
    from = make_slot(4096), to = make_slot(4096);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    CHECK(memory);
    check_all_bytes(&seed);
    check_that_it_rests(memory);
    check_failures();
    mpk_free(memory, BYTES);
    unlink(from), unlink(to);
    free(from), free(to);
    return 0;
}
