/* The second SIGTERM. The first one asks a program for a last epoch and then its end, at a safe point. A program that reaches no
 * safe point, because it waits in a call of a library, could not be ended by a signal: the interpreter's handler only notes the
 * signal, and acts on it between two instructions of Python. So this handler is installed in front of that one. It calls only
 * what is async-signal-safe, and passes signals on unchanged. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <time.h>

#include "fork.h"
#include "mpickpt.h"
#include "prim.h"

#define NS 1000000000u
#define RETRY_NS NS /* after the limit, while a last epoch is being saved */

static struct sigaction before; /* the interpreter's */
static bool is_watched, has_timer, ends;
static timer_t timer; /* SIGTERM when the limit is over; its value is its own address */
static uint64_t again, limit;
static _Atomic uint64_t first; /* when the first one came; 0: none has */
static _Atomic bool saves, is_again;

static void set_timer_in_handler(uint64_t ns) {
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)}};
    timer_settime(timer, 0, &when, NULL);
}

static void pass_on_in_handler(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(number);
}

/* The effect that the signal would have without a session. */
static void take_effect_in_handler(int number, siginfo_t *info, void *context) {
    if (!ends) { /* the program's own handler, which the interpreter's calls */
        atomic_store(&is_again, true);
        pass_on_in_handler(number, info, context);
        return;
    }
    mpk__prim_say_in_handler("mpickpt: SIGTERM takes its default effect, as no last epoch came about\n");
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(number, &fatal, NULL);
    raise(number); /* blocked until the handler returns */
}

static void on_term(int number, siginfo_t *info, void *context) {
    int saved_errno = errno;
    uint64_t now = mpk__prim_now_ns(), none = 0;
    bool is_over = has_timer && info->si_code == SI_TIMER && info->si_value.sival_ptr == &timer;
    if (mpk__is_forked_in_handler()) {
        pass_on_in_handler(number, info, context);
    } else if (is_over && atomic_load(&saves)) {
        set_timer_in_handler(RETRY_NS);
    } else if (is_over) {
        take_effect_in_handler(number, info, context);
    } else if (atomic_compare_exchange_strong(&first, &none, now)) {
        if (has_timer) set_timer_in_handler(limit);
        pass_on_in_handler(number, info, context);
    } else if (now - none >= again && !atomic_load(&saves)) {
        take_effect_in_handler(number, info, context);
    } else {
        pass_on_in_handler(number, info, context);
    }
    errno = saved_errno;
}

int mpk_term_watch(uint64_t again_ns, uint64_t limit_ns, int ends_process) {
    if (is_watched) return -EBUSY;
    atomic_store(&first, 0);
    atomic_store(&saves, false);
    atomic_store(&is_again, false);
    again = again_ns;
    limit = limit_ns;
    ends = ends_process;
    if (limit_ns) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGTERM, .sigev_value = {.sival_ptr = &timer}};
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) return -errno;
    }
    has_timer = limit_ns != 0;
    struct sigaction ours = {.sa_sigaction = on_term, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    int error = sigaction(SIGTERM, NULL, &before) == 0 && sigaction(SIGTERM, &ours, NULL) == 0 ? 0 : -errno;
    if (error && has_timer) timer_delete(timer);
    is_watched = !error;
    return error;
}

void mpk_term_unwatch(void) {
    if (!is_watched) return;
    struct sigaction now;
    if (sigaction(SIGTERM, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_term)
        sigaction(SIGTERM, &before, NULL);
    if (has_timer && !mpk__is_forked_in_handler()) timer_delete(timer); /* a child made by fork has none */
    is_watched = has_timer = false;
}

void mpk_term_set_saving(int on) { atomic_store(&saves, on != 0); }

int mpk_term_take_again(void) { return atomic_exchange(&is_again, false); }
