/* Threads that do a part's work in the background: some in time that nobody wants (idle priority), some with normal priority.
 * The drain, the loader and the reader each have such a group. workers.c owns how they start, sleep, are woken and end; what
 * there is to do, and which of them are wanted, their part knows. */
#ifndef MPK_WORKERS_H
#define MPK_WORKERS_H

#include <pthread.h>

#include "prim.h"

enum { MPK__MOST_WORKERS = 8 };
#define MPK__WAKE_ALL UINT32_MAX

typedef struct mpk__worker {
    struct mpk__workers *group;
    pthread_t thread;
    uint32_t number;
    bool urgent;
    uint32_t kind; /* bits: what it is woken for */
    uint8_t *buffer; /* of its own, as large as the work says */
} mpk__worker;

/* What a group does. */
typedef struct mpk__work {
    /* Does what there is to do for this worker; called once more after each wakeup. `wakeups` was read before. Gives how long
     * the worker may sleep if nobody wakes it, in ns; negative: no limit. */
    int64_t (*turn)(void *context, mpk__worker *self, uint32_t wakeups);
    void (*end)(void *context); /* of an abandoned group: its last worker has ended. It may free the group. */
    const char *idle_name, *urgent_name;
    uint32_t n_idle, n_urgent;
    uint32_t kinds[MPK__MOST_WORKERS]; /* of each worker, the idle ones first; 0: all bits */
    size_t buffer_bytes;
} mpk__work;

typedef struct mpk__workers {
    mpk__work work;
    void *context;
    mpk__worker threads[MPK__MOST_WORKERS];
    uint32_t n; /* that run */
    uint64_t process; /* whose threads they are: a child made by fork() has none of them */
    _Atomic uint32_t wakeups; /* an event counter: rises whenever a worker may have something to do; waited on */
    _Atomic uint32_t stop;
    _Atomic uint32_t boost; /* the urgent ones are asked to work */
    _Atomic uint32_t users; /* the workers, and the owner */
    _Atomic bool is_abandoned;
} mpk__workers;

/* Starts them all, or as many as there can be: an error says that there are fewer. */
int mpk__workers_start(mpk__workers *group, const mpk__work *work, void *context);
/* Ends them and waits for it; their turns end by themselves. */
void mpk__workers_stop(mpk__workers *group);
/* As mpk__workers_stop without waiting: the last one that ends calls `end`. */
void mpk__workers_abandon(mpk__workers *group);
void mpk__workers_free_buffers(mpk__workers *group); /* of workers that have ended */
void mpk__workers_wake_in_handler(mpk__workers *group, uint32_t kinds);
void mpk__workers_boost(mpk__workers *group, bool on);
/* Whether a worker that read `wakeups` may go on with what nobody waits for. */
static inline bool mpk__workers_are_quiet(const mpk__workers *group, uint32_t wakeups) {
    return atomic_load(&group->wakeups) == wakeups && !atomic_load(&group->stop);
}

#endif
