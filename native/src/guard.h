/* The memory guard: what others write to the program's memory. A kernel that copies a message, a peer, a network card do
 * not raise a signal on a read-only page: their writes fail, or go through untracked. So before a call that lets them write,
 * the buffer is *opened* (its blocks are saved if they are pending, and made writable); if it stays in use when the call
 * has returned, it is *pinned*: its blocks are copied at each cut and never protected.
 *
 * guard.c owns opening and pinning, and the life of the guard; mpi_guard.c and libc_guard.c own the calls. */
#ifndef MPK_GUARD_H
#define MPK_GUARD_H

#include "interpose.h"
#include "session.h"

/* False while no block of a region can be read-only. Inline, like all that a call costs while nothing is protected. */
static inline bool mpk__memory_is_protected(void) {
    mpk_session *s = mpk__watched_session();
    return s && atomic_load_explicit(&s->n_closed, memory_order_relaxed) != 0;
}
static inline bool mpk__drain_is_active(void) {
    mpk_session *s = mpk__watched_session();
    return s && atomic_load_explicit(&s->drain_state, memory_order_relaxed) == MPK_DRAIN_ACTIVE;
}
void mpk__open_range(const void *memory, size_t bytes);
void mpk__open_and_pin(const void *memory, size_t bytes);

/* windows.c: memory that MPI allocated for a window, which ends with the window. */
void mpk__window_begins(uintptr_t handle, const void *memory, size_t bytes);
void mpk__window_ends(uintptr_t handle);
bool mpk__is_in_window(const void *memory, size_t bytes); /* any of these bytes */
void mpk__forget_windows(void);

/* Marks the time in which a thread of the program waits in a call. begin: false if no drain would use it. */
bool mpk__waiting_begin(void);
void mpk__waiting_end(void);

/* Held over a fork(), so that the child finds the list of pinned ranges consistent. */
void mpk__guard_before_fork(void);
void mpk__guard_after_fork(void);

size_t mpk__mpi_hooks(mpk__hook **out);
void mpk__mpi_resolve(void); /* after each patching: what is asked of the MPI library */
size_t mpk__libc_hooks(mpk__hook **out);

#endif
