/* What the guard's hooks do before and after a call, and the tables of them. */
#ifndef MPK_HOOKS_H
#define MPK_HOOKS_H

#include "fault.h"
#include "interpose.h"
#include "session.h"

/* False while no block of a region can be read-only. Inline, like all that a call costs while nothing is protected. */
static inline bool mpk__memory_is_protected(void) {
    mpk_session *s = mpk__watched_session();
    return s && atomic_load_explicit(&s->blocks.n_closed, memory_order_relaxed) != 0;
}
static inline bool mpk__drain_is_active(void) {
    mpk_session *s = mpk__watched_session();
    return s && atomic_load_explicit(&s->drain.state, memory_order_relaxed) == MPK_DRAIN_ACTIVE;
}
void mpk__open_range(const void *memory, size_t bytes);
void mpk__open_and_pin(const void *memory, size_t bytes);

/* Marks the time in which a thread of the program waits in a call. begin: false if no drain would use it. */
bool mpk__waiting_begin(void);
void mpk__waiting_end(void);

size_t mpk__mpi_hooks(mpk__hook **out);
void mpk__mpi_resolve(void); /* after each patching: what is asked of the MPI library */
size_t mpk__libc_hooks(mpk__hook **out);

#endif
