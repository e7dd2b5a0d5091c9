/* Child processes: what a child made by fork(), by a bare clone() or by vfork() has of its parent's session, which is
 * nothing, and that its parent keeps all. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"
#include "fault.h"
#include "fork.h"

enum { BLOCK = 65536, BYTES = 8 * BLOCK, PAGE = 4096 };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;
static bool signals_in_child; /* one comes as early as it can */
static volatile sig_atomic_t taken;

static void on_segv(int signal) { (void)signal, _exit(3); }
static void on_term(int signal) { (void)signal, taken = 1; }
static void on_term_of_another(int signal) { (void)signal, _exit(7); }

static void in_child_first(void) {
    if (signals_in_child) raise(SIGTERM);
}

static mpk_session *cut_session(uint8_t *memory, const char *path) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BLOCK) == 0); /* room for one block: a child must not wait for more */
    mpk_plan plan = {.path = path, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = 1};
    CHECK(mpk_cut(s, &plan) == 0);
    return s;
}

static int status_of(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return status;
}

static bool ended_well(pid_t child) {
    int status = status_of(child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* All but `hole`, a page that is not there, NULL for none. */
static int fill(uint8_t *memory, const uint8_t *hole) {
    for (uint8_t *page = memory; page < memory + BYTES; page += PAGE)
        if (page != hole) memset(page, 9, PAGE);
    for (size_t i = 0; i < BYTES; i++)
        if ((hole == NULL || memory + i < hole || memory + i >= hole + PAGE) && memory[i] != 9) return 1;
    return 0;
}

static int look_after_fork(uint8_t *memory, const uint8_t *hole) {
    struct sigaction now;
    alarm(HANG_SECONDS);
    if (mpk__watched_session() || !mpk__is_forked_in_handler()) return 1;
    if (sigaction(SIGSEGV, NULL, &now) != 0 || now.sa_handler != on_segv) return 2;
    int zero = open("/dev/zero", O_RDONLY); /* the kernel may write, too: no handler could help it */
    if (zero < 0 || read(zero, memory, BLOCK) != BLOCK) return 4;
    return fill(memory, hole);
}

static void test_pages_and_handler(uint8_t *memory, const char *path, uint8_t *hole) {
    struct sigaction before, ours, theirs = {.sa_handler = on_segv};
    sigaction(SIGSEGV, &theirs, &before);
    memset(memory, 5, BYTES);
    mpk_session *s = cut_session(memory, path);
    if (hole) CHECK(madvise(hole, PAGE, MADV_DONTFORK) == 0);
    pid_t child = fork();
    if (child == 0) _exit(look_after_fork(memory, hole));
    CHECK(ended_well(child));
    sigaction(SIGSEGV, NULL, &ours);
    CHECK(ours.sa_handler != on_segv && mpk__watched_session() == s && !mpk__is_forked_in_handler());
    memory[0] = 6;
    mpk_session_wait(s, -1);
    uint8_t *image = malloc(BYTES);
    read_slot(path, image, BYTES, data_at);
    for (size_t i = 0; i < BYTES; i++) CHECK(image[i] == 5);
    free(image);
    mpk_session_destroy(s);
    if (hole) CHECK(madvise(hole, PAGE, MADV_DOFORK) == 0);
    sigaction(SIGSEGV, &before, NULL);
}

/* Nothing is run in such a child: the handler has to notice by itself, and at once. */
static void test_bare_clone(uint8_t *memory, const char *path) {
    memset(memory, 5, BYTES);
    mpk_session *s = cut_session(memory, path);
    pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        _exit(fill(memory, NULL));
    }
    CHECK(ended_well(child));
    mpk_session_destroy(s);
}

/* What such a child writes is written in its parent's memory, too. */
static void test_vfork(uint8_t *memory, const char *path) {
    memset(memory, 5, BYTES);
    mpk_session *s = cut_session(memory, path);
    static volatile bool is_forked = true;
    pid_t child = vfork();
    if (child == 0) {
        is_forked = mpk__is_forked_in_handler();
        memory[BLOCK] = 8;
        _exit(0);
    }
    CHECK(ended_well(child));
    CHECK(!is_forked && memory[BLOCK] == 8);
    mpk_session_wait(s, -1);
    uint8_t image;
    read_slot(path, &image, 1, data_at + BLOCK);
    CHECK(image == 5);
    mpk_session_destroy(s);
}

static bool is_open_in_child(int fd) {
    pid_t child = fork();
    if (child == 0) _exit(fcntl(fd, F_GETFD) < 0);
    return ended_well(child);
}

static void test_descriptors(void) {
    int fds[9];
    for (int i = 0; i < 9; i++) CHECK((fds[i] = open("/dev/zero", O_RDONLY)) >= 0);
    CHECK(is_open_in_child(fds[0]));
    CHECK(mpk_disinherit_descriptor(fds[0]) == 0);
    CHECK(!is_open_in_child(fds[0]) && is_open_in_child(fds[1]) && fcntl(fds[0], F_GETFD) >= 0);
    mpk_inherit_descriptor(fds[0]);
    CHECK(is_open_in_child(fds[0]));
    for (int i = 0; i < 8; i++) CHECK(mpk_disinherit_descriptor(fds[i]) == 0);
    CHECK(mpk_disinherit_descriptor(fds[8]) == -ENOSPC);
    for (int i = 0; i < 9; i++) {
        mpk_inherit_descriptor(fds[i]);
        close(fds[i]);
    }
}

/* The status of a child that is sent SIGTERM before anything else is run in it. */
static int status_of_signalled(void) {
    signals_in_child = true;
    pid_t child = fork();
    if (child == 0) _exit(taken);
    signals_in_child = false;
    return status_of(child);
}

static void test_signals(void) {
    struct sigaction before, ours = {.sa_handler = on_term}, another = {.sa_handler = on_term_of_another};
    sigset_t now;
    CHECK(sigaction(SIGTERM, &ours, &before) == 0);
    CHECK(WEXITSTATUS(status_of_signalled()) == 1);
    CHECK(mpk_disinherit_signal(SIGTERM, false) == 0);
    int status = status_of_signalled();
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    mpk_inherit_signal(SIGTERM);
    CHECK(WEXITSTATUS(status_of_signalled()) == 1);
    CHECK(mpk_disinherit_signal(SIGTERM, true) == 0);
    status = status_of_signalled();
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0); /* ignored, as before */
    CHECK(sigaction(SIGTERM, &another, NULL) == 0); /* somebody took it since: it stays theirs */
    CHECK(WEXITSTATUS(status_of_signalled()) == 7);
    mpk_inherit_signal(SIGTERM);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0 && sigismember(&now, SIGTERM) == 0);
    CHECK(taken == 0 && sigaction(SIGTERM, &before, NULL) == 0);
}

int main(void) {
    pthread_atfork(NULL, NULL, in_child_first); /* the first one: before that of the session */
    char *path = make_slot(checksums_at + 4096);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    test_pages_and_handler(memory, path, NULL);
    test_pages_and_handler(memory, path, memory + 3 * BLOCK + 2 * PAGE);
    test_bare_clone(memory, path);
    test_vfork(memory, path);
    test_descriptors();
    test_signals();
    unlink(path);
    free(path);
    mpk_free(memory, BYTES);
    return 0;
}
