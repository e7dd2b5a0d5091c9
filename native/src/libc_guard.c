/* Calls of the C library that have the kernel write to the program's memory, also in the forms that the compiler puts in
 * their place (_FORTIFY_SOURCE). fread is among them because it reads large amounts straight into the buffer, by a call
 * inside the C library that cannot be replaced. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "hooks.h"

#define LIBC_CALLS(X)                                                                                                    \
    X(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), open_range(b, n))                                          \
    X(ssize_t, __read_chk, (int fd, void *b, size_t n, size_t m), (fd, b, n, m), open_range(b, n))                       \
    X(ssize_t, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), open_range(b, n))                             \
    X(ssize_t, pread64, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), open_range(b, n))                           \
    X(ssize_t, __pread_chk, (int fd, void *b, size_t n, off_t o, size_t m), (fd, b, n, o, m), open_range(b, n))          \
    X(ssize_t, __pread64_chk, (int fd, void *b, size_t n, off_t o, size_t m), (fd, b, n, o, m), open_range(b, n))        \
    X(ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n), open_all(v, n))                                \
    X(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), open_all(v, n))                   \
    X(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), open_all(v, n))                 \
    X(ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), open_all(v, n))        \
    X(ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), open_all(v, n))     \
    X(ssize_t, recv, (int fd, void *b, size_t n, int f), (fd, b, n, f), open_range(b, n))                                \
    X(ssize_t, __recv_chk, (int fd, void *b, size_t n, size_t m, int f), (fd, b, n, m, f), open_range(b, n))             \
    X(ssize_t, recvfrom, (int fd, void *b, size_t n, int f, struct sockaddr *a, socklen_t *l), (fd, b, n, f, a, l),      \
      open_range(b, n))                                                                                                  \
    X(ssize_t, __recvfrom_chk, (int fd, void *b, size_t n, size_t m, int f, struct sockaddr *a, socklen_t *l),           \
      (fd, b, n, m, f, a, l), open_range(b, n))                                                                          \
    X(ssize_t, recvmsg, (int fd, struct msghdr *h, int f), (fd, h, f), open_message(h))                                  \
    X(int, recvmmsg, (int fd, struct mmsghdr *h, unsigned n, int f, struct timespec *t), (fd, h, n, f, t),               \
      open_messages(h, n))                                                                                               \
    X(size_t, fread, (void *b, size_t s, size_t n, FILE *file), (b, s, n, file), open_range(b, s *n))                    \
    X(size_t, __fread_chk, (void *b, size_t m, size_t s, size_t n, FILE *file), (b, m, s, n, file), open_range(b, s *n)) \
    X(size_t, fread_unlocked, (void *b, size_t s, size_t n, FILE *file), (b, s, n, file), open_range(b, s *n))           \
    X(size_t, __fread_unlocked_chk, (void *b, size_t m, size_t s, size_t n, FILE *file), (b, m, s, n, file),             \
      open_range(b, s *n))                                                                                               \
    X(ssize_t, process_vm_readv,                                                                                         \
      (pid_t pid, const struct iovec *v, unsigned long n, const struct iovec *r, unsigned long m, unsigned long f),      \
      (pid, v, n, r, m, f), open_all(v, (int)n))                                                                         \
    X(ssize_t, getrandom, (void *b, size_t n, unsigned f), (b, n, f), open_range(b, n))

#define IDENTITY(type, name, parameters, arguments, action) CALL_##name,
enum { LIBC_CALLS(IDENTITY) N_CALLS };

static mpk__hook hooks[N_CALLS];

static void open_range(const void *memory, size_t bytes) { mpk__open_range(memory, bytes); }

static void open_all(const struct iovec *parts, int n) {
    for (int i = 0; i < n; i++) mpk__open_range(parts[i].iov_base, parts[i].iov_len);
}

static void open_message(const struct msghdr *message) {
    open_all(message->msg_iov, (int)message->msg_iovlen);
    if (message->msg_control) mpk__open_range(message->msg_control, message->msg_controllen);
}

static void open_messages(const struct mmsghdr *messages, unsigned n) {
    for (unsigned i = 0; i < n; i++) open_message(&messages[i].msg_hdr);
}

/* One for each definition that the program may have of a function. */
#define HOOK_OF(i, type, name, parameters, arguments, action)              \
    static type guarded_##name##_##i parameters {                          \
        if (mpk__memory_is_protected()) action;                            \
        return ((type(*) parameters)hooks[CALL_##name].reals[i])arguments; \
    }
#define HOOK(...)           \
    HOOK_OF(0, __VA_ARGS__) \
    HOOK_OF(1, __VA_ARGS__) \
    HOOK_OF(2, __VA_ARGS__) \
    HOOK_OF(3, __VA_ARGS__)
LIBC_CALLS(HOOK)

#define TABLE(type, name, parameters, arguments, action) {#name, MPK__REPLACEMENTS(guarded_##name), {0}, {0}},
static mpk__hook hooks[N_CALLS] = {LIBC_CALLS(TABLE)};

size_t mpk__libc_hooks(mpk__hook **out) {
    *out = hooks;
    return N_CALLS;
}
