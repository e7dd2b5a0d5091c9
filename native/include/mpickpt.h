/* mpickpt: save a process's memory while it computes.
 *
 * The public face of the native core. A session holds regions of memory; a cut fixes the image of all of them at
 * one instant and returns at once; drain threads write the image into a slot file while the program goes on.
 * There is no Python, no MPI and no HDF5 here: a slot is a file and a list of byte offsets.
 *
 * Every function that can fail returns 0 or a negative errno. None prints, and none exits. A session belongs to one thread, the
 * one that calls seal, cut, unseal and destroy; functions that any thread may call say so. */
#ifndef MPICKPT_H
#define MPICKPT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MPK_API __attribute__((visibility("default")))

/* Flags of mpk_region_add. */
#define MPK_REGION_OWNED 1u /* the memory came from mpk_alloc: its last page holds nobody else's data */

/* Flags of mpk_alloc. */
#define MPK_ALLOC_HUGE 1u /* advise huge pages */

/* Flags of mpk_session_create. */
#define MPK_SESSION_BUFFERED 1u /* never use O_DIRECT */
#define MPK_SESSION_BY_ADDRESS 2u /* drain in the order of addresses, whatever is written to first: to measure against */

/* Flags of mpk_guard_open. */
#define MPK_GUARD_KEEPS_CORES 1u /* the drain does not make use of the time that the program waits in calls */

enum mpk_record_state { MPK_EMPTY = 0, MPK_WRITING = 1, MPK_COMPLETE = 2, MPK_FAILED = 3 };

/* HUNG: the epoch was given up because the storage hangs, and a call to the storage has not returned yet. What that call
 * uses stays reserved, so no cut can be made; when it returns the state becomes FAILED, or COMPLETE if it was the last one
 * of the commit: then all that was given up is the wait. */
enum mpk_drain_state {
    MPK_DRAIN_IDLE = 0,
    MPK_DRAIN_ACTIVE = 1,
    MPK_DRAIN_COMPLETE = 2,
    MPK_DRAIN_FAILED = 3,
    MPK_DRAIN_HUNG = 4,
};

#define MPK_RECORD_BYTES 4096
#define MPK_RECORD_MAGIC "MPKREC01"

/* One rank's record in a slot: it alone says whether the rank's part of an epoch is complete. Little-endian. */
typedef struct mpk_record {
    char magic[8];
    uint32_t state; /* enum mpk_record_state */
    uint32_t rank;
    uint64_t epoch;
    uint64_t step;
    uint64_t run; /* the same on all ranks of one run: records of two runs never make a complete epoch */
    uint8_t digest[32];
    uint64_t objects_bytes;
    uint32_t objects_crc;
    uint32_t objects_spilled;
    uint64_t cut_time_ns; /* since 1970 */
    uint64_t blocked_ns; /* the program was blocked for this long at the cut */
    uint64_t drain_ns;
    uint64_t bytes_written;
    uint64_t blocks_copied; /* by the program itself, because it wrote to them before they were saved */
    uint64_t stall_ns; /* time that writes waited for room in the pool */
    int32_t error; /* errno of a FAILED record */
    uint32_t reserved_word;
    uint64_t bytes_waiting; /* of bytes_written, those drained while the program waited in a call */
    uint64_t channels_bytes;
    uint32_t channels_crc;
    uint32_t channels_spilled;
    uint8_t reserved[MPK_RECORD_BYTES - 168 - 4];
    uint32_t crc; /* CRC-32C of all bytes before it */
} mpk_record;

typedef struct mpk_session mpk_session;

/* How memory is mapped. From SHARED on it is pinned: copied at each cut and never write-protected. */
enum mpk_mapping {
    MPK_MAPPING_UNKNOWN = 0,
    MPK_MAPPED_PRIVATE, /* nobody else's, or made so */
    MPK_MAPPED_SHARED, /* others may have mapped it as well, in this process or in another */
    MPK_MAPPED_HUGE, /* of huge pages (hugetlbfs), parts of which cannot be protected */
    MPK_MAPPED_WINDOW, /* of an MPI window that MPI allocated while the guard was open */
};

