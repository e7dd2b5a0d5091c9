/* The second SIGTERM ends a program that heeds the first one too late, but none that saves its last epoch. */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

static const uint64_t ms = 1000000, again = 150 * ms;
static volatile sig_atomic_t n_passed;

static void note(int number) {
    (void)number;
    n_passed++;
}

static void pause_ms(long n) {
    uint64_t end = mpk__prim_now_ns() + (uint64_t)n * ms, now; /* a signal ends a sleep */
    while ((now = mpk__prim_now_ns()) < end) {
        struct timespec nap = {.tv_nsec = (long)(end - now < ms ? end - now : ms)};
        nanosleep(&nap, NULL);
    }
}

/* Runs it in a process of its own, and gives the signal that ended that; 0: it came to its end. The core takes a child for
 * one that only has a copy of a session, so it is given up first what it knows of that: nothing was watched in the parent. */
static int ended_by(void (*act)(void)) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGTERM, note);
        act();
        mpk_term_unwatch();
        int passed = n_passed;
        raise(SIGTERM);
        CHECK(n_passed == passed + 1); /* what was there before is back */
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void early(void) {
    CHECK(mpk_term_watch(100 * again, 0, 1) == 0 && mpk_term_watch(again, 0, 1) == -EBUSY);
    for (int i = 0; i < 3; i++) raise(SIGTERM);
    CHECK(n_passed == 3 && !mpk_term_take_again());
}

static void late(void) {
    CHECK(mpk_term_watch(again, 0, 1) == 0);
    raise(SIGTERM);
    pause_ms(200);
    CHECK(n_passed == 1); /* by time alone nothing happens */
    raise(SIGTERM);
}

static void late_while_it_saves(void) {
    CHECK(mpk_term_watch(again, 0, 1) == 0);
    raise(SIGTERM);
    pause_ms(200);
    mpk_term_set_saving(1);
    raise(SIGTERM);
    CHECK(n_passed == 2);
}

static void late_with_a_handler_of_its_own(void) {
    CHECK(mpk_term_watch(again, 0, 0) == 0);
    raise(SIGTERM);
    CHECK(!mpk_term_take_again());
    pause_ms(200);
    raise(SIGTERM);
    CHECK(n_passed == 2 && mpk_term_take_again() && !mpk_term_take_again());
}

static void limited(void) {
    CHECK(mpk_term_watch(100 * again, again, 1) == 0);
    pause_ms(300); /* it begins with the first one */
    raise(SIGTERM);
    CHECK(n_passed == 1);
    pause_ms(10000);
}

static void limited_while_it_saves(void) {
    CHECK(mpk_term_watch(100 * again, again, 1) == 0);
    mpk_term_set_saving(1);
    raise(SIGTERM);
    pause_ms(400);
    CHECK(n_passed == 1);
}

static void limited_after_it_saved(void) {
    limited_while_it_saves();
    mpk_term_set_saving(0);
    pause_ms(10000);
}

static void limited_with_a_handler_of_its_own(void) {
    CHECK(mpk_term_watch(100 * again, again, 0) == 0);
    raise(SIGTERM);
    pause_ms(400);
    CHECK(n_passed == 2 && mpk_term_take_again());
}

int main(void) {
    alarm(HANG_SECONDS);
    CHECK(ended_by(early) == 0);
    CHECK(ended_by(late) == SIGTERM);
    CHECK(ended_by(late_while_it_saves) == 0);
    CHECK(ended_by(late_with_a_handler_of_its_own) == 0);
    CHECK(ended_by(limited) == SIGTERM);
    CHECK(ended_by(limited_while_it_saves) == 0);
    CHECK(ended_by(limited_after_it_saved) == SIGTERM);
    CHECK(ended_by(limited_with_a_handler_of_its_own) == 0);
    return 0;
}
