/* An epoch whose channels follow is not committed before they are on disk, whoever brings them and whenever: before,
 * while or after the blocks are saved, against a rival who brings others, against somebody who fails the epoch.
 *
 * In each of some thousand rounds (or as many as the first argument says) threads do what the round's kind says at
 * instants that differ; then the record and every byte that it vouches for are compared. */
#include <sys/wait.h>

#include "check.h"
#include "chaos.h"

enum { BLOCK = 8192, BLOCKS = 12, BYTES = BLOCK * BLOCKS, ROOM = 4096, MOST = 2 * ROOM, OBJECTS = 32 };
enum { RECORD_AT = 0, OBJECTS_AT = 4096, CHANNELS_AT = 8192, DATA_AT = CHANNELS_AT + ROOM };
static const uint64_t data_at = DATA_AT, checksums_at = DATA_AT + BYTES;

enum kind { BEFORE, DURING, AFTER, RIVALS, FAILED_MEANWHILE, FAILED_AFTER, NOTHING_FOLLOWS, KINDS };

static char *slot, spill[64];
static uint8_t *memory, payloads[2][MOST];
static int n_failed, n_too_late, n_spilled, n_second_won; /* or the rounds have not met what they are for */

/* What a thread does once, after a pause, and what came of it. */
typedef struct deed {
    mpk_session *session;
    const uint8_t *payload; /* NULL: fail the epoch */
    size_t bytes;
    int64_t pause_ns;
    int result;
    pthread_t thread;
} deed;

static void *act(void *argument) {
    deed *d = argument;
    struct timespec pause = {.tv_nsec = d->pause_ns};
    nanosleep(&pause, NULL);
    mpk__chaos();
    d->result = d->payload ? mpk_add_channels(d->session, d->payload, d->bytes) : mpk_fail_epoch(d->session, EDQUOT);
    return NULL;
}

static mpk_plan make_plan(uint64_t epoch, bool follow, const void *objects) {
    return (mpk_plan){.path = slot,
                      .data_offsets = &data_at,
                      .checksum_offsets = &checksums_at,
                      .record_offset = RECORD_AT,
                      .objects = objects,
                      .objects_bytes = OBJECTS,
                      .objects_offset = OBJECTS_AT,
                      .channels_follow = follow,
                      .channels_offset = CHANNELS_AT,
                      .channels_room = ROOM,
                      .channels_spill_path = spill,
                      .epoch = epoch};
}

static void cut(mpk_session *s, uint64_t epoch, bool follow) {
    char objects[OBJECTS] = {0};
    snprintf(objects, sizeof objects, "objects of %llu", (unsigned long long)epoch);
    memset(memory, (int)epoch, BYTES);
    mpk_plan plan = make_plan(epoch, follow, objects);
    CHECK(mpk_cut(s, &plan) == 0);
}

static mpk_progress progress(const mpk_session *s) {
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

static mpk_record record(void) { return read_record(slot, RECORD_AT); }

/* All blocks are saved, and nothing but the channels is missing: nothing is committed, however long one waits. */
static void wait_for_blocks(mpk_session *s) {
    while (progress(s).blocks_saved < BLOCKS) CHECK(mpk_session_wait(s, 100000) == 0);
    mpk_progress p = progress(s);
    CHECK(p.channels_pending && p.state == MPK_DRAIN_ACTIVE && p.blocks_saved == p.blocks);
    CHECK(mpk_session_wait(s, 200000) == 0);
    CHECK(record().state == MPK_WRITING);
}

static void check_complete(uint64_t epoch, bool follow, const uint8_t *payload, size_t bytes) {
    mpk_record r = record();
    CHECK(r.state == MPK_COMPLETE && r.epoch == epoch && r.error == 0);
    static uint8_t image[BYTES], channels[MOST];
    read_slot(slot, image, BYTES, DATA_AT);
    for (size_t i = 0; i < BYTES; i += 512) CHECK(image[i] == (uint8_t)epoch);
    char objects[OBJECTS];
    read_slot(slot, objects, OBJECTS, OBJECTS_AT);
    CHECK(r.objects_crc == mpk_crc32c(0, objects, OBJECTS) && strtoull(objects + 11, NULL, 10) == epoch);
    if (!follow) bytes = 0;
    CHECK(r.channels_bytes == bytes && r.channels_spilled == (bytes > ROOM));
    if (r.channels_spilled)
        read_slot(spill, channels, bytes, 0);
    else
        read_slot(slot, channels, bytes, CHANNELS_AT);
    CHECK(bytes == 0 || memcmp(channels, payload, bytes) == 0);
    CHECK(r.channels_crc == mpk_crc32c(0, channels, bytes));
}

static void check_failed(mpk_session *s, int error, uint64_t epoch) {
    mpk_progress p = progress(s);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == error && !p.channels_pending);
    mpk_record r = record();
    CHECK(r.state == MPK_FAILED && r.error == error && r.epoch == epoch);
}

