/* A slot that follows its cut: whatever stands in its place before is not touched, and afterwards the image is that of the cut,
 * however much the program has written meanwhile. Against writers, a full pool, and somebody who fails the epoch or gives it up.
 *
 * In each of some thousand rounds (or as many as the first argument says) a thread writes to the memory while this one brings the
 * slot after a pause; then the record and every byte that it vouches for are compared. */
#include "check.h"
#include "chaos.h"

enum { BLOCK = 8192, BLOCKS = 12, BYTES = BLOCK * BLOCKS, ROOM = 4096, OBJECTS = 32, MOST_START = 4 };
enum { RECORD_AT = 0, OBJECTS_AT = 4096, CHANNELS_AT = 8192, DATA_AT = CHANNELS_AT + ROOM, CHECKSUMS_AT = DATA_AT + BYTES };
enum { SLOT_BYTES = CHECKSUMS_AT + 4096 * (MOST_START + 1) };
static const uint64_t data_at = DATA_AT, checksums_at = CHECKSUMS_AT;

enum kind { COMES, COMES_TO_WAITING_CHANNELS, POOL_IS_FULL, FAILED_MEANWHILE, GIVEN_UP, UNSEALED, KINDS };

static char *slot, made[64], spill[64];
static uint8_t *memory, before[SLOT_BYTES], now[SLOT_BYTES];
static int n_failed, n_too_late, n_copied;

static mpk_plan make_plan(uint64_t epoch, bool channels_follow, const char *objects) {
    return (mpk_plan){.path = slot,
                      .slot_follows = 1,
                      .data_offsets = &data_at,
                      .checksum_offsets = &checksums_at,
                      .record_offset = RECORD_AT,
                      .objects = objects,
                      .objects_bytes = OBJECTS,
                      .objects_offset = OBJECTS_AT,
                      .channels_follow = channels_follow,
                      .channels_offset = CHANNELS_AT,
                      .channels_room = ROOM,
                      .channels_spill_path = spill,
                      .epoch = epoch};
}

typedef struct rival { /* a thread of the program */
    mpk_session *session;
    uint64_t seed;
    bool fails; /* the epoch, after a pause */
    int result;
    pthread_t thread;
} rival;

static void *act(void *argument) {
    rival *r = argument;
    struct timespec pause = {.tv_nsec = (int64_t)(next_random(&r->seed) % 8 * 50000)};
    if (r->fails) {
        nanosleep(&pause, NULL);
        mpk__chaos();
        r->result = mpk_fail_epoch(r->session, EDQUOT);
        return NULL;
    }
    for (int i = 0; i < 2 * BLOCKS; i++) {
        memory[next_random(&r->seed) % BYTES]++;
        if (i == BLOCKS) nanosleep(&pause, NULL);
        mpk__chaos();
    }
    return NULL;
}

static mpk_session *open_session(size_t entries) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, entries * BLOCK) == 0);
    return s;
}

static mpk_progress progress(const mpk_session *s) {
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

/* What stands in the place of the slot: an old one, or anything. */
static void put_another(uint64_t *seed) {
    fill_random(before, SLOT_BYTES, seed);
    int fd = open(slot, O_WRONLY);
    CHECK(fd >= 0 && write(fd, before, SLOT_BYTES) == SLOT_BYTES);
    close(fd);
}

static void check_untouched(void) {
    read_slot(slot, now, SLOT_BYTES, 0);
    CHECK(memcmp(before, now, SLOT_BYTES) == 0);
}

/* The new one takes its place at once, as rank 0 has it do. */
static void make_new(void) {
    int fd = open(made, O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, SLOT_BYTES) == 0);
    close(fd);
    CHECK(rename(made, slot) == 0);
}

static void check_complete(uint64_t epoch, uint64_t start, bool channels) {
    mpk_record r = read_record(slot, start + RECORD_AT);
    CHECK(r.state == MPK_COMPLETE && r.epoch == epoch && r.error == 0);
    static uint8_t image[BYTES];
    uint32_t sums[BLOCKS];
    read_slot(slot, image, BYTES, start + DATA_AT);
    read_slot(slot, sums, sizeof sums, start + CHECKSUMS_AT);
    for (size_t i = 0; i < BYTES; i++) CHECK(image[i] == (uint8_t)epoch);
    for (int b = 0; b < BLOCKS; b++) CHECK(sums[b] == mpk_crc32c(0, image + b * BLOCK, BLOCK));
    char objects[OBJECTS], message[3];
    read_slot(slot, objects, OBJECTS, start + OBJECTS_AT);
    CHECK(r.objects_crc == mpk_crc32c(0, objects, OBJECTS) && strtoull(objects + 11, NULL, 10) == epoch);
    CHECK(r.channels_bytes == (channels ? sizeof message : 0));
    read_slot(slot, message, r.channels_bytes, start + CHANNELS_AT);
    CHECK(!channels || memcmp(message, "abc", 3) == 0);
}

static void check_failed(mpk_session *s, int error) {
    CHECK(mpk_session_wait(s, -1) == 1);
    mpk_progress p = progress(s);
    CHECK(p.error == error && (p.state == MPK_DRAIN_FAILED || (error == ETIMEDOUT && p.state == MPK_DRAIN_HUNG)));
    while (progress(s).state == MPK_DRAIN_HUNG) CHECK(mpk_session_wait(s, 1000) == 1);
    check_untouched();
    CHECK(mpk_add_slot(s, 4096) == 0); /* nobody needs it any more */
    check_untouched();
    n_failed++;
}

