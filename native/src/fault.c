/* The write fault: the program writes to a read-only page of a region, the kernel sends SIGSEGV, and the handler
 * here saves the block's image and lets the write go on. It may run on any thread of the program, on several at
 * once, in the midst of anything: no allocation, no lock, no call that is not async-signal-safe.
 *
 * A fault that is not ours belongs to the handler that was there before (faulthandler, Julia, a JVM). */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "session.h"

_Atomic(mpk_session *) mpk__watched;
static struct sigaction previous;
static bool installed;

/* Set while this thread is in the handler that was there before. Initial-exec: a handler must not allocate it. */
static _Thread_local volatile sig_atomic_t chaining __attribute__((tls_model("initial-exec")));

static void die_in_handler(const char *text) {
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    mpk__prim_say_in_handler(text);
    sigaction(SIGABRT, &fatal, NULL);
    raise(SIGABRT);
}

/* Makes adjacent blocks of a region writable. */
static void open_pages_in_handler(mpk_session *s, uint32_t first, uint32_t count) {
    mpk__place from = mpk__block_place(s, first), to = mpk__block_place(s, first + count - 1);
    if (mpk__prim_protect_in_handler(from.memory, (size_t)(to.memory - from.memory) + to.span, true) != 0)
        die_in_handler("mpickpt: cannot make a page writable again: the process has too many memory mappings; "
                       "raise vm.max_map_count\n");
    for (uint32_t b = first; b < first + count; b++)
        if (!atomic_exchange(&s->opened[b], 1)) atomic_fetch_sub(&s->n_closed, 1);
}

/* Waits for room in the pool: the one place where the program waits for the drain. */
static void wait_for_room_in_handler(mpk_session *s, uint32_t b, uint64_t word) {
    uint32_t given = atomic_load(&s->pool.given);
    if (atomic_load(&s->pool.used) < s->pool.n_slots || atomic_load(&s->blocks[b]) != word) return;
    uint64_t start = mpk__prim_now_ns();
    mpk__pool_wait_in_handler(&s->pool, given);
    atomic_fetch_add(&s->stall_ns, mpk__prim_now_ns() - start);
}

/* Copies an ARMED or FLYING block into the pool. False: the state changed, or there was no room: look again. */
static bool copy_block_in_handler(mpk_session *s, uint32_t b, uint64_t word) {
    uint32_t slot = mpk__pool_take_in_handler(&s->pool);
    if (slot == MPK__NO_SLOT) {
        wait_for_room_in_handler(s, b, word);
        return false;
    }
    if (mpk__pool_is_pressed(&s->pool)) mpk__drain_ring_in_handler(s);
    mpk__place place = mpk__block_place(s, b);
    if (atomic_load(&s->history[b].crc_is_known))
        mpk__pool_put_in_handler(&s->pool, slot, place.memory, place.bytes);
    else
        mpk__pool_put_checked_in_handler(&s->pool, slot, place.memory, place.bytes, mpk__bytes_before_border(s, &place));
    mpk__chaos();
    /* While the word is ARMED or FLYING of this cut nobody has opened the page, so the copy is the image: also when
     * a drain thread took the block up, or let go of it, in the meantime. */
    uint64_t now = word;
    for (;;) {
        enum mpk__block_state state = mpk__state_of(now);
        if (mpk__cut_of(now) != mpk__cut_of(word) || (state != MPK__ARMED && state != MPK__FLYING)) break;
        enum mpk__block_state next = state == MPK__ARMED ? MPK__COPIED : MPK__LANDING;
        if (atomic_compare_exchange_weak(&s->blocks[b], &now, mpk__word(mpk__cut_of(now), slot, next))) {
            atomic_fetch_add(&s->blocks_copied, 1);
            return true;
        }
    }
    mpk__pool_give_in_handler(&s->pool, slot); /* another thread was first */
    return false;
}

/* Takes a CLEAN block for its first write. False: it is in another state. */
static bool take_clean_block_in_handler(mpk_session *s, uint32_t b) {
    uint64_t word = atomic_load(&s->blocks[b]);
    mpk__chaos();
    return mpk__state_of(word) == MPK__CLEAN &&
           atomic_compare_exchange_strong(&s->blocks[b], &word, mpk__word(mpk__cut_of(word), 0, MPK__WRITABLE));
}

/* Sees to it that block b may be opened: its image is saved, or it needs none. False: another thread did. */
static bool release_block_in_handler(mpk_session *s, uint32_t b) {
    for (;;) {
        uint64_t word = atomic_load(&s->blocks[b]);
        switch (mpk__state_of(word)) {
        case MPK__ARMED:
        case MPK__FLYING:
            if (copy_block_in_handler(s, b, word)) return true;
            break;
        case MPK__CLEAN:
            if (take_clean_block_in_handler(s, b)) return true;
            break;
        case MPK__WRITABLE: /* another thread was first and is about to open the page: no need to wait for it */
        case MPK__COPIED:
        case MPK__LANDING:
            return false;
        }
    }
}

