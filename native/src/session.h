/* What the parts of the snapshotter share: the session, its regions, and the state of each block.
 *
 * A block's state is one 64-bit word, changed by compare-and-swap alone:
 *
 *     cut number (32 bits) | pool entry (24) | state (8)
 *
 *     WRITABLE        nothing pending; the program writes freely
 *     PROTECTED       read-only, to be saved
 *     DRAINING        read-only, a drain thread is writing it straight from the program's memory
 *     COPIED          its image lies in a pool entry, writable again
 *     DRAINING_COPY   COPIED, and a drain thread has it in hand
 *     CLEAN           nothing pending, read-only until its first write: as it was at the last cut
 *
 *     cut:    WRITABLE -> PROTECTED               CLEAN -> PROTECTED, if the slot holds something older, else CLEAN
 *     drain:  PROTECTED    -> DRAINING -> CLEAN     COPIED -> DRAINING_COPY -> WRITABLE, or COPIED if it was claimed PROTECTED
 *     write:  PROTECTED    -> COPIED              DRAINING -> DRAINING_COPY         CLEAN -> WRITABLE
 *     write, once the epoch has failed:       PROTECTED or DRAINING -> WRITABLE, without a copy
 *
 * The cut number makes a word of an earlier cut differ from the same state in this one, so that a handler that was
 * delayed for a whole epoch cannot succeed with an old copy. Whoever wins a swap owns what follows from it; a block
 * leaves read-only before its page does, so a page that is writable never has an image still pending. */
#ifndef MPK_SESSION_H
#define MPK_SESSION_H

#include <pthread.h>

#include "mpickpt.h"
#include "prim.h"

enum mpk__block_state {
    MPK__WRITABLE = 0,
    MPK__PROTECTED,
    MPK__DRAINING,
    MPK__COPIED,
    MPK__DRAINING_COPY,
    MPK__CLEAN,
};

#define MPK__NO_ENTRY 0xffffffu /* also the limit of a pool, in entries */

static inline uint64_t mpk__word(uint32_t cut, uint32_t entry, enum mpk__block_state state) {
    return (uint64_t)cut << 32 | (uint64_t)entry << 8 | state;
}
static inline enum mpk__block_state mpk__state_of(uint64_t word) { return (enum mpk__block_state)(word & 0xff); }
static inline uint32_t mpk__entry_of(uint64_t word) { return (uint32_t)(word >> 8) & 0xffffff; }
static inline uint32_t mpk__cut_of(uint64_t word) { return (uint32_t)(word >> 32); }

/* A named range of the program's memory. Only whole pages of its own can be protected: what shares a page with
 * foreign data, at either end, is an edge and is copied at the cut.
 *
 *     memory               pages                                     pages + data          memory + bytes
 *       |--- edge (head) ---|==== blocks of block_bytes ... ==== last |--- edge (tail) ------|             */
typedef struct mpk__region {
    uint8_t *memory;
    size_t bytes;
    uint8_t *pages;       /* the first protected page */
    size_t span;          /* bytes of protected pages; what an owned region's last page has beyond data is padding */
    size_t head, data, tail;
    uint32_t first_block; /* blocks are numbered through all regions */
    uint32_t n_blocks;
    uint8_t *edges;       /* images of head and tail, head + tail bytes */
    enum mpk_mapping mapping; /* what was found out about the memory, once (mapping.c): */
    bool has_file;        /* a part of it is a private view of a file */
    size_t mapped_bytes;  /* so much of its pages is mapped */
    int mapping_error;    /* why it cannot be watched, as -errno */
    char *mapped_path;    /* for messages, or NULL */
    uint64_t data_offset, checksum_offset; /* in the slot of this cut */
} mpk__region;

/* Preallocated room for the images of blocks that the program wrote to before they were saved. */
typedef struct mpk__pool {
    uint8_t *memory;
    size_t entry_bytes;
    uint32_t n_entries;
    uint32_t (*crc)[2];         /* per entry: checksums of its image, as in mpk_session.crc */
    _Atomic uint64_t free_list; /* top entry + 1, with a count of changes above it against ABA */
    _Atomic uint32_t *next;     /* per entry: the one below it + 1 */
    _Atomic uint32_t used;
    _Atomic uint32_t given;     /* counts entries given back: the word that writers wait on */
    _Atomic uint32_t waiters;
} mpk__pool;