typedef struct mpk_memory {
    enum mpk_mapping mapping;
    int is_pinned;
    int error; /* errno: why it cannot be saved, or 0 */
    size_t absent_bytes; /* of its pages, those that take no memory yet */
    const char *path; /* of the file or the segment, for messages; valid until the region goes */
} mpk_memory;

/* What one cut writes, and where. All of it is copied: the caller may free it when mpk_cut returns. */
typedef struct mpk_plan {
    const char *path; /* the slot file, which exists; or it follows */
    int slot_follows; /* it is still being made, and offsets count from where its raw data begin: see mpk_add_slot */
    const uint64_t *data_offsets; /* byte offset in the slot of each region, in the order of mpk_region_add */
    const uint64_t *checksum_offsets; /* of each region's table of CRC-32C, one uint32_t a block */
    uint64_t record_offset;
    const void *objects; /* an opaque payload, saved with the regions */
    size_t objects_bytes;
    uint64_t objects_offset;
    const char *spill_path; /* where the payload goes instead of objects_offset, or NULL */
    int channels_follow; /* a second payload, known only later, is part of the epoch: see mpk_add_channels */
    uint64_t channels_offset;
    size_t channels_room; /* bytes at channels_offset */
    const char *channels_spill_path; /* where more bytes than that go; needed when channels follow */
    const int *files; /* descriptors of other files, which are synced before the record says COMPLETE; duplicated */
    size_t n_files;
    uint64_t epoch, step, run;
    uint32_t rank;
    uint8_t digest[32];
} mpk_plan;

typedef struct mpk_progress {
    uint64_t epoch;
    enum mpk_drain_state state;
    int error; /* errno, when FAILED or HUNG */
    uint64_t blocks, blocks_dirty; /* of all regions; and those of them that the slot lacked */
    uint64_t blocks_saved, blocks_copied, bytes_written;
    uint64_t bytes_waiting; /* of bytes_written, those drained while the program waited in a call, */
    uint64_t bytes_urgent; /* and of the others those that urgent threads drained; the rest is the idle threads' */
    uint64_t blocked_ns, drain_ns, stall_ns;
    uint64_t fault_ns; /* that writes to protected blocks took, copies and stalls included, summed over threads */
    uint64_t faults; /* such writes; these two count until the next cut, also when the drain has ended */
    int direct; /* 1: the last drain wrote with O_DIRECT */
    int32_t
        untracked_region; /* -1; or a region, in the order of mpk_region_add, that had an untracked write since it was saved, */
    uint64_t untracked_offset; /* in the block at this offset. The next cut saves everything. */
    int32_t torn_region; /* -1; or one that others wrote to while this cut copied it, which fails with EREMCHG */
    int32_t unsynced_file; /* -1; or the first of the plan's files that could not be synced, which fails the epoch */
    int channels_pending; /* 1: the commit waits for mpk_add_channels; for nothing else once all blocks are saved */
    uint32_t calls, calls_ended; /* to the storage: under way, and ended since the session was sealed */
} mpk_progress;

/* Zeroed, page-aligned memory of at least `bytes`. NULL when there is none. */
MPK_API void *mpk_alloc(size_t bytes, unsigned flags);
MPK_API void mpk_free(void *memory, size_t bytes);

MPK_API int mpk_session_create(mpk_session **out, unsigned flags);
/* As mpk_session_unseal, and frees the session. */
MPK_API void mpk_session_destroy(mpk_session *session);

/* Adds a region while the session is not sealed. */
MPK_API int mpk_region_add(mpk_session *session, void *memory, size_t bytes, unsigned flags);

/* Looks up how the regions that were added since are mapped. Pages of files that are mapped privately are made the process's own,
 * which takes their size of memory. mpk_region_memory tells the result of each, and which one has the error: -EFAULT, it is
 * not mapped; -EIO, its file is shorter or cannot be read; -ENOMEM. Sealing does it too if it was not done. */