static void cut(mpk_session *s, uint64_t epoch, bool channels) {
    char objects[OBJECTS] = {0};
    snprintf(objects, sizeof objects, "objects of %llu", (unsigned long long)epoch);
    memset(memory, (int)epoch, BYTES);
    mpk_plan plan = make_plan(epoch, channels, objects);
    CHECK(mpk_cut(s, &plan) == 0);
    CHECK(mpk_cut(s, &plan) == -EBUSY);
}

/* It waits for nobody when the pool is full, although nobody brings the slot. */
static void fill_pool(mpk_session *s) {
    for (size_t i = 0; i < BYTES; i += BLOCK) memory[i]++;
    check_failed(s, ENOBUFS);
}

static void one_round(uint64_t epoch, enum kind kind, uint64_t *seed) {
    bool channels = kind == COMES_TO_WAITING_CHANNELS;
    mpk_session *s = open_session(kind == POOL_IS_FULL ? 4 : BLOCKS);
    put_another(seed);
    cut(s, epoch, channels);
    if (next_random(seed) % 2) mpk_session_boost(s, 1);
    rival r = {.session = s, .seed = next_random(seed) | 1, .fails = kind == FAILED_MEANWHILE};
    CHECK(pthread_create(&r.thread, NULL, act, &r) == 0);
    struct timespec pause = {.tv_nsec = (int64_t)(next_random(seed) % 8 * 50000)};
    nanosleep(&pause, NULL);
    if (kind == POOL_IS_FULL) {
        fill_pool(s);
    } else if (kind == GIVEN_UP) {
        CHECK(mpk_give_up(s) == 0);
        check_failed(s, ETIMEDOUT);
    } else if (kind == UNSEALED) {
        CHECK(pthread_join(r.thread, NULL) == 0);
        CHECK(mpk_session_unseal(s) == 0 && progress(s).error == ECANCELED);
        check_untouched();
    } else {
        CHECK(kind == FAILED_MEANWHILE || mpk_session_wait(s, 20000) == 0);
        check_untouched();
        uint64_t start = 4096 * (next_random(seed) % MOST_START + 1);
        make_new();
        if (channels) CHECK(mpk_add_channels(s, "abc", 3) == 0);
        CHECK(mpk_add_slot(s, start) == 0);
        end_drain(s);
        if (kind == FAILED_MEANWHILE) CHECK(pthread_join(r.thread, NULL) == 0);
        if (kind == FAILED_MEANWHILE && r.result == 0) {
            CHECK(progress(s).state == MPK_DRAIN_FAILED && progress(s).error == EDQUOT);
            n_failed++;
        } else {
            CHECK(progress(s).state == MPK_DRAIN_COMPLETE);
            CHECK(mpk_add_slot(s, start) == -EINVAL);
            check_complete(epoch, start, channels);
            n_too_late += kind == FAILED_MEANWHILE;
            n_copied += progress(s).blocks_copied > 0;
        }
    }
    if (kind != UNSEALED && kind != FAILED_MEANWHILE) CHECK(pthread_join(r.thread, NULL) == 0);
    CHECK(kind == UNSEALED || mpk__session_is_valid(s));
    mpk_session_destroy(s);
}

/* The next cut of the session, into a slot that is there, is as ever. */
static void test_next_cuts(uint64_t *seed) {
    mpk_session *s = open_session(BLOCKS);
    CHECK(mpk_add_slot(s, 0) == -EINVAL); /* no cut yet */
    put_another(seed);
    cut(s, 1, false);
    make_new();
    CHECK(mpk_add_slot(s, 8192) == 0);
    end_drain(s);
    check_complete(1, 8192, false);
    memory[BLOCK]++;
    char objects[OBJECTS] = "objects of 2";
    mpk_plan plan = make_plan(2, false, objects);
    uint64_t data = DATA_AT + 8192, checksums = CHECKSUMS_AT + 8192;
    plan.slot_follows = 0;
    plan.record_offset += 8192, plan.objects_offset += 8192;
    plan.data_offsets = &data, plan.checksum_offsets = &checksums;
    CHECK(mpk_cut(s, &plan) == 0);
    CHECK(mpk_add_slot(s, 4096) == -EINVAL);
    end_drain(s);
    CHECK(progress(s).state == MPK_DRAIN_COMPLETE && progress(s).blocks_dirty == 1);
    CHECK(read_record(slot, 8192).epoch == 2);
    mpk_session_destroy(s);
}

int main(int argc, char **argv) {
    alarm(HANG_SECONDS);
    if (chdir("/dev/shm") != 0) puts("no /dev/shm: slow, for each commit waits for a disk");
    int rounds = argc > 1 ? atoi(argv[1]) : 1800;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : mpk__prim_wall_clock_ns() | 1, since = mpk__prim_now_ns();
    printf("%d rounds, seed %#llx\n", rounds, (unsigned long long)seed);
    slot = make_slot(SLOT_BYTES);
    snprintf(made, sizeof made, "%s.new", slot);
    snprintf(spill, sizeof spill, "%s.channels", slot);
    memory = mpk_alloc(BYTES, 0);
    test_next_cuts(&seed);
    int round = 0;
    for (; goes_on(round, rounds, since, 60); round++) one_round((uint64_t)round + 1, (enum kind)(round % KINDS), &seed);
    printf("%d rounds: %d failed, %d times it was too late for that, %d times blocks were copied\n", round, n_failed, n_too_late,
           n_copied);
    CHECK(round < 1000 || (n_failed && n_too_late && n_copied));
    unlink(slot);
    free(slot);
    mpk_free(memory, BYTES);
    return 0;
}
