/* The fault handler's manners: errno stays, a foreign fault goes to the handler before us, fork() works, and at close
 * all is as it was. */
#include <setjmp.h>
#include <sys/wait.h>

#include "check.h"
#include "fault.h"

enum { BLOCK = 65536, BYTES = 8 * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + BYTES;
static sigjmp_buf back;
static volatile sig_atomic_t foreign_faults;

static void foreign(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    foreign_faults++;
    siglongjmp(back, 1);
}

static mpk_session *open_session(uint8_t *memory, size_t pool) {
    mpk_session *s;
    CHECK(mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_region_add(s, memory + BLOCK, 8, 0) == 0);
    CHECK(mpk_session_seal(s, BLOCK, pool) == -EEXIST);
    CHECK(mpk_session_unseal(s) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, pool) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, 0) == -EBUSY);
    return s;
}

static void cut(mpk_session *s, const char *path) {
    mpk_plan plan = {.path = path, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = 1};
    CHECK(mpk_cut(s, &plan) == 0);
}

static void write_to_no_mans_land(void) {
    uint8_t *page = mpk_alloc(4096, 0);
    CHECK(mpk__prim_protect_in_handler(page, 4096, false) == 0);
    if (sigsetjmp(back, 1) == 0) *(volatile uint8_t *)page = 1;
    mpk_free(page, 4096);
}

static void test_foreign_faults(const char *path, uint8_t *memory) {
    struct sigaction before, after, theirs = {.sa_sigaction = foreign, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &theirs, &before);
    mpk_session *s = open_session(memory, BYTES);
    cut(s, path);
    errno = 77;
    memory[0] = 1;
    CHECK(errno == 77 && foreign_faults == 0);
    write_to_no_mans_land();
    CHECK(foreign_faults == 1);
    mpk_session_wait(s, -1);
    sigaction(SIGSEGV, &theirs, NULL); /* somebody takes the signal between two cuts */
    cut(s, path);
    memory[BLOCK] = 2;
    write_to_no_mans_land();
    CHECK(foreign_faults == 2);
    mpk_session_destroy(s);
    sigaction(SIGSEGV, NULL, &after);
    CHECK(after.sa_sigaction == foreign);
    sigaction(SIGSEGV, &before, NULL);
}

static void test_fork(const char *path, uint8_t *memory) {
    memset(memory, 5, BYTES);
    mpk_session *s = open_session(memory, BLOCK); /* room for one block: the child must not wait for more */
    cut(s, path);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        memset(memory, 9, BYTES);
        for (size_t i = 0; i < BYTES; i++)
            if (memory[i] != 9) _exit(1);
        mpk_session_destroy(s);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    mpk_session_wait(s, -1);
    uint8_t *image = malloc(BYTES);
    read_slot(path, image, BYTES, data_at);
    for (size_t i = 0; i < BYTES; i++) CHECK(image[i] == 5);
    free(image);
    mpk_session_destroy(s);
}

static void test_one_sealed_at_a_time(uint8_t *memory) {
    mpk_session *first = open_session(memory, BLOCK), *second;
    CHECK(mpk_session_create(&second, 0) == 0);
    CHECK(mpk_session_seal(second, BLOCK, BLOCK) == -EBUSY);
    CHECK(mpk_session_seal(first, BLOCK, BLOCK) == -EBUSY);
    mpk_session_destroy(first);
    CHECK(mpk_session_seal(second, 3 * 4096, BLOCK) == -EINVAL);
    CHECK(mpk_session_seal(second, BLOCK, BLOCK) == 0);
    mpk_session_destroy(second);
}

static void test_real_crash(uint8_t *memory, const char *path) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) { /* nobody handles it: the process dies of the signal and does not loop in the handler */
        alarm(HANG_SECONDS);
        mpk_session *s = open_session(memory, BLOCK);
        CHECK(mpk_cut(s, &(mpk_plan){.path = path}) == -EINVAL); /* a session in a forked child is inert */
        CHECK(mpk__fault_install() == 0);
        uint8_t *page = mpk_alloc(4096, 0);
        CHECK(mpk__prim_protect_in_handler(page, 4096, false) == 0);
        *(volatile uint8_t *)page = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* A library that takes the signal between two cuts, and hands on what it is not for: to us. */
static struct sigaction before_other;
static volatile sig_atomic_t calls;

static void hand_on(int signal, siginfo_t *info, void *context) {
    calls++;
    if (before_other.sa_flags & SA_SIGINFO) before_other.sa_sigaction(signal, info, context);
}

static void hand_on_by_raise(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    calls++;
    raise(signal);
}

static void report(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
    _exit(40 + calls);
}

static void take(void (*handler)(int, siginfo_t *, void *), struct sigaction *before) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
    CHECK(sigaction(SIGSEGV, &action, before) == 0);
}

enum end { WITHIN, CLOSED, PUT_BACK, OPENED_AGAIN };

/* The status of a process in which a library came after the first cut, and which then crashes. */
static int status_of_crash(uint8_t *memory, void (*first)(int, siginfo_t *, void *), void (*other)(int, siginfo_t *, void *),
                           enum end end) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        if (first) take(first, NULL);
        mpk_session *s = open_session(memory, BLOCK);
        CHECK(mpk__fault_install() == 0);
        take(other, &before_other);
        for (int i = 0; i < 10; i++) { /* as each cut does; and now and then the library comes again */
            CHECK(mpk__fault_install() == 0);
            if (i % 3 == 0) take(other, NULL);
        }
        CHECK(mpk__fault_install() == 0);
        if (end != WITHIN) mpk__fault_unwatch();
        if (end == PUT_BACK) CHECK(sigaction(SIGSEGV, &before_other, NULL) == 0);
        if (end == OPENED_AGAIN) {
            CHECK(mpk__fault_watch(s) == 0);
            CHECK(mpk__fault_install() == 0);
        }
        uint8_t *page = mpk_alloc(4096, 0);
        CHECK(mpk__prim_protect_in_handler(page, 4096, false) == 0);
        *(volatile uint8_t *)page = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void test_handlers_that_hand_on_to_each_other(uint8_t *memory) {
    for (enum end end = WITHIN; end <= OPENED_AGAIN; end++) {
        int status = status_of_crash(memory, report, hand_on, end);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (end == PUT_BACK ? 40 : 41)); /* each is asked once */
        status = status_of_crash(memory, NULL, hand_on, end);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
    int status = status_of_crash(memory, report, hand_on_by_raise, WITHIN);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 41);
    status = status_of_crash(memory, NULL, hand_on_by_raise, WITHIN);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

int main(void) {
    char *path = make_slot(checksums_at + 4096);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    test_foreign_faults(path, memory);
    test_one_sealed_at_a_time(memory);
    test_fork(path, memory);
    test_real_crash(memory, path);
    test_handlers_that_hand_on_to_each_other(memory);
    unlink(path);
    free(path);
    mpk_free(memory, BYTES);
    return 0;
}
