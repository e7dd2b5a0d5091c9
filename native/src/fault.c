/* The write fault. When the program writes to a read-only page of a region, the kernel sends SIGSEGV, and the handler in this
 * file saves the block's image and lets the write go on. The handler may run on any thread of the program, on several at
 * once, and may interrupt any function. So it allocates nothing, takes no lock, and calls only what is async-signal-safe.
 *
 * A fault outside the regions is passed to the handler that was installed before (faulthandler, Julia, a JVM). */
#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "chaos.h"
#include "fork.h"
#include "session.h"

_Atomic(mpk_session *) mpk__watched;

/* The handlers that were installed before, in the order in which they were found. They outlive the session as long as a handler
 * that was installed later may still call this one. */
enum { MOST_BEFORE = 8 };
static struct sigaction before[MOST_BEFORE];
static _Atomic uint32_t n_before;
static _Atomic bool installed; /* the process's handler is the one of this file, as far as is known */

/* The earlier handler that this thread is calling: from which frame, with which signal, and how many handlers are older still.
 * The TLS model is initial-exec, because a handler must not allocate thread-local storage. */
typedef struct passing {
    const void *volatile frame;
    const siginfo_t *volatile info;
    volatile uint32_t level;
} passing;
static _Thread_local passing passed_on __attribute__((tls_model("initial-exec")));

static void set_passing_in_handler(const void *frame, const siginfo_t *info, uint32_t level) {
    passed_on.info = info;
    passed_on.level = level;
    passed_on.frame = frame;
}

static void die_in_handler(const char *text) {
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    mpk__prim_say_in_handler(text);
    sigaction(SIGABRT, &fatal, NULL);
    raise(SIGABRT);
}

/* Waits for room in the pool: the one place where the program waits for the drain. Not for a slot, as whoever is to bring it may
 * be this very thread. */
static void wait_for_room_in_handler(mpk_session *s, uint32_t b, uint64_t word, mpk__patience *patience) {
    uint32_t given = atomic_load(&s->pool.given);
    if (atomic_load(&s->pool.used) < s->pool.n_entries || atomic_load(&s->blocks.words[b]) != word) return;
    if (atomic_load(&s->drain.opening) == MPK__AWAITED && mpk__epoch_fail_in_handler(s, ENOBUFS)) return;
    uint64_t start = mpk__prim_now_ns();
    mpk__pool_wait_in_handler(&s->pool, given);
    uint64_t waited = mpk__prim_now_ns() - start;
    atomic_fetch_add(&s->epoch.stall_ns, waited);
    mpk__drain_waited_in_handler(s, patience, waited);
}

/* An epoch that has failed needs no image of a PROTECTED or DRAINING block. A DRAINING block still counts as pending until its
 * drain thread is done, because that thread still reads the memory. False: the state changed. */
static bool give_block_up_in_handler(mpk_session *s, uint32_t b, uint64_t word) {
    mpk__chaos();
    if (!mpk__word_swap_in_handler(&s->blocks, b, &word, mpk__word(mpk__cut_of(word), 0, MPK__WRITABLE))) return false;
    if (mpk__state_of(word) == MPK__PROTECTED) mpk__epoch_finished_in_handler(s, 1);
    return true;
}

/* Copies a PROTECTED or DRAINING block into the pool. False: the state changed, or there was no room: try again. */
static bool copy_block_in_handler(mpk_session *s, uint32_t b, uint64_t word, mpk__patience *patience) {
    uint32_t entry = mpk__pool_take_in_handler(&s->pool);
    if (entry == MPK__NO_ENTRY) {
        wait_for_room_in_handler(s, b, word, patience);
        return false;
    }
    if (mpk__pool_is_pressed(&s->pool)) mpk__drain_wake_in_handler(&s->drain);
    mpk__place place = mpk__block_place_in_handler(&s->blocks, b);
    if (atomic_load(&s->history.block[b].crc_is_known))
        mpk__pool_put_in_handler(&s->pool, entry, place.memory, place.bytes);
    else
        mpk__pool_put_checked_in_handler(&s->pool, entry, place.memory, place.bytes,
                                         mpk__bytes_before_border(&s->blocks, &place));
    mpk__chaos();
    /* While the word is PROTECTED or DRAINING of this cut, nobody has opened the page, so the copy is the image. That is also
     * true when a drain thread has claimed the block, or put it back, in the meantime. */
    uint64_t now = word;
    for (;;) {
        enum mpk__block_state state = mpk__state_of(now);
        if (mpk__cut_of(now) != mpk__cut_of(word) || (state != MPK__PROTECTED && state != MPK__DRAINING)) break;
        enum mpk__block_state next = state == MPK__PROTECTED ? MPK__COPIED : MPK__DRAINING_COPY;
        if (mpk__word_swap_in_handler(&s->blocks, b, &now, mpk__word(mpk__cut_of(now), entry, next))) {
            atomic_fetch_add(&s->epoch.blocks_copied, 1);
            return true;
        }
    }
    mpk__pool_give_in_handler(&s->pool, entry); /* another thread was first */
    return false;
}