/* Several of each class: while some wait for the storage another computes checksums. */
enum { MPK__IDLE_THREADS = 3, MPK__URGENT_THREADS = 2, MPK__DRAIN_THREADS = MPK__IDLE_THREADS + MPK__URGENT_THREADS };

#define MPK__BOUNCE_BYTES ((size_t)1 << 20)

typedef struct mpk__drain_thread {
    struct mpk_session *session;
    bool urgent;
    pthread_t thread;
    uint8_t *bounce; /* MPK__BOUNCE_BYTES, for file offsets that are not aligned */
    unsigned long queue; /* for several writes at once; 0: one by one */
    uint32_t kind;    /* what it is woken for; the one urgent thread that opens slots also looks whether the idle ones get on: */
    uint32_t seen;    /* what it knows of mpk_session.idle_blocks, */
    uint64_t seen_ns; /* since when */
} mpk__drain_thread;

/* Opaque bytes that are saved with the regions: in the slot, or in a file of their own. */
typedef struct mpk__payload {
    uint8_t *data;
    size_t bytes;
    uint64_t offset;
    char *spill_path;
} mpk__payload;

/* The channels of an epoch become known after its cut. While they are PENDING they are a unit of `pending`, which belongs
 * to whoever changes PENDING into something else. */
enum mpk__channels {
    MPK__CHANNELS_NONE = 0,
    MPK__CHANNELS_PENDING,
    MPK__CHANNELS_HERE,
    MPK__CHANNELS_DROPPED, /* the epoch failed before they came */
};

/* The cut that is being drained: the plan of the caller, and what the writer needs besides. */
typedef struct mpk__epoch {
    char *path;
    mpk__payload objects, channels;
    size_t channels_room;
    uint64_t record_offset;
    mpk_record record; /* the drain threads' until the epoch ends */
    int direct_fd, buffered_fd;
    _Atomic uint64_t started_ns; /* the cut */
    struct mpk__holding *holding; /* of the slot */
} mpk__epoch;

/* What is known of a block from the cuts before. All but the atomics belongs to the owner of the session, and while an
 * epoch is drained to the drain thread that has the block in hand. */
typedef struct mpk__history {
    uint32_t version;          /* the first cut at which it was as it is now */
    uint32_t deadline_us;      /* from a cut to its first write: in the interval before this cut; MPK__NOT_WRITTEN */
    _Atomic uint32_t written_us; /* the same since this cut */
    uint32_t restored_crc;     /* of a block that `is_restored`: its checksum in the slot that was restored */
    _Atomic bool is_ahead;     /* opened since this cut, for a write to another block (ahead.c), */
    bool was_ahead;            /* and in the interval before this cut */
    _Atomic bool is_left_out;  /* it was opened so needlessly, and not written to since */
    _Atomic uint32_t swept;    /* of a unit's first block: the last cut after which the program swept into the unit; 0: never */
    bool is_dirty;               /* the slot of this cut lacks it */
    bool is_pinned;              /* copied at this cut, as others may be writing to it */
    bool is_restored;          /* read from a slot, and not compared with it since */
    _Atomic bool crc_is_known; /* mpk_session.crc is that of its content at this cut */
} mpk__history;

#define MPK__NOT_WRITTEN UINT32_MAX
#define MPK__RESTORED_CUT 1u /* the number of the cut that a restored image counts as; the first real one comes after it */

/* What a slot file holds of this rank. */
typedef struct mpk__holding {
    struct mpk__holding *next;
    char *path;
    uint32_t cut; /* the image of this cut; 0: nothing that can be relied on */
    uint64_t epoch, run;
    uint64_t file[2]; /* which file it was */
} mpk__holding;

/* Adjacent blocks of a region: the unit of the drain's order, and the most that is written in one call. */
#define MPK__CHUNK_BYTES ((size_t)4 << 20) /* at most, unless a block is larger */
#define MPK__CHUNK_BLOCKS 64
typedef struct mpk__chunk {
    uint32_t first, count;
} mpk__chunk;

