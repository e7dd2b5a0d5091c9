/* Preloaded into a program, it writes down what the program asks of names and of files below a folder: one line a call, in
 * the order of the calls. WITNESS_LOG is the file that it writes to, WITNESS_FOLDER the folder. A sync has two lines,
 * for its beginning and its end; a name has its line when it is made, bytes have theirs before they are written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define THEIRS(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *what, const char *path, const char *more) {
    const char *log = getenv("WITNESS_LOG"), *folder = getenv("WITNESS_FOLDER");
    if (!log || !folder || strncmp(path, folder, strlen(folder)) != 0) return;
    char line[2 * PATH_MAX];
    int n = snprintf(line, sizeof line, "%d %ld %s %s%s\n", getpid(), syscall(SYS_gettid), what, path, more), error = errno;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (syscall(SYS_write, fd, line, n) != n) abort();
    syscall(SYS_close, fd);
    errno = error;
}

static void note_name(const char *what, const char *path) {
    char full[PATH_MAX];
    int error = errno;
    if (realpath(path, full)) note(what, full, "");
    errno = error;
}

static void note_file(const char *what, int fd, const char *more) {
    char link[64], full[PATH_MAX];
    int error = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, full, sizeof full - 1);
    errno = error;
    if (n < 0) return;
    full[n] = 0;
    note(what, full, more);
}

/* A record tells its state, its rank, and which payloads are in files of their own (docs/format.md). */
static void note_write(int fd, const void *data, size_t bytes) {
    char more[100] = "";
    const uint32_t *word = data;
    if (bytes == 4096 && memcmp(data, "MPKREC01", 8) == 0)
        snprintf(more, sizeof more, " record %u %u %u %u", word[2], word[3], word[21], word[41]);
    note_file("write", fd, more);
}

#define OPEN(name)                                                               \
    int name(const char *path, int flags, ...) {                                 \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;  \
        va_end(rest);                                                            \
        int fd = THEIRS(name)(path, flags, mode);                                \
        if (fd >= 0 && flags & O_CREAT) note_name("name", path);                 \
        return fd;                                                               \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    int result = THEIRS(mkdir)(path, mode);
    if (result == 0) note_name("name", path);
    return result;
}

int rename(const char *old, const char *new) {
    note_name("from", old);
    int result = THEIRS(rename)(old, new);
    if (result == 0) note_name("name", new);
    return result;
}

int unlink(const char *path) {
    note_name("unlink", path);
    return THEIRS(unlink)(path);
}

#define WRITE(name)                                                        \
    ssize_t name(int fd, const void *data, size_t bytes, off_t offset) {   \
        note_write(fd, data, bytes);                                       \
        return THEIRS(name)(fd, data, bytes, offset);                      \
    }
WRITE(pwrite)
WRITE(pwrite64)

#define WRITE_PIECES(name)                                                          \
    ssize_t name(int fd, const struct iovec *pieces, int n, off_t offset) {         \
        if (n > 0) note_write(fd, pieces[0].iov_base, pieces[0].iov_len);           \
        return THEIRS(name)(fd, pieces, n, offset);                                 \
    }
WRITE_PIECES(pwritev)
WRITE_PIECES(pwritev64)

#define SYNC(name)                        \
    int name(int fd) {                    \
        note_file("sync", fd, "");        \
        int result = THEIRS(name)(fd);    \
        note_file("synced", fd, "");      \
        return result;                    \
    }
SYNC(fsync)
SYNC(fdatasync)
