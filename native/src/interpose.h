/* Replacing functions in a running process: the entries through which the loaded objects call a named function are
 * rewritten, and put back. Owned by guard.c; called from one thread at a time, never from a handler. */
#ifndef MPK_INTERPOSE_H
#define MPK_INTERPOSE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct mpk__hook {
    const char *name;
    void *replacement; /* called instead */
    void *real;        /* what it stands for: set when first met, NULL while no loaded object calls it */
} mpk__hook;

/* Rewrites the entries of all objects that were loaded since the last call. The hooks are sorted by name. 0 or -errno. */
int mpk__interpose_apply(mpk__hook **hooks, size_t n);
/* Whether objects were loaded since mpk__interpose_apply. Cheap: asked at each safe point. */
bool mpk__interpose_is_stale(void);
/* Puts back every entry that still holds the replacement and can be written to. */
void mpk__interpose_undo(void);
/* The path of the n-th object with entries that could not be rewritten, empty for the main program, and why (-errno). NULL:
 * there are no more. */
const char *mpk__interpose_refused(size_t n, int *error);
/* `name` as an object that calls one of the hooks sees it; NULL if none does. */
void *mpk__interpose_find(const char *name);

#endif