MPK_API int mpk_session_look_up(mpk_session *session);
MPK_API int mpk_region_memory(const mpk_session *session, uint32_t region, mpk_memory *out);

/* Has `may` asked before each step in which memory is taken (the pool, and pages of files that become the process's own), and told
 * how much is taken already: where the kernel ends a process that takes too much, somebody must stop before. When it says 0,
 * the pool stays as large as it is by then, or sealing fails with -EDQUOT if that does not hold what is pinned. NULL: nobody is
 * asked. */
typedef int mpk_may_take(void *context, size_t taken);
MPK_API void mpk_session_ask_before_taking(mpk_session *session, mpk_may_take *may, void *context);
#define MPK_TAKING_STEP ((size_t)32 << 20) /* bytes, at most, between two questions */
MPK_API size_t mpk_session_pool_bytes(const mpk_session *session); /* of a sealed session */

/* Fixes the regions, reserves the pool and starts the drain threads. block_bytes is a power of two and at least a
 * page; pool_bytes is rounded up to whole blocks. -EBUSY while another session of the process is sealed; -EEXIST if two regions
 * overlap; -ENOBUFS if the pool does not hold all blocks that are pinned. */
MPK_API int mpk_session_seal(mpk_session *session, size_t block_bytes, size_t pool_bytes);

/* Says that the regions were restored from a slot, before the first cut: what the program has not changed by then need not
 * be written when this slot's turn comes. Offsets as in mpk_plan; `epoch` is the one that the slot holds, complete. Protects
 * all pages, so no other thread may write to regions meanwhile. A failure does no harm: then all is written. -ESTALE when the
 * slot holds something else; -EBUSY after a cut. */
MPK_API int mpk_session_resume(mpk_session *session, const char *path, uint64_t record_offset, const uint64_t *checksum_offsets,
                               uint64_t epoch);

/* Waits for the drain, makes all pages writable, stops the threads, forgets the regions. An epoch whose slot or channels are
 * still pending fails with ECANCELED: nobody could bring them any more.
 *
 * -EBUSY when the storage hangs: with MPK_DRAIN_HUNG at once, otherwise when no call to it has ended for the limit of
 * mpk_session_set_stall_limit. Then the session is abandoned to its threads, which free it when the last call has returned: it
 * must not be used any more, nor destroyed. The memory of its regions must stay until the process ends, and nobody else
 * may write to the slot before that. */
MPK_API int mpk_session_unseal(mpk_session *session);

/* Fixes the image of all regions as it is now and returns; no other thread may write to regions during the
 * call. What goes wrong later, while draining, is told by mpk_session_progress. -EBUSY while a drain is active or HUNG. */
MPK_API int mpk_cut(mpk_session *session, const mpk_plan *plan);

/* Says that the slot that a cut with slot_follows waits for exists, and that its raw data begin at byte `start`: the drain
 * begins. Until then nothing is written, and the file of that name is not touched. A write of the program that finds no room in
 * the pool meanwhile fails the epoch with ENOBUFS instead of waiting. To be called by the thread that owns the session. 0 also
 * when the epoch has failed meanwhile. -EINVAL when no slot is expected. */
MPK_API int mpk_add_slot(mpk_session *session, uint64_t start);

/* Brings the payload (messages that were in flight at the cut) that a cut with channels_follow is not committed without;
 * it is copied. Any thread, at any time after mpk_cut, before or after the last block is saved. 0 also when the epoch has
 * failed meanwhile: then nobody needs it. -EINVAL when none is expected: none follows the cut, or it is here already.
 * -ENOMEM: it is still expected. */
MPK_API int mpk_add_channels(mpk_session *session, const void *data, size_t bytes);

/* Ends the epoch that is being drained as FAILED with `error`, an errno, as a failed write does (the first error of an
 * epoch is the one that is told). What is not saved yet is dropped; slot and channels are no longer waited for. Any thread.
 * -EINVAL when there is no such epoch, or its commit has begun. */
