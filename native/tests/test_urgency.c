/* Who drains: the idle threads where they get the processor, and the urgent ones where they do not. */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "check.h"

enum { BLOCK = 65536, BYTES = 512 * BLOCK };
static const uint64_t data_at = 4096, checksums_at = 4096 + (uint64_t)BYTES;
static const uint64_t limit_ns = 40000000000, BUSY_NS = 40000000000;
enum { RUN_US = 10000 }; /* as on a shared disk: in twice that time even threads that starve take up a run */

static void compute(void) {} /* who calls it in a loop is busy enough */

static void compute_nearly_always(void) {
    uint64_t end = mpk__prim_now_ns() + 10000000;
    while (mpk__prim_now_ns() < end) continue;
    struct timespec nap = {.tv_nsec = 1000};
    nanosleep(&nap, NULL);
}

static void sleep_all_the_time(void) {
    struct timespec nap = {.tv_nsec = 10000000};
    nanosleep(&nap, NULL);
}

/* Drains all of the memory in an epoch of its own; gives the bytes that idle threads wrote. */
static uint64_t drain_once(mpk_session *s, uint8_t *memory, const char *path, uint64_t epoch, void (*work)(void)) {
    for (size_t i = 0; i < BYTES; i += BLOCK) memory[i]++;
    mpk_plan plan = {.path = path, .data_offsets = &data_at, .checksum_offsets = &checksums_at, .epoch = epoch};
    CHECK(mpk_cut(s, &plan) == 0);
    uint64_t end = mpk__prim_now_ns() + limit_ns;
    while (!mpk_session_wait(s, 0)) {
        CHECK(mpk__prim_now_ns() < end);
        work();
    }
    mpk_progress progress;
    mpk_session_progress(s, &progress);
    CHECK(progress.state == MPK_DRAIN_COMPLETE && progress.bytes_written >= BYTES);
    return progress.bytes_written - progress.bytes_urgent;
}

static void *spin(void *share) {
    const struct sched_param none = {0};
    struct timespec used;
    CHECK(sched_setscheduler(0, SCHED_IDLE, &none) == 0);
    uint64_t began = mpk__prim_now_ns(), wall;
    while ((wall = mpk__prim_now_ns() - began) < 50000000) continue;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    *(double *)share = (double)(used.tv_sec * 1000000000 + used.tv_nsec) / (double)wall;
    return NULL;
}

/* Whether a thread of idle priority gets most of the processor just now. */
static bool idle_threads_run(void) {
    pthread_t thread;
    double share;
    CHECK(pthread_create(&thread, NULL, spin, &share) == 0 && pthread_join(thread, NULL) == 0);
    return share > 0.9;
}

int main(void) {
    cpu_set_t one; /* the drain threads inherit it: what the program takes of it they do not get */
    CHECK(sched_getaffinity(0, sizeof one, &one) == 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &one)) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    uint8_t *memory = mpk_alloc(BYTES, 0);
    char *path = make_slot(checksums_at + 4096);
    mpk_session *s;
    CHECK(memory && mpk_session_create(&s, 0) == 0);
    CHECK(mpk_region_add(s, memory, BYTES, MPK_REGION_OWNED) == 0);
    CHECK(mpk_session_seal(s, BLOCK, BYTES) == 0);
    CHECK(drain_once(s, memory, path, 1, compute) < BYTES / 2); /* the program leaves them nothing */
    uint64_t epoch = 2, began = mpk__prim_now_ns(); /* now it sleeps; others may take the processor from them for a while */
    for (int n_free = 0; drain_once(s, memory, path, epoch, sleep_all_the_time) < BYTES / 2; epoch++) {
        CHECK((n_free += idle_threads_run()) < 50);
        if (mpk__prim_now_ns() - began > BUSY_NS) {
            puts("not shown: other programs leave nothing to idle threads");
            break;
        }
    }
    int slow = 0;
    for (int i = 0; i < 12; i++) { /* now it leaves them a run now and then: enough for half a second, where 70 ms will do */
        atomic_store(&s->order.run_us, RUN_US);
        slow += drain_once(s, memory, path, ++epoch, compute_nearly_always) > BYTES / 4 * 3;
    }
    CHECK(slow <= 1);
    mpk_session_destroy(s);
    mpk_free(memory, BYTES);
    unlink(path);
    free(path);
    return 0;
}