/* Takes a CLEAN block for its first write. False: it is in another state. */
static bool take_clean_block_in_handler(mpk_session *s, uint32_t b) {
    uint64_t word = atomic_load(&s->blocks.words[b]);
    mpk__chaos();
    return mpk__state_of(word) == MPK__CLEAN &&
           mpk__word_swap_in_handler(&s->blocks, b, &word, mpk__word(mpk__cut_of(word), 0, MPK__WRITABLE));
}

/* Makes sure that block b may be opened: its image is saved, or it needs none. False: another thread did that. */
static bool preserve_block_in_handler(mpk_session *s, uint32_t b) {
    mpk__patience patience = {.ended = atomic_load(&s->drain.calls_ended)};
    for (;;) {
        uint64_t word = atomic_load(&s->blocks.words[b]);
        switch (mpk__state_of(word)) {
        case MPK__PROTECTED:
        case MPK__DRAINING:
            if (atomic_load(&s->epoch.error)) { /* read after the word, so it is of this cut, or the swap fails */
                if (give_block_up_in_handler(s, b, word)) return true;
                break;
            }
            if (copy_block_in_handler(s, b, word, &patience)) return true;
            break;
        case MPK__CLEAN:
            if (take_clean_block_in_handler(s, b)) return true;
            break;
        case MPK__WRITABLE: /* another thread was first, and opens the page: there is no need to wait for it */
        case MPK__COPIED:
        case MPK__DRAINING_COPY: return false;
        }
    }
}

static void preserve_ahead_in_handler(mpk_session *s, uint32_t b, uint64_t us) {
    if (!preserve_block_in_handler(s, b)) return;
    mpk__history_note_write_in_handler(&s->history, b, us);
    atomic_store(&s->history.block[b].is_ahead, true);
}

/* -- opening ---------------------------------------------------------------------------------------------------------- */

/* Makes blocks writable that follow each other in memory, from `first` to `last`, of one region or of several. */
static int open_blocks_in_handler(mpk_session *s, uint32_t first, uint32_t last) {
    mpk__place from = mpk__block_place_in_handler(&s->blocks, first), to = mpk__block_place_in_handler(&s->blocks, last);
    int error = mpk__prim_protect_in_handler(from.memory, (size_t)(to.memory - from.memory) + to.span, true);
    for (uint32_t b = first; !error; mpk__block_beside_in_handler(&s->blocks, b, true, &b)) {
        mpk__block_note_opened_in_handler(&s->blocks, b);
        if (b == last) break;
    }
    return error;
}

/* The last closed block before or behind b, and how many there are; bounded: a block that is open lies beyond it. */
static uint32_t last_closed_in_handler(const mpk_session *s, uint32_t b, bool behind, uint32_t *count, bool *bounded) {
    uint32_t next;
    *bounded = false;
    for (*count = 0; mpk__block_beside_in_handler(&s->blocks, b, behind, &next); b = next, ++*count) {
        *bounded = atomic_load(&s->blocks.opened[next]);
        if (*bounded) break;
    }
    return b;
}

static int preserve_and_open_in_handler(mpk_session *s, uint32_t first, uint32_t last) {
    uint64_t now = mpk__epoch_us(&s->epoch, mpk__prim_now_ns());
    for (uint32_t b = first; !mpk__is_forked_in_handler(); mpk__block_beside_in_handler(&s->blocks, b, true, &b)) {
        if (!atomic_load(&s->blocks.opened[b])) preserve_ahead_in_handler(s, b, now);
        if (b == last) break;
    }
    return open_blocks_in_handler(s, first, last);
}

/* The process has reached its limit of mappings, so no mapping can be split, and opening some blocks inside a closed run needs
 * two more. So more is opened than was asked for: everything up to the nearest open block, which then is one mapping with it,
 * or the whole run, which is one mapping already. */
