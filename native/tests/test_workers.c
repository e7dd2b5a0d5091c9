/* Groups of background threads: each wakeup is followed by a turn of whoever it is for, classes and signals are as they should
 * be, and a group ends in each of the ways that it may end. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "check.h"
#include "workers.h"

enum { IDLE = 2, URGENT = 3, ALL = IDLE + URGENT, BUFFER = 8192, ROUNDS = 3000, FIRST = 1, SECOND = 2 };

static _Atomic uint32_t turns[ALL], last_seen[ALL]; /* of each worker: how many, and the wakeups that the last one knew */
static _Atomic uint32_t n_ends;
static _Atomic int n_wrong;
static int64_t limit_ns; /* of each sleep */

static void check_worker(const mpk__worker *self) {
    sigset_t blocked;
    bool is_idle = sched_getscheduler(0) == SCHED_IDLE;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
    bool takes_signals = !sigismember(&blocked, SIGTERM) || !sigismember(&blocked, SIGUSR1);
    bool has_class = is_idle == !self->urgent && self->urgent == (self->number >= IDLE);
    if (takes_signals || !has_class) atomic_fetch_add(&n_wrong, 1);
    memset(self->buffer, (int)self->number, BUFFER);
}

static int64_t turn(void *context, mpk__worker *self, uint32_t wakeups) {
    CHECK(context == turns);
    if (atomic_fetch_add(&turns[self->number], 1) == 0) check_worker(self);
    if (self->buffer[BUFFER - 1] != self->number) atomic_fetch_add(&n_wrong, 1);
    atomic_store(&last_seen[self->number], wakeups);
    return limit_ns;
}

static void end(void *context) {
    CHECK(context == turns);
    atomic_fetch_add(&n_ends, 1);
}

static const mpk__work work = {.turn = turn,
                               .end = end,
                               .idle_name = "test-idle",
                               .urgent_name = "test-urgent",
                               .n_idle = IDLE,
                               .n_urgent = URGENT,
                               .kinds = {0, 0, FIRST, SECOND, 0},
                               .buffer_bytes = BUFFER};

static void start(mpk__workers *group, int64_t limit) {
    *group = (mpk__workers){0};
    limit_ns = limit;
    for (int i = 0; i < ALL; i++) {
        atomic_store(&turns[i], 0);
        atomic_store(&last_seen[i], 0);
    }
    CHECK(mpk__workers_start(group, &work, turns) == 0 && group->n == ALL);
}

static void wait_for_turn(uint32_t number, uint32_t wakeups) {
    while (atomic_load(&turns[number]) == 0 || atomic_load(&last_seen[number]) < wakeups) usleep(10);
}

/* Whatever a thread is about to do when it is woken, a turn of it knows of the wakeup; or alarm() ends the test. */
static void test_wakeups(void) {
    mpk__workers group;
    start(&group, -1);
    uint64_t began = mpk__prim_now_ns();
    for (uint32_t round = 1; goes_on((int)round, ROUNDS, began, 20); round++) {
        mpk__workers_wake_in_handler(&group, MPK__WAKE_ALL);
        for (uint32_t i = IDLE; i < ALL; i++) wait_for_turn(i, round);
    }
    mpk__workers_stop(&group);
    CHECK(group.n == 0 && atomic_load(&n_wrong) == 0 && atomic_load(&n_ends) == 0);
}

static void test_boost(void) {
    mpk__workers group;
    start(&group, -1);
    mpk__workers_boost(&group, true);
    mpk__workers_boost(&group, true);
    wait_for_turn(IDLE, 1);
    CHECK(atomic_load(&group.boost) == 1 && atomic_load(&group.wakeups) == 1); /* the second one changed nothing */
    CHECK(mpk__workers_are_quiet(&group, 1) && !mpk__workers_are_quiet(&group, 0));
    mpk__workers_boost(&group, false);
    wait_for_turn(IDLE, 2);
    mpk__workers_stop(&group);
    CHECK(!mpk__workers_are_quiet(&group, atomic_load(&group.wakeups)));
}

/* Who sleeps is woken for his kind only. */
static void test_kinds(void) {
    mpk__workers group;
    start(&group, -1);
    for (uint32_t i = 0; i < ALL; i++) wait_for_turn(i, 0);
    usleep(200000); /* they sleep */
    uint32_t before = atomic_load(&turns[IDLE + 1]);
    mpk__workers_wake_in_handler(&group, FIRST);
    wait_for_turn(IDLE, 1);
    usleep(50000);
    CHECK(atomic_load(&turns[IDLE + 1]) == before);
    mpk__workers_wake_in_handler(&group, SECOND);
    wait_for_turn(IDLE + 1, 2);
    mpk__workers_stop(&group);
}

static void test_limit(void) {
    mpk__workers group;
    start(&group, 1000000);
    while (atomic_load(&turns[IDLE]) < 5) usleep(1000); /* nobody wakes it */
    mpk__workers_stop(&group);
}

static void test_ends(void) {
    for (int round = 0; round < 300; round++) { /* at any instant of their beginning */
        mpk__workers group;
        start(&group, -1);
        if (round % 2) usleep((useconds_t)round);
        mpk__workers_stop(&group);
    }
    CHECK(atomic_load(&n_ends) == 0);
    static mpk__workers left;
    for (uint32_t round = 0; round < 100; round++) {
        start(&left, -1);
        if (round % 2) usleep(round * 10);
        mpk__workers_abandon(&left);
        while (atomic_load(&n_ends) == round) usleep(100);
        CHECK(atomic_load(&n_ends) == round + 1);
        for (uint32_t i = 0; i < ALL; i++) mpk__prim_unmap(left.threads[i].buffer, BUFFER);
    }
}

/* A child made by fork() has none of the threads, and does not wait for them; its own it does. */
static void test_child(void) {
    mpk__workers group;
    start(&group, -1);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        mpk__workers own;
        alarm(20);
        mpk__workers_stop(&group);
        start(&own, -1);
        for (uint32_t i = IDLE; i < ALL; i++) wait_for_turn(i, 0);
        mpk__workers_stop(&own);
        _exit(group.n == 0 && own.n == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    mpk__workers_stop(&group);
}

int main(void) {
    alarm(HANG_SECONDS);
    test_wakeups();
    test_boost();
    test_kinds();
    test_limit();
    test_ends();
    test_child();
    return 0;
}
