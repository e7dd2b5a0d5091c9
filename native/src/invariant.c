/* The end of a process in which an invariant is broken. */
#include "invariant.h"

#include <stdlib.h>

#include "prim.h"

#ifdef MPICKPT_CHECKS
void mpk__broken_in_handler(const char *what) {
    mpk__prim_say_in_handler(what);
    abort();
}
#endif
