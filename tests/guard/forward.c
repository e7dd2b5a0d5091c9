/* A library that takes SIGSEGV and hands on what it is not for to the handler that it found, as the runtimes of other
 * languages do; and a crash. */
#include <signal.h>

static struct sigaction before;

static void hand_on(int signal, siginfo_t *info, void *context) { before.sa_sigaction(signal, info, context); }

int take_signal(void) {
    struct sigaction action = {.sa_sigaction = hand_on, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGSEGV, &action, &before) == 0 && (before.sa_flags & SA_SIGINFO) ? 0 : -1;
}

void crash(void) { *(volatile int *)8 = 1; }
