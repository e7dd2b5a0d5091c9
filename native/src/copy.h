/* Copies that rest while an epoch is being drained: who drains says so. */
#ifndef MPK_COPY_H
#define MPK_COPY_H

#include <stdbool.h>

void mpk__copies_rest(bool on); /* a drain of this process begins, or has ended */

#endif
