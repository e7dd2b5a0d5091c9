/* The life of background threads. Each one loops: read the event counter, do a turn, sleep until the counter has changed. As
 * it is read before the turn, no wakeup is lost that comes while the thread looks for work or is about to sleep. */
#include "workers.h"

#include <errno.h>
#include <signal.h>

#include "chaos.h"

static void *run(void *argument) {
    mpk__worker *self = argument;
    mpk__workers *group = self->group;
    const mpk__work *work = &group->work;
    mpk__prim_name_thread(self->urgent ? work->urgent_name : work->idle_name);
    if (!self->urgent) mpk__prim_become_idle();
    while (!atomic_load(&group->stop)) {
        mpk__chaos();
        uint32_t wakeups = atomic_load(&group->wakeups);
        int64_t limit = work->turn(group->context, self, wakeups);
        /* Asked once more: it may have been set, and the thread woken for it, before `wakeups` was read. */
        if (!atomic_load(&group->stop)) mpk__prim_wait_as_in_handler(&group->wakeups, wakeups, limit, self->kind);
    }
    void (*end)(void *) = work->end;
    if (atomic_fetch_sub(&group->users, 1) == 1) end(group->context); /* the owner has gone, and this was the last one */
    return NULL;
}

static int start_one(mpk__workers *group) {
    mpk__worker *worker = &group->threads[group->n];
    const mpk__work *work = &group->work;
    *worker = (mpk__worker){.group = group, .number = group->n, .urgent = group->n >= work->n_idle};
    worker->kind = work->kinds[group->n] ? work->kinds[group->n] : MPK__WAKE_ALL;
    worker->buffer = mpk__prim_map(work->buffer_bytes, false);
    if (!worker->buffer) return -ENOMEM;
    atomic_fetch_add(&group->users, 1);
    int error = -pthread_create(&worker->thread, NULL, run, worker);
    if (error) {
        atomic_fetch_sub(&group->users, 1);
        mpk__prim_unmap(worker->buffer, work->buffer_bytes);
    } else {
        group->n++;
    }
    return error;
}

int mpk__workers_start(mpk__workers *group, const mpk__work *work, void *context) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: the program's handlers never run on these threads */
    group->work = *work;
    group->context = context;
    group->process = mpk__prim_process();
    group->n = 0;
    atomic_store(&group->stop, 0);
    atomic_store(&group->users, 1);
    int error = 0;
    while (group->n < work->n_idle + work->n_urgent && !error) error = start_one(group);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void mpk__workers_free_buffers(mpk__workers *group) {
    for (uint32_t i = 0; i < group->n; i++) mpk__prim_unmap(group->threads[i].buffer, group->work.buffer_bytes);
    group->n = 0;
}

void mpk__workers_stop(mpk__workers *group) {
    atomic_store(&group->stop, 1);
    mpk__workers_wake_in_handler(group, MPK__WAKE_ALL);
    bool are_ours = group->process == mpk__prim_process();
    for (uint32_t i = 0; i < group->n && are_ours; i++) pthread_join(group->threads[i].thread, NULL);
    mpk__workers_free_buffers(group);
}

void mpk__workers_abandon(mpk__workers *group) {
    for (uint32_t i = 0; i < group->n; i++) pthread_detach(group->threads[i].thread);
    atomic_store(&group->is_abandoned, true);
    atomic_store(&group->stop, 1);
    mpk__workers_wake_in_handler(group, MPK__WAKE_ALL);
    void (*end)(void *) = group->work.end;
    void *context = group->context;
    if (atomic_fetch_sub(&group->users, 1) == 1) end(context);
}

void mpk__workers_wake_in_handler(mpk__workers *group, uint32_t kinds) {
    atomic_fetch_add(&group->wakeups, 1);
    mpk__prim_wake_kinds_in_handler(&group->wakeups, kinds);
}

void mpk__workers_boost(mpk__workers *group, bool on) {
    uint32_t wanted = on;
    if (atomic_exchange(&group->boost, wanted) != wanted) mpk__workers_wake_in_handler(group, MPK__WAKE_ALL);
}
