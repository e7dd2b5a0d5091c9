/* A process that is killed between any two steps of a commit, or inside one, leaves a complete epoch: all its calls
 * that write or sync are counted, and for each of them one process dies just before it, and one when half of it is done.
 * Two slots are written in turn and in part, while the program goes on writing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "check.h"

enum { BLOCK = 16384, BLOCKS = 48, BYTES = BLOCKS * BLOCK, EPOCHS = 7 };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;

typedef struct shared {
    _Atomic int calls, batches, epochs; /* that were made; those of several blocks at once; that were complete */
} shared;
static shared *told;
static int fatal_call = -1;
static bool dies_in_half;

static bool is_fatal(void) { return atomic_fetch_add(&told->calls, 1) == fatal_call; }
static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* In place of the C library's. */
ssize_t pwritev(int fd, const struct iovec *pieces, int n, off_t offset) {
    if (is_fatal()) {
        if (dies_in_half) {
            struct iovec half = pieces[0];
            half.iov_len = half.iov_len > 8192 ? half.iov_len / 2 / 4096 * 4096 : half.iov_len / 2;
            syscall(SYS_pwritev, fd, &half, 1, (long)offset, 0L);
        }
        die();
    }
    return syscall(SYS_pwritev, fd, pieces, n, (long)offset, 0L);
}

/* Several blocks that are handed over in one call: some of them may be written when the process dies. */
long syscall(long number, ...) {
    static long (*theirs)(long, ...);
    if (!theirs) *(void **)&theirs = dlsym(RTLD_NEXT, "syscall");
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_io_submit && is_fatal()) {
        if (dies_in_half) theirs(number, a[0], a[1] / 2, a[2]);
        die();
    }
    if (number == SYS_io_submit) atomic_fetch_add(&told->batches, 1);
    return theirs(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int fdatasync(int fd) {
    if (is_fatal()) {
        if (dies_in_half) syscall(SYS_fdatasync, fd);
        die();
    }
    return (int)syscall(SYS_fdatasync, fd);
}

/* In each interval some blocks change; block 0 always. */
static bool changes(int block, int epoch) { return epoch == 1 || block == 0 || (block * 7 + epoch * 5) % 11 < 2; }

static void write_all(uint8_t *memory, int epoch) {
    for (int b = 0; b < BLOCKS; b++)
        if (changes(b, epoch)) memset(memory + (size_t)b * BLOCK, epoch * 16 + b % 16, BLOCK);
}

static void run(char *const paths[2]) {
    uint8_t *memory = mpk_alloc(BYTES, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    write_all(memory, 1);
    for (int epoch = 1; epoch <= EPOCHS; epoch++) {
        mpk_plan plan = {.path = paths[epoch % 2],
                         .data_offsets = &data_at,
                         .checksum_offsets = &checksums_at,
                         .epoch = (uint64_t)epoch,
                         .run = 1};
        CHECK(mpk_cut(s, &plan) == 0);
        write_all(memory, epoch + 1);
        mpk_session_boost(s, 1);
        CHECK(mpk_session_wait(s, -1) == 1);
        mpk_progress p;
        mpk_session_progress(s, &p);
        CHECK(p.state == MPK_DRAIN_COMPLETE);
        CHECK(epoch < 3 || p.blocks_dirty < BLOCKS / 2);
        atomic_store(&told->epochs, epoch);
    }
    mpk_session_destroy(s);
    mpk_free(memory, BYTES);
}

static int check_slot(const char *path) {
    mpk_record record;
    read_slot(path, &record, sizeof record, 0);
    if (record.state != MPK_COMPLETE || record.crc != mpk_crc32c(0, &record, offsetof(mpk_record, crc))) return 0;
    static uint8_t image[BYTES], expected[BYTES];
    uint32_t checksums[BLOCKS];
    read_slot(path, image, BYTES, data_at);
    read_slot(path, checksums, sizeof checksums, checksums_at);
    for (int epoch = 1; epoch <= (int)record.epoch; epoch++) write_all(expected, epoch);
    CHECK(memcmp(image, expected, BYTES) == 0);
    for (int b = 0; b < BLOCKS; b++) CHECK(checksums[b] == mpk_crc32c(0, image + (size_t)b * BLOCK, BLOCK));
    return (int)record.epoch;
}

/* Gives the number of calls that were made before the end. */
static int die_at(int call, bool half) {
    atomic_store(&told->calls, 0);
    atomic_store(&told->epochs, 0);
    char *paths[2] = {make_slot(checksums_at + 4096), make_slot(checksums_at + 4096)};
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        fatal_call = call;
        dies_in_half = half;
        run(paths);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    int a = check_slot(paths[0]), b = check_slot(paths[1]);
    CHECK((a > b ? a : b) >= atomic_load(&told->epochs)); /* the newest epoch that was complete is still there */
    for (int i = 0; i < 2; i++) {
        unlink(paths[i]);
        free(paths[i]);
    }
    return WIFSIGNALED(status) ? -1 : atomic_load(&told->calls);
}

int main(void) {
    alarm(HANG_SECONDS);
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int calls = die_at(-1, false), batches = atomic_load(&told->batches), deaths = 0;
    CHECK(calls > 5 * EPOCHS);
    for (int call = 0; call < calls; call++)
        for (int half = 0; half < 2; half++) deaths += die_at(call, half) < 0;
    printf("%d calls in %d epochs, %d of several blocks; %d processes died\n", calls, EPOCHS, batches, deaths);
    CHECK(batches > 0);
    CHECK(deaths > calls); /* how the blocks are joined, and so the number of calls, differs from run to run */
    return 0;
}
