/* The memory guard: what others write to the program's memory. A kernel that copies a message, a peer, a network card do
 * not raise a signal on a read-only page: their writes fail, or go through untracked. So before a call that lets them write,
 * the buffer is *opened* (its blocks are saved if they are pending, and made writable); if it stays in use when the call
 * has returned, it is *pinned*: its blocks are copied at each cut and never protected.
 *
 * guard.c owns opening and pinning, and the life of the guard; mpi_guard.c and libc_guard.c own the calls (hooks.h). */
#ifndef MPK_GUARD_H
#define MPK_GUARD_H

#include <stdbool.h>

#include "mpickpt.h"

bool mpk__program_waits(void); /* some thread of the program waits in a call: its core is free */
void mpk__guard_pin_ranges(mpk_session *s); /* at sealing: pins the blocks of the ranges that are pinned */

/* Locks the list of pinned ranges over a fork(), so that the child finds it consistent. */
void mpk__guard_before_fork(void);
void mpk__guard_after_fork(void);

#endif