static void release_ahead_in_handler(mpk_session *s, uint32_t b, uint64_t now_ns) {
    if (!release_block_in_handler(s, b)) return;
    mpk__history_note_write_in_handler(s, b, now_ns);
    atomic_store(&s->history[b].is_ahead, true);
}

void mpk__write_to_block_in_handler(mpk_session *s, uint32_t b) {
    if (mpk__is_forked_in_handler()) { /* no drain threads: the image is the parent's affair, in the parent's memory */
        open_pages_in_handler(s, b, 1);
        return;
    }
    uint64_t start = mpk__prim_now_ns();
    atomic_store(&s->history[b].is_left_out, false);
    mpk__history_note_write_in_handler(s, b, start);
    mpk__chunk with = mpk__ahead_in_handler(s, b, start);
    release_block_in_handler(s, b);
    for (uint32_t other = with.first; other < with.first + with.count; other++)
        if (other != b) release_ahead_in_handler(s, other, start);
    mpk__chaos();
    open_pages_in_handler(s, with.first, with.count);
    atomic_fetch_add(&s->fault_ns, mpk__prim_now_ns() - start);
    atomic_fetch_add(&s->faults, 1);
}

void mpk__copy_held_block(mpk_session *s, uint32_t b) {
    uint64_t word = atomic_load(&s->blocks[b]);
    uint32_t slot;
    while ((slot = mpk__pool_take_in_handler(&s->pool)) == MPK__NO_SLOT) wait_for_room_in_handler(s, b, word);
    mpk__place place = mpk__block_place(s, b);
    mpk__pool_put_in_handler(&s->pool, slot, place.memory, place.bytes);
    mpk__checksum_in_handler(s, &place, mpk__pool_slot(&s->pool, slot), s->crc[b]); /* memory may be changing */
    atomic_store(&s->history[b].crc_is_known, true);
    atomic_store(&s->blocks[b], mpk__word(mpk__cut_of(word), slot, MPK__COPIED));
    if (mpk__pool_is_pressed(&s->pool)) mpk__drain_ring_in_handler(s);
}

static void pass_on_in_handler(int signal, siginfo_t *info, void *context) {
    bool raised = info->si_code <= 0; /* by raise() or kill(): no instruction would fault again */
    bool has_handler = (previous.sa_flags & SA_SIGINFO) ||
                       (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
    if (!has_handler || (raised && chaining)) {
        /* Nobody wants it, or the one who wants it raised it again: the default action ends the process. */
        struct sigaction fatal = {.sa_handler = SIG_DFL};
        sigaction(signal, &fatal, NULL);
        if (raised) raise(signal);
        return;
    }
    chaining = 1;
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(signal, info, context);
    else
        previous.sa_handler(signal);
    chaining = 0;
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    int saved_errno = errno;
    mpk_session *s = atomic_load(&mpk__watched);
    int64_t b = -1;
    if (s && info->si_code > 0) b = mpk__block_at_in_handler(s, (uintptr_t)info->si_addr);
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

int mpk__fault_install(void) {
    struct sigaction now;
    if (sigaction(SIGSEGV, NULL, &now) != 0) return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_fault) return 0;
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    previous = now; /* also when somebody came between two cuts: then that one is asked next */
    if (sigaction(SIGSEGV, &ours, NULL) != 0) return -errno;
    installed = true;
    return 0;
}

/* What was not inherited (MADV_DONTFORK, which libraries of RDMA ask for) is left out: page by page where there is some. */
static void open_inherited(const mpk_session *s) {
    size_t page = mpk__prim_page_size();
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *r = &s->regions[i];
        if (!r->span || mpk__prim_protect_in_handler(r->pages, r->span, true) == 0) continue;
        for (size_t at = 0; at < r->span; at += page) mpk__prim_protect_in_handler(r->pages + at, page, true);
    }
}

void mpk__fault_disown(void) {
    mpk_session *s = atomic_load(&mpk__watched);
    if (s && atomic_load(&s->n_closed) != 0) open_inherited(s);
    mpk__fault_unwatch();
}

void mpk__fault_unwatch(void) {
    struct sigaction now;
    if (installed && sigaction(SIGSEGV, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
        now.sa_sigaction == on_fault)
        sigaction(SIGSEGV, &previous, NULL);
    installed = false;
    atomic_store(&mpk__watched, NULL);
}
