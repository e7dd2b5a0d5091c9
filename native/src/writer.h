/* Bytes into the slot, and the order of a commit. Called by drain threads, and only while an epoch is open. */
#ifndef MPK_WRITER_H
#define MPK_WRITER_H

#include "epoch.h"
#include "workers.h"

#define MPK__BOUNCE_BYTES ((size_t)1 << 20) /* of a worker's buffer, for file offsets that are not aligned */

int mpk__writer_open(mpk__epoch *epoch, bool want_direct);
int mpk__writer_put(mpk__epoch *epoch, const mpk__worker *self, unsigned long queue, const mpk__write *writes, int n);
/* Writes all but the blocks and their record. *calls_ended rises with each call to the storage that takes its time. */
int mpk__writer_put_rest(mpk__epoch *epoch, const mpk__blocks *blocks, _Atomic uint32_t *calls_ended);
/* Writes the record, COMPLETE or FAILED with -error, and closes the slot; gives the error that it ends with. */
int mpk__writer_end(mpk__epoch *epoch, uint32_t cut, int error);
void mpk__writer_close(mpk__epoch *epoch);
bool mpk__record_is_complete(const mpk_record *record, uint64_t epoch);

#endif