MPK_API int mpk_fail_epoch(mpk_session *session, int error);

/* A write of the program that waits because the pool is full gives the epoch up, as mpk_give_up does, when a call to the
 * storage is under way and none has ended for so long; 0: never, which is the default. Time in which the process was
 * suspended does not count. After 30 s such a write says `text`, which must end with a newline and is copied, on standard
 * error; NULL: nothing. To be called before the cuts that it is for. */
MPK_API int mpk_session_set_stall_limit(mpk_session *session, uint64_t limit_ns, const char *text);

/* Gives the epoch up that is being drained, because the storage hangs: it fails with ETIMEDOUT, and its state is HUNG until
 * the calls to the storage have returned. Until then writes of the program go on without a copy. -EINVAL when no drain is
 * active. Any thread. */
MPK_API int mpk_give_up(mpk_session *session);

/* While on, the urgent threads drain, whatever the pool looks like. Any thread may call it. */
MPK_API void mpk_session_boost(mpk_session *session, int on);

/* Sleeps until no drain is active, at most timeout_ns (negative: no limit). 1 when it ended or is HUNG, 0 when time ran out.
 * A drain does not end while its slot or channels are pending: whoever is to bring them must not wait without limit. */
MPK_API int mpk_session_wait(mpk_session *session, int64_t timeout_ns);

/* Any thread may call it at any time. */
MPK_API void mpk_session_progress(const mpk_session *session, mpk_progress *out);

/* The memory guard. While it is open, calls of MPI and of the C library that write to regions from outside of the
 * program (see docs/limits.md) first open the memory that they write to (see mpk_pin). One guard a process, opened and closed by the
 * thread that owns the session; -EBUSY when it is open. */
MPK_API int mpk_guard_open(unsigned flags);
/* Objects that were loaded since are guarded too. Cheap when there are none; 1 when there were some. */
MPK_API int mpk_guard_refresh(void);
/* Objects whose calls are not guarded, as what they call cannot be rewritten (their relocations are sealed): the path of the
 * n-th, empty for the main program, and why, as a negative errno; NULL: there are no more. Until the guard is refreshed. */
MPK_API const char *mpk_guard_unguarded(size_t n, int *error);
MPK_API void mpk_guard_close(void);

/* Until mpk_unpin of the same range its memory is never protected, only copied at each cut: for writers that the guard
 * cannot see. Any thread may call them while the guard is open. */
MPK_API int mpk_pin(const void *memory, size_t bytes);
MPK_API void mpk_unpin(const void *memory, size_t bytes);

/* Child processes made by fork(). In a child all memory is writable and the session does nothing. Descriptors and signals
 * that belong to the session's owner are named here: the child closes the descriptor, and of a signal that the owner has
 * taken it gets the action from before, which was to ignore it or the default; unless somebody else has taken it since.
 * Any thread. -ENOSPC when there are too many. */
MPK_API int mpk_disinherit_descriptor(int fd);
MPK_API void mpk_inherit_descriptor(int fd); /* before it is closed here, too: its number may be another file's then */
MPK_API int mpk_disinherit_signal(int number, int was_ignored); /* after the owner has taken it */
MPK_API void mpk_inherit_signal(int number);

/* Tells which handler a signal has now: 0 for the default, 1 where it is ignored. */
MPK_API int mpk_signal_handler(int number, uintptr_t *handler);

/* SIGTERM, whose handler was just installed: the first one is handed on to that. A later one has the effect that it would have
 * without it, when at least again_ns went by since the first, and so has a timer limit_ns after the first (0: none), which
 * tries again as long as somebody says that a last epoch is being saved. The effect is the end of the process, or with
 * !ends_process it is handed on, and mpk_term_take_again says so once. -EBUSY when it is watched. */
MPK_API int mpk_term_watch(uint64_t again_ns, uint64_t limit_ns, int ends_process);
MPK_API void mpk_term_unwatch(void);
MPK_API void mpk_term_set_saving(int on);
MPK_API int mpk_term_take_again(void);

