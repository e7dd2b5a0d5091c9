/* Storage that hangs: a write that waits for room in the pool gives the epoch up, the program goes on, nothing is cut while
 * the call has not returned, and all is well again thereafter. The calls to the storage go through the functions here. */
#define _GNU_SOURCE
#include <dirent.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "check.h"

enum { BLOCK = 65536, BLOCKS = 64, BYTES = BLOCKS * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;
static const uint64_t ms = 1000000, limit = 200 * ms;
static uint8_t *memory;
static char *path;

/* Threads whose name begins so wait in such a call as long as it is set. */
static _Atomic(const char *) hung_write, hung_sync;
static _Atomic int n_hung;
static _Atomic size_t hung_bytes; /* smaller writes do not hang: those of the record */

static void pause_ms(long n) {
    struct timespec nap = {.tv_sec = n / 1000, .tv_nsec = n % 1000 * 1000000};
    nanosleep(&nap, NULL);
}

static void hang_while(_Atomic(const char *) *who) {
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    const char *hung = atomic_load(who);
    if (!hung || strncmp(name, hung, strlen(hung)) != 0) return;
    atomic_fetch_add(&n_hung, 1);
    while (atomic_load(who)) pause_ms(1);
    atomic_fetch_sub(&n_hung, 1);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t offset) {
    size_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += iov[i].iov_len;
    if (bytes >= atomic_load(&hung_bytes)) hang_while(&hung_write);
    return syscall(SYS_pwritev, fd, iov, (long)n, (long)offset, 0L);
}

int fdatasync(int fd) {
    hang_while(&hung_sync);
    return (int)syscall(SYS_fdatasync, fd);
}

static mpk_progress progress(const mpk_session *s) {
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

static mpk_session *sealed(size_t pool, uint64_t limit_ns) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_session_set_stall_limit(s, limit_ns, "said\n") == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, pool) == 0);
    return s;
}

static int cut_as(mpk_session *s, uint64_t epoch, bool channels_follow) {
    mpk_plan plan = {.path = path,
                     .data_offsets = &data_at,
                     .checksum_offsets = &checksums_at,
                     .epoch = epoch,
                     .channels_follow = channels_follow,
                     .channels_spill_path = "not-needed"};
    return mpk_cut(s, &plan);
}

static int cut(mpk_session *s, uint64_t epoch) { return cut_as(s, epoch, false); }

static void check_image(uint8_t value) {
    static uint8_t image[BYTES];
    uint32_t checksums[BLOCKS];
    read_slot(path, image, BYTES, data_at);
    read_slot(path, checksums, sizeof checksums, checksums_at);
    for (size_t i = 0; i < BYTES; i++) CHECK(image[i] == value);
    for (size_t b = 0; b < BLOCKS; b++) CHECK(checksums[b] == mpk_crc32c(0, image + b * BLOCK, BLOCK));
}

static void wait_until_hung(int least) {
    while (atomic_load(&n_hung) < least) pause_ms(1);
}

static void wait_for_state(mpk_session *s, enum mpk_drain_state state) {
    while (progress(s).state != state) pause_ms(1);
    CHECK(mpk__session_is_valid(s));
}

/* An epoch that is complete, with the image of its cut, whatever hung before. */
static void check_next_epoch(mpk_session *s, uint64_t epoch) {
    CHECK(cut(s, epoch) == 0);
    uint8_t value = memory[0];
    memset(memory, (int)epoch, BYTES);
    end_drain(s);
    CHECK(progress(s).state == MPK_DRAIN_COMPLETE && read_record(path, 0).state == MPK_COMPLETE);
    CHECK(mpk__session_is_valid(s));
    check_image(value);
}

static void test_the_pool_is_full(mpk_session *s, const char *who, size_t least_bytes) {
    atomic_store(&hung_bytes, least_bytes);
    for (uint64_t epoch = 10; epoch < 12; epoch++) {
        atomic_store(&hung_write, who);
        CHECK(cut(s, epoch) == 0);
        wait_until_hung(1);
        uint64_t start = mpk__prim_now_ns();
        memset(memory, (int)epoch, BYTES);
        uint64_t took = mpk__prim_now_ns() - start;
        CHECK(took >= limit && took < 100 * limit);
        CHECK(mpk_session_wait(s, -1) == 1); /* it tells of the hang, and does not wait for its end */
        mpk_progress p = progress(s);
        CHECK(p.state == MPK_DRAIN_HUNG && p.error == ETIMEDOUT && p.calls != 0);
        CHECK(cut(s, epoch + 1) == -EBUSY && mpk_give_up(s) == -EINVAL);
        pause_ms(20);
        mpk_record now = read_record(path, 0);
        CHECK(progress(s).state == MPK_DRAIN_HUNG && (now.epoch != epoch || now.state != MPK_COMPLETE));
        atomic_store(&hung_write, NULL);
        wait_for_state(s, MPK_DRAIN_FAILED);
        mpk_record record = read_record(path, 0);
        CHECK(record.state == MPK_FAILED && record.error == ETIMEDOUT && record.epoch == epoch);
        check_next_epoch(s, epoch + 10);
    }
}

