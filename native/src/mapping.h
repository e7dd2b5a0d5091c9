/* Memory that is copied at each cut and never protected, because of how it is mapped. */
#ifndef MPK_MAPPING_H
#define MPK_MAPPING_H

#include "blocks.h"

void mpk__pin_blocks(mpk__blocks *blocks); /* at sealing */
/* After they were copied: a region that somebody wrote to meanwhile, or -1. */
int32_t mpk__find_torn_region(const mpk__blocks *blocks);

#endif
