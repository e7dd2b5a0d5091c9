/* Which handler a signal has now, so that the session can tell when other code has replaced its own. Python only knows handlers
 * that were installed through Python. */
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