static void test_nobody_is_held_up(void) {
    mpk_session *s = sealed(BYTES, limit);
    uint8_t value = memory[0];
    atomic_store(&hung_write, "mpickpt");
    CHECK(cut(s, 1) == 0);
    memset(memory, 77, BYTES);
    wait_until_hung(1);
    pause_ms(600);
    CHECK(progress(s).state == MPK_DRAIN_ACTIVE);
    atomic_store(&hung_write, NULL);
    end_drain(s);
    CHECK(progress(s).state == MPK_DRAIN_COMPLETE);
    check_image(value);
    mpk_session_destroy(s);
}

static void test_the_commit_hangs(void) {
    mpk_session *s = sealed(BYTES, limit);
    memset(memory, 1, BYTES);
    CHECK(mpk_give_up(s) == -EINVAL);
    CHECK(cut(s, 1) == 0);
    end_drain(s);
    CHECK(mpk_give_up(s) == -EINVAL && progress(s).state == MPK_DRAIN_COMPLETE);
    CHECK(cut_as(s, 3, true) == 0);
    while (progress(s).blocks_saved < progress(s).blocks_dirty || read_record(path, 0).epoch != 3) pause_ms(1);
    pause_ms(20);
    atomic_store(&hung_sync, "mpickpt");
    CHECK(mpk_add_channels(s, NULL, 0) == 0); /* nothing but the commit is left */
    wait_until_hung(1);
    CHECK(mpk_give_up(s) == 0 && progress(s).state == MPK_DRAIN_HUNG && progress(s).error == ETIMEDOUT);
    memset(memory, 2, BYTES);
    atomic_store(&hung_sync, NULL);
    wait_for_state(s, MPK_DRAIN_FAILED);
    CHECK(read_record(path, 0).state == MPK_FAILED);
    check_next_epoch(s, 4);
    mpk_session_destroy(s);
}

/* Blocks that are copied at the cut wait for room, too: the cut itself must come to an end. */
static void test_held_blocks(void) {
    mpk_session *s = sealed(BLOCK, limit);
    CHECK(mpk_pin(memory, BYTES / 2) == 0);
    atomic_store(&hung_write, "mpickpt");
    CHECK(cut(s, 1) == 0);
    CHECK(progress(s).state == MPK_DRAIN_HUNG);
    memset(memory, 5, BYTES);
    atomic_store(&hung_write, NULL);
    wait_for_state(s, MPK_DRAIN_FAILED);
    check_next_epoch(s, 2);
    mpk_unpin(memory, BYTES / 2);
    mpk_session_destroy(s);
}

static int count_threads(void) {
    DIR *folder = opendir("/proc/self/task");
    int n = 0;
    while (readdir(folder)) n++;
    closedir(folder);
    return n;
}

static void test_the_session_ends_while_it_hangs(bool given_up) {
    int before = count_threads();
    mpk_session *s = sealed(BYTES, limit);
    memset(memory, 3, BYTES);
    atomic_store(&hung_write, "mpickpt");
    CHECK(cut(s, 1) == 0);
    wait_until_hung(1);
    if (given_up) CHECK(mpk_give_up(s) == 0);
    uint64_t start = mpk__prim_now_ns();
    CHECK(mpk_session_unseal(s) == -EBUSY);
    CHECK(given_up || mpk__prim_now_ns() - start >= limit);
    memset(memory, 4, BYTES); /* writable, without a session */
    s = sealed(BYTES, limit); /* and another one does not wait for the first, whose calls hang */
    mpk_session_destroy(s);
    atomic_store(&hung_write, NULL);
    for (int i = 0; count_threads() != before; i++) {
        CHECK(i < 10000);
        pause_ms(1);
    }
}

/* A session whose calls hang in an epoch, and somebody who begins to wait for them. */
static mpk_session *hanging(uint64_t limit_ns, mpk__patience *patience) {
    mpk_session *s = sealed(BYTES, limit_ns);
    atomic_store(&hung_write, "mpickpt");
    CHECK(cut(s, 1) == 0);
    wait_until_hung(1);
    *patience = (mpk__patience){.ended = progress(s).calls_ended};
    return s;
}

/* It was not given up, and becomes complete when the calls return. */
static void end_complete(mpk_session *s) {
    CHECK(progress(s).state == MPK_DRAIN_ACTIVE);
    atomic_store(&hung_write, NULL);
    end_drain(s);
    CHECK(progress(s).state == MPK_DRAIN_COMPLETE);
    mpk_session_destroy(s);
}

/* A process that is suspended does not notice: the slice in which it was is too long. */
static void test_suspended_time_does_not_count(void) {
    mpk__patience patience;
    mpk_session *s = hanging(900 * ms, &patience);
    mpk__drain_waited_in_handler(s, &patience, 3600000 * ms);
    CHECK(progress(s).state == MPK_DRAIN_ACTIVE);
    for (int i = 0; i < 100; i++) mpk__drain_waited_in_handler(s, &patience, 20 * ms);
    CHECK(progress(s).state == MPK_DRAIN_HUNG);
    atomic_store(&hung_write, NULL);
    wait_for_state(s, MPK_DRAIN_FAILED);
    mpk_session_destroy(s);
}

