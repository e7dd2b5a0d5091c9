/* In test builds: a random delay at a place where threads could meet. */
#ifndef MPK_CHAOS_H
#define MPK_CHAOS_H

#ifdef MPK_CHAOS
void mpk__chaos(void);
#else
#define mpk__chaos() ((void)0)
#endif

#endif