static int open_more_in_handler(mpk_session *s, uint32_t first, uint32_t last) {
    uint32_t before_it, behind_it;
    bool is_open_before, is_open_behind;
    uint32_t low = last_closed_in_handler(s, first, false, &before_it, &is_open_before);
    uint32_t high = last_closed_in_handler(s, last, true, &behind_it, &is_open_behind);
    int error = -ENOMEM;
    if (is_open_before && (!is_open_behind || before_it <= behind_it))
        error = preserve_and_open_in_handler(s, low, last);
    else if (is_open_behind)
        error = preserve_and_open_in_handler(s, first, high);
    return error ? preserve_and_open_in_handler(s, low, high) : 0;
}

/* Makes adjacent blocks of a region writable, whose images are saved. */
static void open_pages_in_handler(mpk_session *s, uint32_t first, uint32_t count) {
    int error = open_blocks_in_handler(s, first, first + count - 1);
    if (error == -ENOMEM) error = open_more_in_handler(s, first, first + count - 1);
    if (error)
        die_in_handler("mpickpt: cannot make a page of a saved array writable again: the program has sealed or unmapped it, or "
                       "the process has too many memory mappings (vm.max_map_count)\n");
}

void mpk__write_to_block_in_handler(mpk_session *s, uint32_t b) {
    if (mpk__is_forked_in_handler()) { /* no drain threads here; the parent saves the image in its own memory */
        open_pages_in_handler(s, b, 1);
        return;
    }
    uint64_t start = mpk__prim_now_ns();
    atomic_store(&s->history.block[b].is_left_out, false);
    uint64_t us = mpk__epoch_us(&s->epoch, start);
    mpk__history_note_write_in_handler(&s->history, b, us);
    mpk__chunk with = mpk__ahead_in_handler(&s->sweep, &s->blocks, &s->history, b, us);
    preserve_block_in_handler(s, b);
    for (uint32_t other = with.first; other < with.first + with.count; other++)
        if (other != b) preserve_ahead_in_handler(s, other, us);
    mpk__chaos();
    open_pages_in_handler(s, with.first, with.count);
    atomic_fetch_add(&s->epoch.fault_ns, mpk__prim_now_ns() - start);
    atomic_fetch_add(&s->epoch.faults, 1);
}

void mpk__copy_pinned_block(mpk_session *s, uint32_t b) {
    uint64_t word = atomic_load(&s->blocks.words[b]);
    uint32_t entry = MPK__NO_ENTRY;
    mpk__patience patience = {.ended = atomic_load(&s->drain.calls_ended)};
    while (!atomic_load(&s->epoch.error) && (entry = mpk__pool_take_in_handler(&s->pool)) == MPK__NO_ENTRY)
        wait_for_room_in_handler(s, b, word, &patience);
    if (entry == MPK__NO_ENTRY) { /* the epoch has failed: it stays WRITABLE */
        mpk__epoch_finished_in_handler(s, 1);
        return;
    }
    mpk__place place = mpk__block_place_in_handler(&s->blocks, b);
    mpk__pool_put_in_handler(&s->pool, entry, place.memory, place.bytes);
    mpk__checksum_in_handler(&s->blocks, &place, mpk__pool_image(&s->pool, entry),
                             s->blocks.crc[b]); /* memory may be changing */
    atomic_store(&s->history.block[b].crc_is_known, true);
    mpk__word_set(&s->blocks, b, mpk__word(mpk__cut_of(word), entry, MPK__COPIED), memory_order_seq_cst);
    if (mpk__pool_is_pressed(&s->pool)) mpk__drain_wake_in_handler(&s->drain);
}

/* A stack grows downwards, so a handler that was left by longjmp can be told from one that is still running: the next signal's
 * frame is at its place or above. */
static bool is_inside_in_handler(const passing *outer, const void *frame, const siginfo_t *info, bool raised) {
    return outer->frame && (uintptr_t)frame < (uintptr_t)outer->frame && (raised || info == outer->info);
}

static void end_in_handler(int signal, bool raised) {
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(signal, &fatal, NULL);
    if (raised) raise(signal); /* no instruction would fault again */
}

/* A handler that was installed later and raises the signal may have received a write to protected memory: faulthandler, for
 * example, restores the handler that it found and raises. Where the write went is not known here, so it can only be reported. */
