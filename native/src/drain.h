/* The drain: its threads, whether it is under way, and how long the storage has held it up. */
#ifndef MPK_DRAIN_H
#define MPK_DRAIN_H

#include "mpickpt.h"
#include "workers.h"

/* Several of each class: while some wait for the storage another computes checksums. */
enum { MPK__IDLE_THREADS = 3, MPK__URGENT_THREADS = 2, MPK__DRAIN_THREADS = MPK__IDLE_THREADS + MPK__URGENT_THREADS };
enum { MPK__OPENS = 1, MPK__CHECKS = 2, MPK__HELPS = 4 }; /* what they are woken for: one urgent, one idle, and the others */

enum mpk__opening { /* of the slot of the epoch in progress */
    MPK__NOT_OPEN = 0,
    MPK__OPENING, /* by one thread */
    MPK__OPEN,
    MPK__AWAITED, /* it is still being made, and nobody drains */
    MPK__DROPPED, /* the epoch failed before it was there: nobody opens it */
};

typedef struct mpk__drain {
    bool want_direct;
    _Atomic uint32_t state; /* enum mpk_drain_state; waited on */
    mpk__workers workers;
    unsigned long queues[MPK__DRAIN_THREADS]; /* of each, for several writes at once; 0: one by one */
    _Atomic uint32_t opening; /* enum mpk__opening; waited on */
    _Atomic uint32_t commit_pending; /* all is saved, and an urgent thread is to commit */
    _Atomic uint32_t idle_blocks; /* rises with every block that an idle thread claims, and by a chunk at every cut */
    _Atomic uint32_t starved; /* in this epoch the idle threads do not get the processor */
    uint32_t seen; /* what the thread that opens slots knows of idle_blocks, */
    uint64_t seen_ns; /* since when */
    _Atomic uint32_t calls, calls_ended; /* to the storage: under way, and ended */
    uint64_t stall_limit_ns; /* without a call that ends, until a write gives the epoch up; 0: none */
    char *stall_text; /* what it says before */
    _Atomic uint32_t stall_said; /* in this epoch */
} mpk__drain;

/* A drain is under way, or was given up and has calls to the storage that are: nothing that they use may be touched. */
static inline bool mpk__drain_is_open(const mpk__drain *drain) {
    uint32_t state = atomic_load(&drain->state);
    return state == MPK_DRAIN_ACTIVE || state == MPK_DRAIN_HUNG;
}

int mpk__drain_start_threads(mpk_session *s);
void mpk__drain_stop_threads(mpk_session *s);
void mpk__drain_abandon_threads(mpk_session *s); /* they end when their calls to the storage return; s is theirs */
/* At a cut, whose slot may follow. */
void mpk__drain_begin(mpk__drain *drain, uint32_t chunk_blocks, bool slot_follows);
/* Ends the waiting for a slot that follows: it is NOT_OPEN, or DROPPED. False when none is awaited. */
bool mpk__drain_end_awaiting_in_handler(mpk__drain *drain, enum mpk__opening next);
static inline void mpk__drain_wake_in_handler(mpk__drain *drain) {
    mpk__workers_wake_in_handler(&drain->workers, MPK__WAKE_ALL);
}

/* How long somebody has waited without that a call to the storage ended. Counted in slices: a slice that took far longer
 * than it was to is one in which the process was suspended. */
typedef struct mpk__patience {
    uint32_t ended;
    uint64_t waited_ns;
} mpk__patience;
/* Takes in that so long was waited; gives the epoch up when that was too long. */
void mpk__drain_waited_in_handler(mpk_session *s, mpk__patience *patience, uint64_t ns);

#endif
