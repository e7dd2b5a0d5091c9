/* The operating system boundary for Linux: memory, futexes, scheduling classes, files. Called from every thread;
 * keeps no state. What a raw system call is used for has no wrapper in the C library. */
#define _GNU_SOURCE
#include "prim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_IDLE_CLASS (3 << 13) /* IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0) of linux/ioprio.h */
#define NS 1000000000

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_WIPEONFORK /* Linux 4.14 */
#define MADV_WIPEONFORK 18
#endif

size_t mpk__prim_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * NS + (uint64_t)t.tv_nsec;
}

uint64_t mpk__prim_now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
uint64_t mpk__prim_process(void) { return (uint64_t)getpid(); }
uint64_t mpk__prim_wall_clock_ns(void) { return clock_ns(CLOCK_REALTIME); }

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

void *mpk__prim_map(size_t bytes, bool huge) {
    size_t page = mpk__prim_page_size();
    size_t wanted = round_up(bytes ? bytes : 1, page);
    size_t spare = huge && wanted >= MPK__HUGE_PAGE ? MPK__HUGE_PAGE : 0;
    if (wanted < bytes || wanted + spare < wanted) return NULL;
    uint8_t *base = mmap(NULL, wanted + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    if (spare) { /* keep the part that starts on a huge page */
        uint8_t *aligned = (uint8_t *)round_up((uintptr_t)base, MPK__HUGE_PAGE);
        if (aligned > base) munmap(base, (size_t)(aligned - base));
        size_t behind = (size_t)(base + wanted + spare - (aligned + wanted));
        if (behind) munmap(aligned + wanted, behind);
        base = aligned;
        madvise(base, wanted, MADV_HUGEPAGE);
    }
    return base;
}

int mpk__prim_populate(void *pages, size_t bytes) {
    if (madvise(pages, round_up(bytes, mpk__prim_page_size()), MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return -errno; /* no memory: better now than in the handler */
    for (size_t i = 0; i < bytes; i += mpk__prim_page_size()) ((volatile uint8_t *)pages)[i] = 0; /* a kernel before 5.14 */
    return 0;
}

size_t mpk__prim_absent_bytes(const void *memory, size_t bytes) {
    unsigned char present[4096];
    size_t page = mpk__prim_page_size(), absent = 0;
    uintptr_t at = (uintptr_t)memory / page * page, end = round_up((uintptr_t)memory + bytes, page);
    while (at < end) {
        size_t n = (end - at) / page < sizeof present ? (end - at) / page : sizeof present;
        if (mincore((void *)at, n * page, present) != 0) return absent;
        for (size_t i = 0; i < n; i++) absent += present[i] & 1 ? 0 : page;
        at += n * page;
    }
    return absent;
}

void mpk__prim_unmap(void *memory, size_t bytes) {
    if (memory) munmap(memory, round_up(bytes ? bytes : 1, mpk__prim_page_size()));
}

void *mpk__prim_map_fork_marker(void) {
    uint32_t *page = mpk__prim_map(sizeof *page, false);
    if (!page) return NULL;
    if (madvise(page, mpk__prim_page_size(), MADV_WIPEONFORK) != 0) {
        mpk__prim_unmap(page, sizeof *page);
        return NULL;
    }
    *page = 1;
    return page;
}

void *mpk__prim_map_file(int fd, uint64_t offset, size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (off_t)offset);
    return memory == MAP_FAILED ? NULL : memory;
}

int mpk__prim_own_pages(void *pages, size_t bytes) {
    if (madvise(pages, bytes, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return errno == EFAULT ? -EIO : -errno; /* EFAULT: would be SIGBUS, had we touched it */
    /* A kernel before 5.14: write what is there, in one step, so that no write of the program is lost. */
    for (size_t i = 0; i < bytes; i += mpk__prim_page_size()) atomic_fetch_or((_Atomic uint8_t *)pages + i, 0);
    return 0;
}

void mpk__prim_read_ahead(int fd, uint64_t offset, size_t bytes) {
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

void mpk__prim_forget_range(int fd, uint64_t offset, size_t bytes) {
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
}

int64_t mpk__prim_file_bytes(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_size : -errno;
}

int mpk__prim_protect_in_handler(void *pages, size_t bytes, bool writable) {
    return mprotect(pages, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ) == 0 ? 0 : -errno;
}

void mpk__prim_wait_as_in_handler(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns, uint32_t kinds) {
    int64_t end = timeout_ns < 0 ? 0 : (int64_t)mpk__prim_now_ns() + timeout_ns;
    struct timespec t = {.tv_sec = end / NS, .tv_nsec = end % NS};
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, expected, timeout_ns < 0 ? NULL : &t, NULL, kinds);
}

void mpk__prim_wait_in_handler(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns) {
    mpk__prim_wait_as_in_handler(word, expected, timeout_ns, FUTEX_BITSET_MATCH_ANY);
}

void mpk__prim_wake_kinds_in_handler(_Atomic uint32_t *word, uint32_t kinds) {
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, NULL, NULL, kinds);
}

void mpk__prim_wake_in_handler(_Atomic uint32_t *word) { mpk__prim_wake_kinds_in_handler(word, FUTEX_BITSET_MATCH_ANY); }

void mpk__prim_say_in_handler(const char *text) {
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored; /* there is nobody left to tell */
}

void mpk__prim_become_idle(void) {
    /* Both may be refused (a container's seccomp filter): then the drain only runs at a higher priority. */
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_IDLE, &none);
    syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE_CLASS);
}

void mpk__prim_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

int mpk__prim_open_slot(const char *path, bool want_direct, bool writing, int *direct_fd, int *buffered_fd) {
    int mode = (writing ? O_RDWR | O_NOFOLLOW : O_RDONLY) | O_CLOEXEC;
    struct stat found;
    *direct_fd = -1;
    *buffered_fd = open(path, mode | O_NONBLOCK); /* a FIFO in its place is not waited for */
    if (*buffered_fd < 0) return -errno;
    if (fstat(*buffered_fd, &found) != 0 || !S_ISREG(found.st_mode)) {
        close(*buffered_fd);
        return -EINVAL;
    }
    if (want_direct) *direct_fd = open(path, mode | O_DIRECT); /* EINVAL: this file system has none */
    return 0;
}

int mpk__prim_file_id(int fd, uint64_t id[2]) {
    struct stat status;
    if (fstat(fd, &status) != 0) return -errno;
    id[0] = (uint64_t)status.st_dev;
    id[1] = (uint64_t)status.st_ino;
    return 0;
}

int mpk__prim_create_file(const char *path) {
    if (unlink(path) != 0 && errno != ENOENT) return -errno;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, S_IRUSR | S_IWUSR);
    return fd < 0 ? -errno : fd;
}