struct mpk_session {
    bool want_direct, ignores_deadlines, sealed;
    bool is_distrusted;     /* not all could be protected at the last cut: any block may have changed untracked */
    mpk__region *regions; /* in the order of mpk_region_add */
    uint32_t n_regions;
    uint32_t *by_address; /* indices into regions, ascending addresses */
    size_t block_bytes;
    size_t unit_bytes; /* what is opened ahead of a sweep: a huge page, less in tests; */
    uint32_t sweep_us; /* in so long a sweep goes through that */
    uint32_t n_blocks;
    uint32_t n_pinned; /* blocks of regions that are never protected (mapping.c) */
    _Atomic uint64_t *blocks;
    uint32_t *block_region; /* per block: its region */
    _Atomic uint8_t *opened; /* per block: its pages are writable since the last cut */
    _Atomic uint16_t *pins; /* per block: ranges that others may write to at any time; never protected while there are any */
    _Atomic uint32_t n_closed; /* blocks that are not opened */
    uint32_t (*crc)[2];     /* per block: before and behind the border of the region's blocks in the file */
    mpk__history *history;  /* per block */
    mpk__holding *holdings; /* a list: one for each slot that was written to or restored */
    mpk__chunk *chunks;
    uint32_t n_chunks, chunk_blocks; /* how many; blocks of each but the last of a region */
    _Atomic uint32_t *order; /* chunks with dirty blocks, as they are to be drained; made when the slot is opened */
    _Atomic uint32_t *deadlines_us; /* from the cut to the expected first write to each of these */
    _Atomic uint32_t n_ordered;
    _Atomic uint32_t run_us; /* that the drain of a run recently took; 0: not known */
    mpk_may_take *may_take; /* NULL, or asked before memory is taken */
    void *may_take_context;
    mpk__pool pool;
    mpk__drain_thread drains[MPK__DRAIN_THREADS];
    uint32_t drains_running;

    uint32_t cut; /* counts cuts; part of each block's word */
    mpk__epoch epoch;
    _Atomic uint32_t drain_state; /* enum mpk_drain_state; waited on */
    _Atomic uint32_t calls, calls_ended; /* to the storage: under way, and ended */
    uint64_t stall_limit_ns;      /* without a call that ends, until a write gives the epoch up; 0: none */
    char *stall_text;             /* what it says before */
    _Atomic uint32_t stall_said;  /* in this epoch */
    _Atomic uint32_t users;       /* the drain threads, and the owner: the last one frees a session that was abandoned */
    _Atomic bool is_abandoned;         /* the owner has gone, as the storage hangs */
    _Atomic uint32_t wakeups;        /* changed whenever a drain thread may have something to do; waited on */
    _Atomic uint32_t stop, boost;
    _Atomic uint32_t idle_blocks; /* rises with every block that an idle thread takes up, and by a chunk at every cut */
    _Atomic uint32_t starved;   /* in this epoch the idle threads do not get the processor */
    _Atomic uint32_t begun;       /* 0, 1 one thread is opening the slot, 2 open; waited on */
    _Atomic uint32_t commit_pending;  /* all is saved, and an urgent thread is to commit */
    _Atomic uint32_t pending;     /* blocks not yet saved, and one each for: the slot not yet open, channels pending, each
                                   * failure that is being noted, pinned blocks not yet compared; 0: committed, or about to be */
    _Atomic uint32_t to_check;    /* so many blocks are still to be compared for untracked writes in this interval, */
    _Atomic uint32_t check_at;    /* this one (modulo their number) next */
    _Atomic int64_t untracked;       /* a block that had an untracked write; -1 */
    _Atomic int32_t torn_region;  /* a region that others wrote to while this cut copied it; -1 */
    _Atomic uint32_t channels;    /* enum mpk__channels */
    _Atomic uint32_t cursor;      /* where in `order` to look for the next chunk that is in time, */
    _Atomic uint32_t late_cursor; /* and for the next of all */
    uint32_t n_dirty;               /* blocks that this epoch writes */
    _Atomic int error;            /* errno of the first failure: what is still pending is dropped */
    _Atomic int use_direct;
    _Atomic uint64_t epoch_number, bytes_written, bytes_waiting, bytes_urgent, blocks_copied, blocked_ns, drain_ns, stall_ns, fault_ns,
        faults;
};

/* Where block `b` lies. */
typedef struct mpk__place {
    const mpk__region *region;
    uint8_t *memory;
    size_t bytes;  /* of data: what is copied, checked and written */
    size_t span;   /* of pages: what is protected */
    size_t offset; /* in the region */
} mpk__place;

mpk__place mpk__block_place(const mpk_session *s, uint32_t b);
/* Asks for each block whether it is wanted, and protects those that are, adjacent ones in one call after all of them were
 * asked for. */
int mpk__protect_blocks(mpk_session *s, bool (*wants)(mpk_session *s, uint32_t b));
/* CRC-32C of a block's image. In the file a region's blocks begin `head` bytes earlier than in memory, so that an image
 * lies in two of the file's blocks, and has a checksum for its part in each. */