/* As long as calls end the storage is slow, and does not hang. */
static void test_a_call_that_ends_is_progress(void) {
    mpk__patience patience;
    mpk_session *s = hanging(900 * ms, &patience);
    for (int i = 0; i < 9; i++) {
        mpk__drain_waited_in_handler(s, &patience, 500 * ms);
        patience.ended--; /* since then one has ended */
    }
    end_complete(s);
}

/* Once in an epoch, after 30 s; without a limit it waits on. */
static void test_a_long_wait_is_said(void) {
    int ends[2], at_first = dup(STDERR_FILENO);
    mpk__patience patience;
    mpk_session *s = hanging(0, &patience);
    CHECK(pipe(ends) == 0 && dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
    for (int i = 0; i < 59; i++) mpk__drain_waited_in_handler(s, &patience, 500 * ms);
    CHECK(write(ends[1], ".", 1) == 1);
    for (int i = 0; i < 99; i++) mpk__drain_waited_in_handler(s, &patience, 500 * ms);
    CHECK(dup2(at_first, STDERR_FILENO) == STDERR_FILENO && close(ends[1]) == 0);
    char said[32] = "";
    CHECK(read(ends[0], said, sizeof said - 1) > 0 && strcmp(said, ".said\n") == 0);
    close(ends[0]);
    close(at_first);
    end_complete(s);
}

static uint64_t
    usual_ns = 2000000; /* until an epoch is given up: later after one that was, sooner after one that was complete */

static void *give_up_soon(void *argument) {
    mpk_session *s = argument;
    static uint64_t seed = 11;
    struct timespec nap = {.tv_nsec = (long)(next_random(&seed) % (usual_ns * 2))};
    nanosleep(&nap, NULL);
    mpk_give_up(s);
    return NULL;
}

/* Given up at any moment, with writes under way: what is COMPLETE has the image of its cut, and the counts add up. */
static void test_any_moment(int rounds) {
    mpk_session *s = sealed(BYTES / 4, 0);
    int n_failed = 0, done = 0;
    for (uint64_t began = mpk__prim_now_ns(); goes_on(done, rounds, began, 20); done++) {
        int i = done + 1;
        uint8_t value = (uint8_t)i;
        memset(memory, value, BYTES);
        pthread_t thread;
        CHECK(cut(s, (uint64_t)i) == 0);
        CHECK(pthread_create(&thread, NULL, give_up_soon, s) == 0);
        for (size_t b = 0; b < BLOCKS; b += 2) memory[b * BLOCK] = 0;
        while (mpk_session_wait(s, ms) == 0 || progress(s).state == MPK_DRAIN_HUNG) pause_ms(1);
        CHECK(pthread_join(thread, NULL) == 0);
        while (mpk__drain_is_open(&s->drain)) pause_ms(1);
        CHECK(mpk__session_is_valid(s));
        bool complete = progress(s).state == MPK_DRAIN_COMPLETE;
        CHECK(complete == (read_record(path, 0).state == MPK_COMPLETE));
        if (complete) check_image(value);
        usual_ns = complete ? usual_ns * 3 / 4 + 1000 : usual_ns * 4 / 3;
        if (usual_ns > 400 * ms) usual_ns = 400 * ms;
        n_failed += !complete;
    }
    CHECK(n_failed > done / 20 && n_failed < done); /* or this has not met what it is for */
    mpk_session_destroy(s);
}

int main(void) {
    alarm(HANG_SECONDS);
    memory = mpk_alloc(BYTES, 0);
    path = make_slot(checksums_at + 4096);
    mpk_session *s = sealed(BLOCK, limit);
    check_next_epoch(s, 1);
    test_the_pool_is_full(s, "mpickpt", 0); /* the slot cannot be opened */
    test_the_pool_is_full(s, "mpickpt", BLOCK); /* blocks that are written from memory, and from the pool, hang */
    test_the_pool_is_full(s, "mpickpt-idle", BLOCK);
    mpk_session_boost(s, 1);
    test_the_pool_is_full(s, "mpickpt-urgent", BLOCK); /* no idle thread is wanted then */
    mpk_session_boost(s, 0);
    atomic_store(&hung_bytes, 0);
    mpk_session_destroy(s);
    test_nobody_is_held_up();
    test_the_commit_hangs();
    test_held_blocks();
    test_the_session_ends_while_it_hangs(true);
    test_the_session_ends_while_it_hangs(false);
    test_suspended_time_does_not_count();
    test_a_call_that_ends_is_progress();
    test_a_long_wait_is_said();
    test_any_moment(100);
    unlink(path);
    free(path);
    mpk_free(memory, BYTES);
    return 0;
}
