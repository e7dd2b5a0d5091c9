/* Replacing functions in a running process: the entries through which the loaded objects call a named function are
 * rewritten, and put back. Owned by guard.c; called from one thread at a time, never from a handler. */
#ifndef MPK_INTERPOSE_H
#define MPK_INTERPOSE_H

#include <stdbool.h>
#include <stddef.h>

/* Objects may resolve one name to different definitions (a preloaded wrapper, a library that was loaded with
 * RTLD_DEEPBIND). Each definition has a replacement of its own, so that a call always goes on to what its object would have
 * called: replacements[i] calls reals[i]. */
#define MPK__DEFINITIONS 4
#define MPK__REPLACEMENTS(f) {(void *)f##_0, (void *)f##_1, (void *)f##_2, (void *)f##_3}

enum { MPK__UNUSED, MPK__USED, MPK__USED_FOR_GOOD }; /* the last: by an entry that could not be put back */

typedef struct mpk__hook {
    const char *name; /* MPI_X stands for PMPI_X, too */
    void *replacements[MPK__DEFINITIONS];
    void *reals[MPK__DEFINITIONS]; /* NULL: not in use yet */
    unsigned char uses[MPK__DEFINITIONS]; /* whether entries lead to it */
} mpk__hook;

/* Rewrites the entries of all objects that were loaded since the last call. The hooks are sorted by name. 0 or -errno. */
int mpk__interpose_apply(mpk__hook **hooks, size_t n);
/* Whether objects were loaded since mpk__interpose_apply. Cheap: asked at each safe point. */
bool mpk__interpose_is_stale(void);
/* Puts back every entry that still holds a replacement and can be written to. What the replacements call stays as it was: a
 * call may be inside. */
void mpk__interpose_undo(mpk__hook **hooks, size_t n);
/* The path of the n-th object with entries that could not be rewritten, empty for the main program, and why (-errno). NULL:
 * there are no more. */
const char *mpk__interpose_refused(size_t n, int *error);
/* `name` as an object that calls one of the hooks sees it; NULL if none does. */
void *mpk__interpose_find(const char *name);

#endif