static inline size_t mpk__bytes_before_border(const mpk_session *s, const mpk__place *place) {
    size_t before = s->block_bytes - place->region->head;
    return before < place->bytes ? before : place->bytes;
}
void mpk__checksum_in_handler(const mpk_session *s, const mpk__place *place, const uint8_t *image, uint32_t crc[2]);
/* The block that owns address, or -1. */
int64_t mpk__block_at_in_handler(const mpk_session *s, uintptr_t address);
/* The block that ends where b begins, or begins where b ends, in memory; false when there is none. */
bool mpk__block_beside_in_handler(const mpk_session *s, uint32_t b, bool behind, uint32_t *beside);
/* Makes all pages writable, whatever the states say: at the end, and in a child process. */
void mpk__open_all(mpk_session *s);
/* A drain is under way, or was given up and has calls to the storage that are: nothing that they use may be touched. */
static inline bool mpk__drain_is_open(const mpk_session *s) {
    uint32_t state = atomic_load(&s->drain_state);
    return state == MPK_DRAIN_ACTIVE || state == MPK_DRAIN_HUNG;
}
void mpk__session_free(mpk_session *s); /* all that it has; no thread uses it any more */
/* True when the states add up: called by the tests after each epoch. */
MPK_API int mpk__session_is_valid(const mpk_session *s);

/* pool.c */
/* At least so many entries, up to n_entries, as many as `may` allows; -EDQUOT if those are fewer. */
int mpk__pool_create(mpk__pool *pool, size_t entry_bytes, size_t n_entries, size_t least, mpk_may_take *may, void *context);
void mpk__pool_destroy(mpk__pool *pool);
uint32_t mpk__pool_take_in_handler(mpk__pool *pool); /* MPK__NO_ENTRY when it is full */
void mpk__pool_give_in_handler(mpk__pool *pool, uint32_t entry);
/* Copies an image, which begins on a page, into an entry. Checked: with its checksums, before and behind the border. */
void mpk__pool_put_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes);
void mpk__pool_put_checked_in_handler(mpk__pool *pool, uint32_t entry, const uint8_t *image, size_t bytes, size_t border);
/* Sleeps until an entry was given back after `given` was read, or a block was saved; at most a short while. */
void mpk__pool_wait_in_handler(mpk__pool *pool, uint32_t given);
void mpk__pool_notify(mpk__pool *pool); /* a block was saved: whoever waited to copy it need not */
static inline uint8_t *mpk__pool_image(const mpk__pool *pool, uint32_t entry) {
    return pool->memory + (size_t)entry * pool->entry_bytes;
}
/* More than half full: the urgent thread takes part. */
static inline bool mpk__pool_is_pressed(const mpk__pool *pool) {
    return (uint64_t)atomic_load(&pool->used) * 2 > pool->n_entries;
}

/* fault.c */
int mpk__fault_watch(mpk_session *s); /* -EBUSY when another session is watched */
int mpk__fault_install(void);         /* the signal handler, if it is not the one in place */
void mpk__fault_unwatch(void);        /* and the handler that was there before is back */
extern _Atomic(mpk_session *) mpk__watched;
static inline mpk_session *mpk__watched_session(void) {
    return atomic_load_explicit(&mpk__watched, memory_order_acquire);
}
/* What a write to block b does; the caller may be the handler, or somebody who announces a write. */
void mpk__write_to_block_in_handler(mpk_session *s, uint32_t b);
/* Copies a block that is not protected into the pool: for blocks that are pinned, at the cut. Waits for room. */
void mpk__copy_pinned_block(mpk_session *s, uint32_t b);
/* In a child made by fork(): opens all pages, puts the signal handler back, and watches nothing any more. */
void mpk__fault_disown(void);

/* fork.c */
void mpk__fork_watch(void); /* from the first call on, children are disinherited */
bool mpk__is_forked_in_handler(void); /* no drain threads here; nothing is waited for, joined or written */
static inline bool mpk__is_forked_child(void) { return mpk__is_forked_in_handler(); }

