/* Telling a child process from the one that the session is of. */
#ifndef MPK_FORK_H
#define MPK_FORK_H

#include <stdbool.h>

void mpk__fork_watch(void); /* from the first call on, children are disinherited */
bool mpk__is_forked_in_handler(void); /* no drain threads here; nothing is waited for, joined or written */

#endif
