/* The epoch in progress: the cut that is being drained, what of it is pending, and how it ends. */
#ifndef MPK_EPOCH_H
#define MPK_EPOCH_H

#include "history.h"

/* The channels of an epoch become known after its cut. While they are PENDING they are a unit of `pending`, which belongs to
 * whoever changes PENDING into something else. */
enum mpk__channels_state {
    MPK__CHANNELS_NONE = 0,
    MPK__CHANNELS_PENDING,
    MPK__CHANNELS_HERE,
    MPK__CHANNELS_DROPPED, /* the epoch failed before they came */
};

typedef struct mpk__epoch {
    const mpk_plan *plan; /* a copy of the caller's, with all that it points to; NULL before the first cut */
    mpk__holding *holding; /* of its slot */
    _Atomic uint64_t number, started_ns; /* the cut */
    uint32_t n_dirty; /* blocks that this epoch writes */
    _Atomic uint32_t pending; /* blocks not yet saved, and one each for: the slot not yet open, channels pending, each
                                   * failure that is being noted, pinned blocks not yet compared; 0: committed, or about to be */
    _Atomic uint32_t channels_state; /* enum mpk__channels_state */
    uint8_t *channels;
    size_t channels_bytes;
    _Atomic int error; /* errno of the first failure: what is still pending is dropped */
    _Atomic int32_t torn_region; /* a region that others wrote to while this cut copied it; -1 */
    mpk_record record; /* the drain threads' until the epoch ends, and so are the descriptors */
    int direct_fd, buffered_fd;
    int *files; /* duplicates of the plan's descriptors, n_files of them open */
    size_t n_files;
    _Atomic int32_t unsynced_file; /* the first of them that could not be synced; -1 */
    _Atomic int use_direct;
    _Atomic uint64_t bytes_written, bytes_waiting, bytes_urgent, blocks_copied, blocked_ns, drain_ns, stall_ns, fault_ns,
        faults;
} mpk__epoch;

/* Takes over a copy of the plan and sets all else as it is at a cut: pending are n_dirty blocks, the opening of the slot,
 * channels that follow, and with has_pinned the comparing of what is pinned. */
int mpk__epoch_take_plan(mpk__epoch *epoch, const mpk_plan *plan, uint32_t n_regions);
void mpk__epoch_begin(mpk__epoch *epoch, uint32_t n_dirty, bool has_pinned);
void mpk__epoch_close_files(mpk__epoch *epoch);
void mpk__epoch_free(mpk__epoch *epoch);
static inline uint64_t mpk__epoch_us(const mpk__epoch *epoch, uint64_t now_ns) {
    return (now_ns - atomic_load(&epoch->started_ns)) / 1000;
}

/* Units of pending are done; whoever takes the last away has the epoch committed. */
void mpk__epoch_finished_in_handler(mpk_session *s, uint32_t units);
bool mpk__epoch_fail_in_handler(mpk_session *s, int error); /* an errno; false: too late, or no epoch is being drained */
bool mpk__epoch_give_up_in_handler(mpk_session *s); /* the storage hangs; false: no drain is active */

#endif
