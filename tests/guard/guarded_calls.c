/* The calls of the C library that the guard knows, made from an object of its own, as a program's library would. Each
 * receives `n` bytes of `data` into `to` and returns 0, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* What the compiler calls instead where it knows the size of a buffer (_FORTIFY_SOURCE). */
ssize_t __read_chk(int fd, void *to, size_t n, size_t room);
ssize_t __pread_chk(int fd, void *to, size_t n, off_t offset, size_t room);
ssize_t __pread64_chk(int fd, void *to, size_t n, off64_t offset, size_t room);
ssize_t __recv_chk(int fd, void *to, size_t n, size_t room, int flags);
ssize_t __recvfrom_chk(int fd, void *to, size_t n, size_t room, int flags, struct sockaddr *from, socklen_t *length);
size_t __fread_chk(void *to, size_t room, size_t size, size_t n, FILE *file);
size_t __fread_unlocked_chk(void *to, size_t room, size_t size, size_t n, FILE *file);

static int result(ssize_t got, size_t n) { return got == (ssize_t)n ? 0 : got < 0 ? -errno : -EIO; }

static int from_file(const char *path, char *to, size_t n, int call) {
    int fd = open(path, O_RDONLY);
    struct iovec parts[2] = {{to, n / 2}, {to + n / 2, n - n / 2}};
    ssize_t got = -1;
    switch (call) {
    case 0: got = read(fd, to, n); break;
    case 1: got = pread(fd, to, n, 0); break;
    case 2: got = pread64(fd, to, n, 0); break;
    case 3: got = readv(fd, parts, 2); break;
    case 4: got = preadv(fd, parts, 2, 0); break;
    case 5: got = preadv64(fd, parts, 2, 0); break;
    case 6: got = preadv2(fd, parts, 2, 0, 0); break;
    case 7: got = preadv64v2(fd, parts, 2, 0, 0); break;
    case 8: got = __read_chk(fd, to, n, n); break;
    case 9: got = __pread_chk(fd, to, n, 0, n); break;
    case 10: got = __pread64_chk(fd, to, n, 0, n); break;
    default: errno = EINVAL;
    }
    int back = result(got, n);
    close(fd);
    return back;
}

int call_read(const char *path, char *to, size_t n) { return from_file(path, to, n, 0); }
int call_pread(const char *path, char *to, size_t n) { return from_file(path, to, n, 1); }
int call_pread64(const char *path, char *to, size_t n) { return from_file(path, to, n, 2); }
int call_readv(const char *path, char *to, size_t n) { return from_file(path, to, n, 3); }
int call_preadv(const char *path, char *to, size_t n) { return from_file(path, to, n, 4); }
int call_preadv64(const char *path, char *to, size_t n) { return from_file(path, to, n, 5); }
int call_preadv2(const char *path, char *to, size_t n) { return from_file(path, to, n, 6); }
int call_preadv64v2(const char *path, char *to, size_t n) { return from_file(path, to, n, 7); }
int call___read_chk(const char *path, char *to, size_t n) { return from_file(path, to, n, 8); }
int call___pread_chk(const char *path, char *to, size_t n) { return from_file(path, to, n, 9); }
int call___pread64_chk(const char *path, char *to, size_t n) { return from_file(path, to, n, 10); }

static int from_stream(const char *path, char *to, size_t n, int call) {
    FILE *file = fopen(path, "rb");
    size_t got = 0;
    switch (call) {
    case 0: got = fread(to, 1, n, file); break;
    case 1: got = fread_unlocked(to, 1, n, file); break;
    case 2: got = __fread_chk(to, n, 1, n, file); break;
    default: got = __fread_unlocked_chk(to, n, 1, n, file);
    }
    int back = result(got == 0 && ferror(file) ? -1 : (ssize_t)got, n);
    fclose(file);
    return back;
}

int call_fread(const char *path, char *to, size_t n) { return from_stream(path, to, n, 0); }
int call_fread_unlocked(const char *path, char *to, size_t n) { return from_stream(path, to, n, 1); }
int call___fread_chk(const char *path, char *to, size_t n) { return from_stream(path, to, n, 2); }
int call___fread_unlocked_chk(const char *path, char *to, size_t n) { return from_stream(path, to, n, 3); }

/* Messages hold at most what a socket's buffer takes; the test keeps n below that. */
static int from_socket(const char *path, char *to, size_t n, int call) {
    static char data[1 << 20];
    int fd = open(path, O_RDONLY), ends[2];
    struct iovec parts[2] = {{to, n / 2}, {to + n / 2, n - n / 2}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    struct mmsghdr messages[1] = {{.msg_hdr = message}};
    if (n > sizeof data || pread(fd, data, n, 0) != (ssize_t)n) return -EINVAL;
    close(fd);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return -errno;
    ssize_t sent = send(ends[0], data, n, 0), got = -1;
    if (sent == (ssize_t)n) switch (call) {
        case 0: got = recv(ends[1], to, n, MSG_WAITALL); break;
        case 1: got = recvfrom(ends[1], to, n, MSG_WAITALL, NULL, NULL); break;
        case 2: got = recvmsg(ends[1], &message, MSG_WAITALL); break;
        case 3: got = recvmmsg(ends[1], messages, 1, MSG_WAITALL, NULL) == 1 ? (ssize_t)messages[0].msg_len : -1; break;
        case 4: got = __recv_chk(ends[1], to, n, n, MSG_WAITALL); break;
        case 5: got = __recvfrom_chk(ends[1], to, n, n, MSG_WAITALL, NULL, NULL); break;
        default: errno = EINVAL;
    }
    int back = result(got, n);
    close(ends[0]);
    close(ends[1]);
    return back;
}

int call_recv(const char *path, char *to, size_t n) { return from_socket(path, to, n, 0); }
int call_recvfrom(const char *path, char *to, size_t n) { return from_socket(path, to, n, 1); }
int call_recvmsg(const char *path, char *to, size_t n) { return from_socket(path, to, n, 2); }
int call_recvmmsg(const char *path, char *to, size_t n) { return from_socket(path, to, n, 3); }

int call___recv_chk(const char *path, char *to, size_t n) { return from_socket(path, to, n, 4); }
int call___recvfrom_chk(const char *path, char *to, size_t n) { return from_socket(path, to, n, 5); }

int call_process_vm_readv(const char *path, char *to, size_t n) {
    static char data[1 << 20];
    int fd = open(path, O_RDONLY);
    if (n > sizeof data || pread(fd, data, n, 0) != (ssize_t)n) return -EINVAL;
    close(fd);
    struct iovec local = {to, n}, remote = {data, n};
    return result(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), n);
}

/* Random bytes: only whether they arrive can be seen. */
int call_getrandom(const char *path, char *to, size_t n) {
    (void)path;
    return result(getrandom(to, n, 0), n);
}
