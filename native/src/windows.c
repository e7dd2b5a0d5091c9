/* The memory of MPI windows that MPI itself allocated while the guard was open. Peers write to it by RDMA, or through mappings of
 * their own. The hooks of mpi_guard.c note it on any thread; it is asked for when the mapping of a region is looked up. */
#include "windows.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "prim.h"

typedef struct window {
    uintptr_t handle, from;
    size_t bytes;
} window;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static window *windows;
static size_t n_windows, room;

static bool is_known(const window *other) {
    for (size_t i = 0; i < n_windows; i++)
        if (memcmp(&windows[i], other, sizeof *other) == 0) return true;
    return false;
}

void mpk__window_begins(uintptr_t handle, const void *memory, size_t bytes) {
    window one = {handle, (uintptr_t)memory, bytes};
    if (!memory || bytes == 0) return;
    pthread_mutex_lock(&lock);
    if (!is_known(&one)) { /* a program may ask for a peer's memory again and again */
        if (n_windows == room) {
            window *grown = realloc(windows, sizeof *grown * (room ? 2 * room : 16));
            if (grown) {
                windows = grown;
                room = room ? 2 * room : 16;
            }
        }
        if (n_windows < room)
            windows[n_windows++] = one;
        else
            mpk__prim_say_in_handler("mpickpt: no memory to note an MPI window: the image of its memory may be wrong\n");
    }
    pthread_mutex_unlock(&lock);
}

void mpk__window_ends(uintptr_t handle) {
    pthread_mutex_lock(&lock);
    size_t kept = 0;
    for (size_t i = 0; i < n_windows; i++)
        if (windows[i].handle != handle) windows[kept++] = windows[i];
    n_windows = kept;
    pthread_mutex_unlock(&lock);
}

bool mpk__is_in_window(const void *memory, size_t bytes) {
    uintptr_t from = (uintptr_t)memory;
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_windows && !found; i++)
        found = windows[i].from < from + bytes && from < windows[i].from + windows[i].bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

void mpk__forget_windows(void) {
    pthread_mutex_lock(&lock);
    free(windows);
    windows = NULL;
    n_windows = room = 0;
    pthread_mutex_unlock(&lock);
}
