/* A session: each part has its own header, which tells who owns it. Only files whose functions need several parts include
 * this one. */
#ifndef MPK_SESSION_H
#define MPK_SESSION_H

#include "ahead.h"
#include "blocks.h"
#include "drain.h"
#include "epoch.h"
#include "history.h"
#include "order.h"
#include "pool.h"
#include "untracked.h"

struct mpk_session {
    bool sealed;
    mpk__taking taking;
    mpk__blocks blocks;
    mpk__pool pool;
    mpk__history history;
    mpk__sweep sweep;
    mpk__order order;
    mpk__untracked untracked;
    mpk__epoch epoch;
    mpk__drain drain;
};

void mpk__session_free(mpk_session *s); /* all that it has; no thread uses it any more */
/* True when the states add up: called by the tests after each epoch. */
MPK_API int mpk__session_is_valid(const mpk_session *s);

#endif
