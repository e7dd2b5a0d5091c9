/* Preloaded by test_transient.py: calls that read one file fail with an errno, some times, after some that go well.
 * The program plans it by flaky_plan(); what has to be known before the program begins comes by the environment. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char name[256];       /* the end of the file's path */
static int skip, times, error;
static int seen;             /* calls that concerned the file */

void flaky_plan(const char *end_of_path, int first, int count, int number) {
    pthread_mutex_lock(&mutex);
    snprintf(name, sizeof name, "%s", end_of_path);
    skip = first, times = count, error = number, seen = 0;
    pthread_mutex_unlock(&mutex);
}

int flaky_seen(void) { return seen; }

__attribute__((constructor)) static void plan_by_environment(void) {
    const char *path = getenv("FLAKY_NAME");
    if (path) flaky_plan(path, atoi(getenv("FLAKY_SKIP")), atoi(getenv("FLAKY_TIMES")), atoi(getenv("FLAKY_ERRNO")));
}

static int fails(const char *path) {
    size_t all = strlen(path), end = strlen(name);
    if (!end || all < end || strcmp(path + all - end, name) != 0) return 0;
    pthread_mutex_lock(&mutex);
    int at = seen++, now = at >= skip && at - skip < times;
    pthread_mutex_unlock(&mutex);
    if (now) errno = error;
    return now;
}

static int fails_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(path);
}

static int fails_name(const char *path) { /* what is opened by its descriptor's name is the file that that is of */
    int fd;
    return sscanf(path, "/proc/self/fd/%d", &fd) == 1 ? fails_fd(fd) : fails(path);
}

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))
#define READS(type, call, parameters, arguments)   \
    type call parameters {                         \
        return fails_fd(fd) ? -1 : REAL(call) arguments; \
    }

READS(ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
READS(ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
READS(ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
READS(ssize_t, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at))
READS(ssize_t, preadv64, (int fd, const struct iovec *to, int n, off64_t at), (fd, to, n, at))
READS(ssize_t, preadv2, (int fd, const struct iovec *to, int n, off_t at, int how), (fd, to, n, at, how))
READS(ssize_t, preadv64v2, (int fd, const struct iovec *to, int n, off64_t at, int how), (fd, to, n, at, how))

#define OPENS(call)                                                   \
    int call(const char *path, int flags, ...) {                      \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                 \
        return fails_name(path) ? -1 : REAL(call)(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)

DIR *opendir(const char *path) { return fails(path) ? NULL : REAL(opendir)(path); }