static void one_round(mpk_session *s, uint64_t epoch, enum kind kind, uint64_t *seed) {
    bool follow = kind != NOTHING_FOLLOWS;
    deed deeds[2];
    for (int i = 0; i < 2; i++) {
        bool fails = i == 1 && kind >= FAILED_MEANWHILE;
        size_t bytes = next_random(seed) % 4 ? next_random(seed) % MOST + 1 : 0;
        fill_random(payloads[i], MOST, seed);
        deeds[i] = (deed){.session = s,
                          .payload = fails ? NULL : payloads[i],
                          .bytes = bytes,
                          .pause_ns = (int64_t)(next_random(seed) % 8 * 100000)};
    }
    cut(s, epoch, follow);
    bool boost = next_random(seed) % 32; /* the idle threads get no time on a busy machine: most rounds do without them */
    if (boost) mpk_session_boost(s, 1);
    if (kind == BEFORE) deeds[0].pause_ns = 0;
    if (kind == AFTER || kind == FAILED_AFTER) {
        for (size_t i = 0; i < BYTES; i += BLOCK) memory[i]++; /* through the pool, as it has room for two */
        wait_for_blocks(s);
    }
    int first = kind == NOTHING_FOLLOWS || kind == FAILED_AFTER ? 1 : 0, last = kind >= RIVALS ? 1 : 0;
    if (kind == BEFORE)
        act(&deeds[0]);
    else
        for (int i = first; i <= last; i++) CHECK(pthread_create(&deeds[i].thread, NULL, act, &deeds[i]) == 0);
    for (size_t i = 0; i < BYTES; i += BLOCK / 2) memory[i]++;
    CHECK(mpk_session_wait(s, -1) == 1);
    for (int i = first; i <= last && kind != BEFORE; i++) CHECK(pthread_join(deeds[i].thread, NULL) == 0);
    if (boost) mpk_session_boost(s, 0);
    CHECK(mpk__session_is_valid(s));

    bool fails = kind >= FAILED_MEANWHILE;
    if (fails && deeds[1].result == 0) { /* it was in time, and nothing undoes it */
        check_failed(s, EDQUOT, epoch);
        if (kind != FAILED_MEANWHILE) CHECK(mpk_add_channels(s, "late", 4) == (follow ? 0 : -EINVAL));
        if (kind == FAILED_MEANWHILE) CHECK(deeds[0].result == 0);
        n_failed++;
        return;
    }
    mpk_progress p = progress(s);
    CHECK(p.state == MPK_DRAIN_COMPLETE && p.error == 0 && !p.channels_pending && p.blocks_saved == p.blocks);
    int winner = kind == RIVALS && deeds[1].result == 0;
    if (follow) CHECK(deeds[winner].result == 0);
    if (kind == RIVALS) CHECK(deeds[!winner].result == -EINVAL);
    if (fails) CHECK(deeds[1].result == -EINVAL && kind != FAILED_AFTER);
    check_complete(epoch, follow, payloads[winner], deeds[winner].bytes);
    n_too_late += fails;
    n_spilled += follow && deeds[winner].bytes > ROOM;
    n_second_won += winner;
}

static mpk_session *open_session(void) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, 2 * BLOCK) == 0);
    return s;
}

static void test_refusals(void) {
    mpk_session *s = open_session();
    CHECK(mpk_add_channels(s, "", 0) == -EINVAL && mpk_fail_epoch(s, EIO) == -EINVAL); /* no cut yet */
    mpk_plan plan = make_plan(1, true, memory);
    plan.channels_spill_path = NULL;
    CHECK(mpk_cut(s, &plan) == -EINVAL);
    cut(s, 1, false);
    CHECK(mpk_add_channels(s, "x", 1) == -EINVAL);
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(mpk_fail_epoch(s, EIO) == -EINVAL);
    check_complete(1, false, NULL, 0);
    cut(s, 2, true);
    plan = make_plan(3, false, memory);
    CHECK(mpk_cut(s, &plan) == -EBUSY);
    CHECK(mpk_fail_epoch(s, 0) == -EINVAL && mpk_fail_epoch(s, -EIO) == -EINVAL);
    CHECK(mpk_add_channels(s, "ab", 2) == 0 && mpk_add_channels(s, "cd", 2) == -EINVAL);
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(mpk_add_channels(s, "ef", 2) == -EINVAL);
    check_complete(2, true, (const uint8_t *)"ab", 2);
    cut(s, 3, true);
    wait_for_blocks(s);
    CHECK(mpk_fail_epoch(s, EIO) == 0);
    mpk_fail_epoch(s, EDQUOT); /* too late or not: the first one is told */
    CHECK(mpk_session_wait(s, -1) == 1);
    check_failed(s, EIO, 3);
    mpk_session_destroy(s);
}