static void tell_of_other_in_handler(const siginfo_t *info) {
    mpk_session *s = atomic_load(&mpk__watched);
    if (info->si_code != SI_TKILL || !s || !atomic_load(&installed) || atomic_load(&s->blocks.n_closed) == 0) return;
    mpk__prim_say_in_handler("mpickpt: SIGSEGV was raised by this process itself while saved memory was write-protected. If a "
                             "handler did so that was installed after the last cut (faulthandler.enable(), say), the fault "
                             "may have been an ordinary write to a saved array: install it before the first safe point\n");
}

/* Passes the signal to the handler that was installed before. A handler that was installed between two cuts found this one, and
 * passes on to it what is not its own. When this one is called so, from inside of that handler or by its raise(), it goes on to
 * the one before that, and at last to the default action, which ends the process. When this one is no longer the process's
 * handler, its caller was installed after all sessions. */
static void pass_on_in_handler(int signal, siginfo_t *info, void *context) {
    bool raised = info->si_code <= 0;
    passing outer = {passed_on.frame, passed_on.info, passed_on.level};
    const void *frame = __builtin_frame_address(0);
    uint32_t level = atomic_load(&installed) ? atomic_load(&n_before) : 1;
    bool is_inside = is_inside_in_handler(&outer, frame, info, raised);
    if (is_inside) level = outer.level;
    if (!is_inside) tell_of_other_in_handler(info);
    if (level == 0 || level > atomic_load(&n_before)) {
        end_in_handler(signal, raised);
        return;
    }
    const struct sigaction *next = &before[level - 1];
    bool is_function = (next->sa_flags & SA_SIGINFO) || (next->sa_handler != SIG_DFL && next->sa_handler != SIG_IGN);
    if (!is_function) {
        end_in_handler(signal, raised);
        return;
    }
    set_passing_in_handler(frame, info, level - 1);
    if (next->sa_flags & SA_SIGINFO)
        next->sa_sigaction(signal, info, context);
    else
        next->sa_handler(signal);
    set_passing_in_handler(outer.frame, outer.info, outer.level);
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    int saved_errno = errno;
    mpk_session *s = atomic_load(&mpk__watched);
    int64_t b = -1;
    if (s && info->si_code > 0) b = mpk__block_at_in_handler(&s->blocks, (uintptr_t)info->si_addr);
    if (b >= 0)
        mpk__write_to_block_in_handler(s, (uint32_t)b);
    else
        pass_on_in_handler(signal, info, context);
    errno = saved_errno;
}

int mpk__fault_watch(mpk_session *s) {
    mpk_session *none = NULL;
    if (!atomic_compare_exchange_strong(&mpk__watched, &none, s)) return -EBUSY;
    mpk__fork_watch();
    return 0;
}

static bool is_ours(const struct sigaction *action) {
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == on_fault;
}

/* Notes the handler that is installed now. If it is known already, those that were noted after it are forgotten. */
static void note_before(const struct sigaction *now) {
    uint32_t n = atomic_load(&n_before), i = 0;
    while (i < n && before[i].sa_handler != now->sa_handler) i++;
    if (i == MOST_BEFORE) i--;
    atomic_store(&n_before, i); /* a fault of another thread meanwhile is handed to the one before */
    before[i] = *now;
    atomic_store(&n_before, i + 1);
}

int mpk__fault_install(void) {
    struct sigaction now;
    if (sigaction(SIGSEGV, NULL, &now) != 0) return -errno;
    if (is_ours(&now)) {
        atomic_store(&installed, true); /* it may have been restored after the end of a session */
        return 0;
    }
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    note_before(&now);
    if (sigaction(SIGSEGV, &ours, NULL) != 0) return -errno;
    atomic_store(&installed, true);
    return 0;
}

void mpk__fault_disown(void) {
    mpk_session *s = atomic_load(&mpk__watched);
    if (s && atomic_load(&s->blocks.n_closed) != 0) mpk__blocks_open_all(&s->blocks);
    mpk__fault_unwatch();
}

void mpk__fault_unwatch(void) {
    struct sigaction now;
    uint32_t n = atomic_load(&n_before);
    if (atomic_exchange(&installed, false) && n && sigaction(SIGSEGV, NULL, &now) == 0 && is_ours(&now)) {
        sigaction(SIGSEGV, &before[n - 1], NULL);
        if (n == 1) atomic_store(&n_before, 0); /* nobody came between two cuts: nobody knows of us */
    }
    atomic_store(&mpk__watched, NULL);
}
