/* Repeating a read. An error of the storage that may pass (a server that comes back, a path that fails over) costs a pause, not
 * the epoch that is read. A read is repeated after each of the pauses in PAUSES_NS, by threads of the reader and of the loader,
 * never by the fault handler. Repeated reads are counted. */
#include "retry.h"

#include <errno.h>

#include "mpickpt.h"
#include "prim.h"

static const int64_t PAUSES_NS[] = {20000000, 200000000};
#define N_PAUSES (sizeof PAUSES_NS / sizeof *PAUSES_NS)

static _Atomic uint64_t n_repeated;
static _Atomic int last_error;

static bool may_pass(int error) {
    return error == EIO || error == ESTALE || error == EINTR || error == EAGAIN || error == ETIMEDOUT || error == EREMOTEIO;
}

bool mpk__try_again(int error, unsigned *tries) {
    if (*tries >= N_PAUSES || !may_pass(error)) return false;
    atomic_store(&last_error, error);
    atomic_fetch_add(&n_repeated, 1);
    _Atomic uint32_t nobody_wakes = 0;
    mpk__prim_wait_in_handler(&nobody_wakes, 0, PAUSES_NS[(*tries)++]);
    return true;
}

int64_t mpk__read_again(int fd, void *memory, size_t bytes, uint64_t offset) {
    unsigned tries = 0;
    int64_t have;
    do have = mpk__prim_read(fd, memory, bytes, offset);
    while (have < 0 && mpk__try_again((int)-have, &tries));
    return have;
}

uint64_t mpk_reads_repeated(int *error) {
    *error = atomic_load(&last_error);
    return atomic_load(&n_repeated);
}
