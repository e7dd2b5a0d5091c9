/* The write fault, and which session it is for. */
#ifndef MPK_FAULT_H
#define MPK_FAULT_H

#include "mpickpt.h"
#include "prim.h"

int mpk__fault_watch(mpk_session *s); /* -EBUSY when another session is watched */
int mpk__fault_install(void); /* the signal handler, if it is not the one in place */
void mpk__fault_unwatch(void); /* and the handler that was there before is back */
extern _Atomic(mpk_session *) mpk__watched;
static inline mpk_session *mpk__watched_session(void) { return atomic_load_explicit(&mpk__watched, memory_order_acquire); }
/* What a write to block b does; the caller may be the handler, or somebody who announces a write. */
void mpk__write_to_block_in_handler(mpk_session *s, uint32_t b);
/* Copies a block that is not protected into the pool: for blocks that are pinned, at the cut. Waits for room. */
void mpk__copy_pinned_block(mpk_session *s, uint32_t b);
/* In a child made by fork(): opens all pages, puts the signal handler back, and watches nothing any more. */
void mpk__fault_disown(void);

#endif
