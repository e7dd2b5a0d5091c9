/* What a child process made by fork() does not inherit. The child has a copy of the program's memory and none of the
 * threads that save it, so the session must do nothing in it. Its pages are opened, the previous SIGSEGV handler is restored
 * (fault.c), the signals that the session's owner took have their previous actions, and descriptors that represent a claim of
 * the parent, such as that of a lock, are closed. What runs in the child here calls only what is async-signal-safe.
 *
 * The signals are blocked from before the fork() until the child has restored their actions. A signal that reached the child in
 * between would be taken by a handler of its parent and be lost.
 *
 * A child that was not made by fork() but by a bare clone() runs none of this. A page that the kernel wipes in every
 * child with memory of its own tells it apart; in a child of vfork() or posix_spawn(), which shares its parent's memory
 * and drain threads until it executes another program, that page is not wiped. */
#define _GNU_SOURCE
#include "fork.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "fault.h"
#include "guard.h"

enum { MOST = 8 };

static _Atomic bool forked;
static _Atomic(const _Atomic uint32_t *) marker; /* NULL: not made yet, or not to be had */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below; held over a fork() */
static int descriptors[MOST];
static uint32_t n_descriptors;
static struct {
    int number;
    bool was_ignored;
    void (*ours)(int); /* the handler that children do not keep; another one is somebody else's */
} signals[MOST];
static uint32_t n_signals;
static sigset_t blocked_before;

bool mpk__is_forked_in_handler(void) {
    const _Atomic uint32_t *page = atomic_load(&marker);
    return atomic_load(&forked) || (page && atomic_load_explicit(page, memory_order_relaxed) == 0);
}

static void before_fork(void) {
    mpk__guard_before_fork();
    pthread_mutex_lock(&lock);
    sigset_t ours;
    sigemptyset(&ours);
    for (uint32_t i = 0; i < n_signals; i++) sigaddset(&ours, signals[i].number);
    pthread_sigmask(SIG_BLOCK, &ours, &blocked_before);
}

static void after_fork(void) {
    pthread_sigmask(SIG_SETMASK, &blocked_before, NULL);
    pthread_mutex_unlock(&lock);
    mpk__guard_after_fork();
}

static void after_fork_in_child(void) {
    atomic_store(&forked, true);
    mpk__fault_disown();
    for (uint32_t i = 0; i < n_signals; i++) {
        struct sigaction now, before = {.sa_handler = signals[i].was_ignored ? SIG_IGN : SIG_DFL};
        if (sigaction(signals[i].number, NULL, &now) == 0 && now.sa_handler == signals[i].ours)
            sigaction(signals[i].number, &before, NULL);
    }
    for (uint32_t i = 0; i < n_descriptors; i++) mpk__prim_close(descriptors[i]);
    n_signals = n_descriptors = 0;
    after_fork();
}

static void begin(void) {
    atomic_store(&marker, mpk__prim_map_fork_marker());
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void mpk__fork_watch(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin);
}

int mpk_disinherit_descriptor(int fd) {
    mpk__fork_watch();
    pthread_mutex_lock(&lock);
    int error = n_descriptors == MOST ? -ENOSPC : 0;
    if (!error) descriptors[n_descriptors++] = fd;
    pthread_mutex_unlock(&lock);
    return error;
}

void mpk_inherit_descriptor(int fd) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_descriptors; i++)
        if (descriptors[i] == fd) descriptors[i] = descriptors[--n_descriptors];
    pthread_mutex_unlock(&lock);
}

int mpk_disinherit_signal(int number, int was_ignored) {
    struct sigaction now;
    if (sigaction(number, NULL, &now) != 0) return -errno;
    mpk__fork_watch();
    pthread_mutex_lock(&lock);
    int error = n_signals == MOST ? -ENOSPC : 0;
    if (!error) {
        signals[n_signals].number = number;
        signals[n_signals].was_ignored = was_ignored;
        signals[n_signals++].ours = now.sa_handler;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

void mpk_inherit_signal(int number) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < n_signals; i++)
        if (signals[i].number == number) signals[i] = signals[--n_signals];
    pthread_mutex_unlock(&lock);
}
