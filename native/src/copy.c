/* Copies a file beside the program: an archive of a slot, where the file system cannot clone it. One thread of the lowest class
 * reads and writes large pieces past the page cache, and rests while an epoch of this process is being drained, so that
 * neither the program nor the drain has to share the storage with it. Where a file system has no O_DIRECT each piece is waited
 * for, and dropped from the page cache: what is not on the disk yet never becomes much.
 *
 * The caller is a thread that has nothing else to do, and waits. Any thread may stop the copy, which takes the time of one call to
 * the storage. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "chaos.h"
#include "copy.h"
#include "mpickpt.h"
#include "prim.h"

#ifndef MPK_COPY_PIECE_BYTES /* tests have smaller ones */
#define MPK_COPY_PIECE_BYTES ((size_t)16 << 20)
#endif
#define REST_NS 20000000 /* between two times that a copy asks whether the drain has ended */

struct mpk_copier {
    _Atomic uint32_t stopped; /* waited on */
    _Atomic uint64_t bytes; /* that are copied, of all files */
};

typedef struct copy {
    mpk_copier *copier;
    int from_direct, from, to_direct, to;
    uint8_t *buffer;
    int error;
} copy;

static _Atomic bool drains; /* an epoch of this process: one session at a time has any */

void mpk__copies_rest(bool on) { atomic_store(&drains, on); }

int mpk_copier_create(mpk_copier **out) {
    *out = calloc(1, sizeof **out);
    return *out ? 0 : -ENOMEM;
}

void mpk_copier_destroy(mpk_copier *c) { free(c); }

void mpk_copier_stop(mpk_copier *c) {
    atomic_store(&c->stopped, 1);
    mpk__prim_wake_in_handler(&c->stopped);
}

uint64_t mpk_copier_bytes(const mpk_copier *c) { return atomic_load(&c->bytes); }

static bool rests(mpk_copier *c) {
    while (atomic_load(&drains) && !atomic_load(&c->stopped)) mpk__prim_wait_in_handler(&c->stopped, 0, REST_NS);
    return !atomic_load(&c->stopped);
}

/* Past the page cache as long as that works: a file system may refuse the alignment of a piece. */
static int64_t read_piece(copy *c, uint64_t offset) {
    int64_t have = c->from_direct < 0 ? -EINVAL : mpk__prim_read(c->from_direct, c->buffer, MPK_COPY_PIECE_BYTES, offset);
    if (have == -EINVAL) have = mpk__prim_read(c->from, c->buffer, MPK_COPY_PIECE_BYTES, offset);
    return have;
}

static int write_piece(copy *c, size_t bytes, uint64_t offset) {
    size_t whole = c->to_direct < 0 ? 0 : bytes / MPK__IO_ALIGN * MPK__IO_ALIGN;
    struct iovec piece = {c->buffer, whole};
    int error = whole ? mpk__prim_write(c->to_direct, &piece, 1, offset) : 0;
    if (error == -EINVAL) whole = 0, error = 0;
    if (error || whole == bytes) return error;
    piece = (struct iovec){c->buffer + whole, bytes - whole};
    error = mpk__prim_write(c->to, &piece, 1, offset + whole);
    if (!error) error = mpk__prim_wait_range(c->to, offset + whole, bytes - whole);
    mpk__prim_forget_range(c->to, offset + whole, bytes - whole);
    return error;
}

static void *run(void *argument) {
    copy *c = argument;
    mpk__prim_name_thread("mpickpt-copy");
    mpk__prim_become_idle();
    int64_t have = (int64_t)MPK_COPY_PIECE_BYTES;
    for (uint64_t offset = 0; !c->error && have == (int64_t)MPK_COPY_PIECE_BYTES; offset += (uint64_t)have) {
        if (!rests(c->copier)) c->error = -ECANCELED;
        mpk__chaos();
        have = c->error ? 0 : read_piece(c, offset);
        if (have < 0) c->error = (int)have;
        if (have > 0) c->error = write_piece(c, (size_t)have, offset);
        if (have > 0) atomic_fetch_add(&c->copier->bytes, (uint64_t)have);
    }
    if (!c->error) c->error = mpk__prim_sync(c->to);
    return NULL;
}

static int run_and_wait(copy *c) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: the program's handlers never run on this thread */
    int error = -pthread_create(&thread, NULL, run, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error) pthread_join(thread, NULL);
    return error ? error : c->error;
}

int mpk_copier_run(mpk_copier *copier, const char *from, const char *to) {
    copy c = {.copier = copier, .from_direct = -1, .from = -1, .to_direct = -1, .to = -1};
    int error = mpk__prim_open_slot(from, true, false, &c.from_direct, &c.from);
    if (!error) error = mpk__prim_open_slot(to, true, true, &c.to_direct, &c.to);
    c.buffer = mpk__prim_map(MPK_COPY_PIECE_BYTES, true);
    if (!error && !c.buffer) error = -ENOMEM;
    if (!error) error = run_and_wait(&c);
    mpk__prim_unmap(c.buffer, MPK_COPY_PIECE_BYTES);
    mpk__prim_close(c.from_direct);
    mpk__prim_close(c.from);
    mpk__prim_close(c.to_direct);
    mpk__prim_close(c.to);
    return error;
}
