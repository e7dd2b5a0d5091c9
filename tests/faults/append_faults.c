/* Preloaded by test_append.py. Calls that concern files whose path begins with FILES are counted, those that change a file, sync
 * it, or give it a name: the process dies at number DIE_AT of them. The first sync of a file whose path ends in FAIL_SYNC fails
 * in the drain: of lost pages the system tells once. COUNT_TO is the file that gets the number of calls at the end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THEIRS(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static _Atomic int calls, failed;

static void count(const char *path) {
    const char *files = getenv("FILES"), *die_at = getenv("DIE_AT");
    if (files && strncmp(path, files, strlen(files)) == 0 && ++calls == (die_at ? atoi(die_at) : -1)) kill(getpid(), SIGKILL);
}

static int path_of(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return 1;
}

static void count_file(int fd) {
    char path[PATH_MAX];
    int error = errno;
    if (path_of(fd, path)) count(path);
    errno = error;
}

__attribute__((destructor)) static void tell(void) {
    FILE *to = getenv("COUNT_TO") ? fopen(getenv("COUNT_TO"), "w") : NULL;
    if (!to) return;
    fprintf(to, "%d", calls);
    fclose(to);
}

ssize_t write(int fd, const void *data, size_t bytes) {
    count_file(fd);
    return syscall(SYS_write, fd, data, bytes);
}

#define ON_FILE(type, name, parameters, arguments) \
    type name parameters {                         \
        count_file(fd);                            \
        return THEIRS(name) arguments;             \
    }
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, ftruncate, (int fd, off_t length), (fd, length))
ON_FILE(int, ftruncate64, (int fd, off64_t length), (fd, length))
ON_FILE(ssize_t, sendfile, (int fd, int from, off_t *offset, size_t bytes), (fd, from, offset, bytes))
ON_FILE(ssize_t, sendfile64, (int fd, int from, off64_t *offset, size_t bytes), (fd, from, offset, bytes))

int fdatasync(int fd) {
    char path[PATH_MAX], thread[16] = "";
    const char *end = getenv("FAIL_SYNC");
    pthread_getname_np(pthread_self(), thread, sizeof thread);
    count_file(fd);
    if (end && strncmp(thread, "mpickpt", 7) == 0 && path_of(fd, path) && strlen(path) >= strlen(end) &&
        strcmp(path + strlen(path) - strlen(end), end) == 0 && failed++ == 0) {
        errno = EIO;
        return -1;
    }
    return THEIRS(fdatasync)(fd);
}

int rename(const char *old, const char *new) {
    char full[PATH_MAX];
    if (realpath(old, full)) count(full);
    return THEIRS(rename)(old, new);
}

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        va_list rest;                                                           \
        va_start(rest, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                           \
        int fd = THEIRS(name)(path, flags, mode);                               \
        if (fd >= 0 && flags & O_CREAT) count_file(fd);                         \
        return fd;                                                              \
    }
OPEN(open)
OPEN(open64)
