/* Who gets a signal of this process now, so that its owner of before can tell that somebody else has taken it. Python knows
 * of handlers that were installed through Python only. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>

#include "mpickpt.h"

int mpk_signal_handler(int number, uintptr_t *handler) {
    struct sigaction now;
    if (sigaction(number, NULL, &now) != 0) return -errno;
    *handler = now.sa_flags & SA_SIGINFO ? (uintptr_t)now.sa_sigaction : (uintptr_t)now.sa_handler;
    return 0;
}
