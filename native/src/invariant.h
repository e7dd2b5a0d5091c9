/* What has to hold at any time, asserted in builds with MPICKPT_CHECKS and not evaluated in others. An assertion may be in the
 * fault handler, so a broken one says where it is and ends the process, and does nothing else. */
#ifndef MPK_INVARIANT_H
#define MPK_INVARIANT_H

#ifdef MPICKPT_CHECKS
_Noreturn void mpk__broken_in_handler(const char *what);
#define MPK__TEXT_OF(line) #line
#define MPK__TEXT(line) MPK__TEXT_OF(line)
#define MPK__ASSERT(condition) \
    ((condition) ? (void)0     \
                 : mpk__broken_in_handler("mpickpt: " __FILE__ ":" MPK__TEXT(__LINE__) ": " #condition " does not hold\n"))
#else
#define MPK__ASSERT(condition) ((void)sizeof(condition))
#endif

#endif