/* CRC-32C (Castagnoli) of data, going on from `crc`, which is 0 at the start. */
MPK_API uint32_t mpk_crc32c(uint32_t crc, const void *data, size_t bytes);

/* Reads `bytes` at `offset` of the file into `memory` and compares each block of block_bytes with its checksum.
 * The positions of corrupt blocks are put into `corrupt` (room for one per block), their number into n_corrupt. A
 * file that ends too early has corrupt blocks; any other failure is a negative errno. */
MPK_API int mpk_read_blocks(const char *path, uint64_t offset, void *memory, size_t bytes, size_t block_bytes,
                            const uint32_t *checksums, int direct, size_t *corrupt, size_t *n_corrupt);

/* How many reads of the process were repeated since its start, as an error of the storage may pass (EIO, ESTALE and the
 * like), and the last such error: an errno, 0 if there was none. A read is tried three times at most. Any thread. */
MPK_API uint64_t mpk_reads_repeated(int *error);

/* Copies of files beside the program: in large pieces, past the page cache, by a thread of idle priority that rests while an
 * epoch of this process is being drained. mpk_copier_run overwrites `to`, which exists and is a file, with all bytes of `from`,
 * puts it on stable storage, and waits for that; nobody may write to `from` meanwhile. -ECANCELED once any thread has called
 * mpk_copier_stop: then and after any other error `to` holds a part. A copier makes one copy after another, until it is
 * stopped. mpk_copier_bytes tells, to any thread, how much it has copied in all. */
typedef struct mpk_copier mpk_copier;
MPK_API int mpk_copier_create(mpk_copier **out);
MPK_API int mpk_copier_run(mpk_copier *copier, const char *from, const char *to);
MPK_API void mpk_copier_stop(mpk_copier *copier);
MPK_API uint64_t mpk_copier_bytes(const mpk_copier *copier);
MPK_API void mpk_copier_destroy(mpk_copier *copier); /* which no call uses any more */

/* Lazy reading. A loader maps parts of a file privately, so that the program can compute on them at once; its threads
 * check every block and give every page memory of its own, the idle one in time that nobody wants, the urgent ones while
 * they are boosted. Until that is done nobody may write to those parts of the file: a page that the program has not
 * written to yet would show it. One loader a process; it belongs to one thread. */
typedef struct mpk_loader mpk_loader;

typedef struct mpk_loading {
    uint64_t bytes, bytes_loaded;
    int is_corrupt; /* a block differs from its checksum or lies behind the end of the file; the first that was found: */
    uint32_t part; /* its part, in the order of mpk_loader_map */
    uint64_t block; /* its position there */
    int error; /* errno: the file could not be read, or there was no memory */
} mpk_loading;

/* -EBUSY while there is another; -EINVAL for blocks that are no whole pages. */
MPK_API int mpk_loader_create(mpk_loader **out, const char *path, size_t block_bytes);

/* Gives in *memory `bytes` that show what lies at `offset` of the file, and begins to load them. `checksums`, one a block,
 * are copied. -EINVAL if the offset is not on a page, -ENODATA if the file ends before. The memory is the caller's, to be
 * given back by mpk_free after mpk_loader_destroy. */
MPK_API int mpk_loader_map(mpk_loader *loader, uint64_t offset, size_t bytes, const uint32_t *checksums, void **memory);

/* While on, the urgent threads load. Any thread may call it. */
MPK_API void mpk_loader_boost(mpk_loader *loader, int on);

/* Sleeps until all that was mapped is loaded, at most timeout_ns (negative: no limit). 1 when it is, 0 when time ran out. */
MPK_API int mpk_loader_wait(mpk_loader *loader, int64_t timeout_ns);

/* Any thread may call it at any time. */
MPK_API void mpk_loader_progress(const mpk_loader *loader, mpk_loading *out);

/* Ends the threads, done or not. */
MPK_API void mpk_loader_destroy(mpk_loader *loader);

#ifdef __cplusplus
}
#endif
#endif
