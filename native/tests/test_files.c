/* Files of the program that a plan names: each is synced after the cut and before the record says COMPLETE, through a
 * descriptor of the session's own; if one cannot be synced the epoch fails, and says which. */
#define _GNU_SOURCE
#include <sys/syscall.h>

#include "check.h"

enum { BLOCK = 65536, BYTES = 4 * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;
static char *slot, *logs[2];
static ino_t inodes[2];
static int failing = -1; /* this one cannot be synced */
static _Atomic int syncs[2];

/* In place of the C library's: notes syncs of the program's files, and looks at what the slot says meanwhile. */
int fdatasync(int fd) {
    struct stat found;
    CHECK(fstat(fd, &found) == 0);
    for (int i = 0; i < 2; i++) {
        if (found.st_ino != inodes[i]) continue;
        CHECK(read_record(slot, 0).state == MPK_WRITING);
        atomic_fetch_add(&syncs[i], 1);
        if (i == failing) {
            errno = EIO;
            return -1;
        }
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static int count_descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static mpk_progress cut_and_wait(mpk_session *s, const char *path, uint64_t epoch, size_t n_files) {
    int files[2], before = count_descriptors();
    for (int i = 0; i < 2; i++) CHECK((files[i] = open(logs[i], O_RDWR)) >= 0);
    mpk_plan plan = {.path = path,
                     .data_offsets = &data_at,
                     .checksum_offsets = &checksums_at,
                     .epoch = epoch,
                     .files = files,
                     .n_files = n_files};
    CHECK(mpk_cut(s, &plan) == 0);
    for (int i = 0; i < 2; i++) close(files[i]); /* the session has its own */
    end_drain(s);
    CHECK(mpk__session_is_valid(s) && count_descriptors() == before);
    mpk_progress p;
    mpk_session_progress(s, &p);
    return p;
}

static void check_syncs(int first, int second) {
    CHECK(atomic_exchange(&syncs[0], 0) == first);
    CHECK(atomic_exchange(&syncs[1], 0) == second);
}

int main(void) {
    alarm(HANG_SECONDS);
    slot = make_slot(checksums_at + 4096);
    for (int i = 0; i < 2; i++) {
        struct stat found;
        logs[i] = make_slot(100);
        CHECK(stat(logs[i], &found) == 0);
        inodes[i] = found.st_ino;
    }
    uint8_t *memory = mpk_alloc(BYTES, 0);
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);

    mpk_progress p = cut_and_wait(s, slot, 1, 2);
    CHECK(p.state == MPK_DRAIN_COMPLETE && p.unsynced_file == -1 && read_record(slot, 0).state == MPK_COMPLETE);
    check_syncs(1, 1);

    p = cut_and_wait(s, slot, 2, 0);
    CHECK(p.state == MPK_DRAIN_COMPLETE);
    check_syncs(0, 0);

    failing = 1;
    p = cut_and_wait(s, slot, 3, 2);
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == EIO && p.unsynced_file == 1);
    CHECK(read_record(slot, 0).state == MPK_FAILED && read_record(slot, 0).error == EIO);
    check_syncs(1, 1);

    failing = 0;
    p = cut_and_wait(s, slot, 4, 2);
    CHECK(p.state == MPK_DRAIN_FAILED && p.unsynced_file == 0);
    check_syncs(1, 0);

    failing = -1;
    p = cut_and_wait(s, "no-such-folder/slot", 5, 2); /* nothing is synced for an epoch that has failed already */
    CHECK(p.state == MPK_DRAIN_FAILED && p.error == ENOENT && p.unsynced_file == -1);
    check_syncs(0, 0);

    mpk_plan plan = {.path = slot, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .files = (int[]){-1}, .n_files = 1};
    CHECK(mpk_cut(s, &plan) == -EBADF);
    p = cut_and_wait(s, slot, 6, 2);
    CHECK(p.state == MPK_DRAIN_COMPLETE && read_record(slot, 0).state == MPK_COMPLETE);
    check_syncs(1, 1);

    mpk_session_destroy(s);
    mpk_free(memory, BYTES);
    unlink(slot);
    for (int i = 0; i < 2; i++) unlink(logs[i]);
    return 0;
}