/* drain.c */
int mpk__drain_start_threads(mpk_session *s);
void mpk__drain_stop_threads(mpk_session *s);
void mpk__drain_abandon_threads(mpk_session *s); /* they end when their calls to the storage return; s is theirs */
void mpk__drain_unmap_bounces(mpk_session *s);
void mpk__drain_wake_in_handler(mpk_session *s);
void mpk__drain_wake_for_cut(mpk_session *s); /* wakes one thread, which opens the slot and then wakes the others */
bool mpk__drain_fail_in_handler(mpk_session *s, int error); /* an errno; false: too late, or no epoch is being drained */
bool mpk__drain_give_up_in_handler(mpk_session *s); /* the storage hangs; false: no drain is active */
void mpk__drain_finished_in_handler(mpk_session *s, uint32_t units); /* of pending; who takes the last away has it committed */

/* How long somebody has waited without that a call to the storage ended. Counted in slices: a slice that took far longer
 * than it was to is one in which the process was suspended. */
typedef struct mpk__patience {
    uint32_t ended;
    uint64_t waited_ns;
} mpk__patience;
/* Takes in that so long was waited; gives the epoch up when that was too long. */
void mpk__drain_waited_in_handler(mpk_session *s, mpk__patience *patience, uint64_t ns);

/* writer.c: called by drain threads, and only while an epoch is open. */
int mpk__writer_open(mpk_session *s);
int mpk__writer_put(mpk_session *s, mpk__drain_thread *self, const mpk__write *writes, int n);
void mpk__writer_commit(mpk_session *s);
void mpk__writer_close(mpk_session *s);
bool mpk__record_is_complete(const mpk_record *record, uint64_t epoch);

/* history.c */
int mpk__history_create(mpk_session *s);
void mpk__history_destroy(mpk_session *s);
/* Finds out at a cut what changed since the last one and what the slot lacks; gives the number of dirty blocks. */
uint32_t mpk__history_advance(mpk_session *s);
void mpk__history_note_write_in_handler(mpk_session *s, uint32_t b, uint64_t now_ns);
/* The block is saved as it was at the cut and was not written to since. */
void mpk__history_note_saved(mpk_session *s, uint32_t b, bool crc_is_known);
mpk__holding *mpk__holding_of(mpk_session *s, const char *path); /* NULL: no memory */

/* ahead.c */
/* The blocks that a write to block b opens: b, and those that a program which sweeps through memory will soon come to. */
mpk__chunk mpk__ahead_in_handler(mpk_session *s, uint32_t b, uint64_t now_ns);

/* check.c */
void mpk__check_begin(mpk_session *s, uint64_t interval_ns); /* at a cut, so long after the one before */
/* A block that was just written to the slot straight from memory, and is protected since: false if memory has changed, so that what
 * reached the file may not be what its checksum says. */
bool mpk__check_written(mpk_session *s, uint32_t b);
/* Looks at some CLEAN blocks, as long as the thread is not woken. */
void mpk__check_blocks(mpk_session *s, uint32_t wakeups);

/* order.c */
int mpk__order_create(mpk_session *s);
void mpk__order_destroy(mpk_session *s);
void mpk__order_chunks(mpk_session *s); /* for the cut that begins to be drained */
/* The first place in the order, at or behind `from`, of a chunk that can still be saved before it is expected to be
 * written to, so long after the cut; n_ordered if there is none, or deadlines are ignored. What is too late now is so for
 * the rest of the epoch. */
uint32_t mpk__order_in_time(const mpk_session *s, uint32_t from, uint64_t now_us);
void mpk__order_note_run(mpk_session *s, uint64_t us); /* that a run took */
#define MPK__LONGEST_RUN_US 10000000u

/* mapping.c */
void mpk__pin_blocks(mpk_session *s);     /* at sealing */
int mpk__check_pinned(mpk_session *s);    /* after they were copied: -EREMCHG if somebody wrote to them meanwhile */

/* guard.c */
bool mpk__program_waits(void); /* some thread of the program waits in a call: its core is free */
void mpk__guard_pin_ranges(mpk_session *s); /* at sealing: the ranges that are pinned become blocks that are */

/* retry.c */
/* After a read that failed: waits, and tells whether to try again. *tries is 0 at first. */
bool mpk__try_again(int error, unsigned *tries);
int64_t mpk__read_again(int fd, void *memory, size_t bytes, uint64_t offset); /* mpk__prim_read, tried again */

/* crc32c.c */
uint32_t mpk__crc32c_combine(uint32_t first, uint32_t second, size_t second_bytes);
MPK_API uint32_t mpk__crc32c_portable(uint32_t crc, const void *data, size_t bytes);

/* chaos.h, in test builds: a random delay at a place where threads could meet. */
#ifdef MPK_CHAOS
void mpk__chaos(void);
#else
#define mpk__chaos() ((void)0)
#endif

#endif
