/* Reading once more after an error of the storage that may pass. */
#ifndef MPK_RETRY_H
#define MPK_RETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* After a read that failed: waits, and tells whether to try again. *tries is 0 at first. */
bool mpk__try_again(int error, unsigned *tries);
int64_t mpk__read_again(int fd, void *memory, size_t bytes, uint64_t offset); /* mpk__prim_read, tried again */

#endif
