/* Protecting blocks. */
#ifndef MPK_CUT_H
#define MPK_CUT_H

#include "blocks.h"

/* Asks for each block whether it is wanted, and protects those that are, adjacent ones in one call after all of them were
 * asked for. */
int mpk__blocks_protect(mpk__blocks *blocks, bool (*wants)(void *context, uint32_t b), void *context);

#endif
