/* Random delays at the places where threads can meet: most often none, now and then long enough for every other
 * thread to run. Called from the fault handler too, so there is no lock and no allocation. */
#include "chaos.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

void mpk__chaos(void) {
    static _Atomic uint64_t counter = 88172645463325252u;
    uint64_t x = atomic_fetch_add(&counter, 0x9e3779b97f4a7c15u);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    if (x % 8 == 0) sched_yield();
    if (x % 32 == 1) {
        struct timespec delay = {.tv_nsec = (long)(x >> 8) % 300000};
        nanosleep(&delay, NULL);
    }
}