/* Nobody can bring them any more: nothing hangs, and the record says why. */
static void test_unseal_while_pending(void) {
    for (uint64_t epoch = 1; epoch <= 40; epoch++) {
        mpk_session *s = open_session();
        cut(s, epoch, true);
        if (epoch % 2) wait_for_blocks(s);
        if (epoch % 4 < 2) mpk_session_unseal(s);
        if (epoch % 4 < 2) CHECK(progress(s).state == MPK_DRAIN_FAILED && progress(s).error == ECANCELED);
        mpk_session_destroy(s);
        mpk_record r = record();
        CHECK(r.state == MPK_FAILED && r.error == ECANCELED && r.epoch == epoch);
        memset(memory, 0, BYTES); /* writable, without a handler */
    }
}

static void test_forked_child(void) {
    mpk_session *s = open_session();
    cut(s, 1, true);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { /* the epoch is the parent's */
        alarm(HANG_SECONDS);
        bool refused = mpk_add_channels(s, "child", 5) == -EINVAL && mpk_fail_epoch(s, EIO) == -EINVAL;
        mpk_session_destroy(s);
        _exit(refused ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wait_for_blocks(s);
    CHECK(mpk_add_channels(s, "parent", 6) == 0);
    CHECK(mpk_session_wait(s, -1) == 1);
    check_complete(1, true, (const uint8_t *)"parent", 6);
    mpk_session_destroy(s);
}

/* An epoch that fails for another reason does not wait for its channels; and they may be what the storage refuses. */
static void test_storage_that_fails(void) {
    mpk_session *s = open_session();
    mpk_plan plan = make_plan(1, true, memory);
    plan.path = "no-such-folder/slot";
    CHECK(mpk_cut(s, &plan) == 0);
    CHECK(mpk_session_wait(s, -1) == 1);
    CHECK(progress(s).state == MPK_DRAIN_FAILED && progress(s).error == ENOENT && !progress(s).channels_pending);
    CHECK(mpk_add_channels(s, "late", 4) == 0);
    plan = make_plan(2, true, memory);
    plan.channels_spill_path = "no-such-folder/spill";
    CHECK(mpk_cut(s, &plan) == 0);
    CHECK(mpk_add_channels(s, payloads[0], ROOM + 1) == 0);
    CHECK(mpk_session_wait(s, -1) == 1);
    check_failed(s, ENOENT, 2);
    cut(s, 3, true);
    CHECK(mpk_add_channels(s, payloads[0], ROOM) == 0);
    CHECK(mpk_session_wait(s, -1) == 1);
    check_complete(3, true, payloads[0], ROOM);
    mpk_session_destroy(s);
}

int main(int argc, char **argv) {
    alarm(HANG_SECONDS);
    if (chdir("/dev/shm") != 0) puts("no /dev/shm: slow, for each commit waits for a disk");
    int rounds = argc > 1 ? atoi(argv[1]) : 3500;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : mpk__prim_wall_clock_ns() | 1;
    printf("%d rounds, seed %#llx\n", rounds, (unsigned long long)seed);
    slot = make_slot(checksums_at + 4096);
    snprintf(spill, sizeof spill, "%s.channels", slot);
    memory = mpk_alloc(BYTES, 0);
    test_refusals();
    test_unseal_while_pending();
    test_forked_child();
    test_storage_that_fails();
    mpk_session *s = open_session();
    for (int round = 0; round < rounds; round++) one_round(s, (uint64_t)round + 1, (enum kind)(round % KINDS), &seed);
    mpk_session_destroy(s);
    printf("%d failed, %d times it was too late, %d spilled, %d times the second was first\n", n_failed, n_too_late, n_spilled,
           n_second_won);
    CHECK(rounds < 1000 || (n_failed && n_too_late && n_spilled && n_second_won));
    unlink(slot);
    unlink(spill);
    free(slot);
    mpk_free(memory, BYTES);
    return 0;
}