int mpk__prim_duplicate(int fd) {
    int other = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return other < 0 ? -errno : other;
}

void mpk__prim_close(int fd) {
    if (fd >= 0) close(fd);
}

int mpk__prim_write(int fd, struct iovec *iov, int n, uint64_t offset) {
    while (n > 0) {
        ssize_t done = pwritev(fd, iov, n, (off_t)offset);
        if (done < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        if (done == 0) return -EIO; /* a file system that neither writes nor says why */
        offset += (uint64_t)done;
        while (n > 0 && (size_t)done >= iov->iov_len) {
            done -= (ssize_t)iov->iov_len;
            iov++, n--;
        }
        if (n > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return 0;
}

unsigned long mpk__prim_open_queue(unsigned depth) {
    aio_context_t queue = 0;
    return syscall(SYS_io_setup, depth, &queue) == 0 ? queue : 0; /* may be refused, or fs.aio-max-nr be used up */
}

void mpk__prim_close_queue(unsigned long queue) {
    if (queue) syscall(SYS_io_destroy, queue);
}

/* Hands over as many as the kernel takes; gives how many. */
static long submit(aio_context_t queue, int fd, const mpk__write *writes, int n) {
    struct iocb requests[n], *each[n];
    for (int i = 0; i < n; i++) {
        requests[i] = (struct iocb){.aio_data = (uint64_t)i,
                                    .aio_lio_opcode = IOCB_CMD_PWRITEV,
                                    .aio_fildes = (uint32_t)fd,
                                    .aio_buf = (uintptr_t)writes[i].iov,
                                    .aio_nbytes = (uint64_t)writes[i].n,
                                    .aio_offset = (int64_t)writes[i].offset};
        each[i] = &requests[i];
    }
    long taken = 0, more;
    while (taken < n && (more = syscall(SYS_io_submit, queue, n - taken, each + taken)) > 0) taken += more;
    return taken;
}

/* Waits for so many, and sets n of those to 0 that were written as a whole. */
static void collect(aio_context_t queue, mpk__write *writes, long taken) {
    struct io_event events[taken];
    while (taken > 0) {
        long got = syscall(SYS_io_getevents, queue, taken, taken, events, NULL);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) { /* cannot be; but nothing may be under way when we return, which this waits for */
            mpk__prim_close_queue(queue);
            return;
        }
        for (long i = 0; i < got; i++) {
            mpk__write *w = &writes[events[i].data];
            int64_t left = events[i].res;
            for (int k = 0; k < w->n; k++) left -= (int64_t)w->iov[k].iov_len;
            if (left == 0) w->n = 0;
        }
        taken -= got;
    }
}

int mpk__prim_write_all(unsigned long queue, int fd, mpk__write *writes, int n) {
    long taken = queue && n > 1 ? submit(queue, fd, writes, n) : 0;
    if (taken > 0) collect(queue, writes, taken);
    int error = 0; /* once more what failed, or was written in part: that says why, or goes on */
    for (int i = 0; i < n && !error; i++)
        if (writes[i].n) error = mpk__prim_write(fd, writes[i].iov, writes[i].n, writes[i].offset);
    return error;
}

int64_t mpk__prim_read(int fd, void *memory, size_t bytes, uint64_t offset) {
    size_t have = 0;
    while (have < bytes) {
        ssize_t done = pread(fd, (uint8_t *)memory + have, bytes - have, (off_t)(offset + have));
        if (done < 0) {
            if (errno == EINTR) continue;
            if (errno == EINVAL && have % MPK__IO_ALIGN) break; /* O_DIRECT, asked to go on behind the file's end */
            return -errno;
        }
        if (done == 0) break;
        have += (size_t)done;
    }
    return (int64_t)have;
}

void mpk__prim_flush_range(int fd, uint64_t offset, size_t bytes) {
    /* Only a start: whether all arrived is for mpk__prim_sync to say. */
    sync_file_range(fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
}

int mpk__prim_wait_range(int fd, uint64_t offset, size_t bytes) {
    unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (sync_file_range(fd, (off_t)offset, (off_t)bytes, all) == 0) return 0;
    /* What is told of a failed write here is not told again by the sync. A file that has no such call has the sync. */
    return errno == EINVAL || errno == ESPIPE || errno == ENOSYS || errno == EPERM ? 0 : -errno;
}

int mpk__prim_sync(int fd) { return fdatasync(fd) == 0 ? 0 : -errno; }

int mpk__prim_sync_folder_of(const char *path) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 0; /* with the slash: "/" is the folder of "/file" */
    if (length >= sizeof folder) return -ENAMETOOLONG;
    memcpy(folder, path, length);
    folder[length] = 0;
    int fd = open(length ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int error = fsync(fd) == 0 || errno == EINVAL ? 0 : -errno; /* EINVAL: this file system cannot sync a folder */
    close(fd);
    return error;
}
