/* Memory that MPI allocated for a window, which ends with the window. */
#ifndef MPK_WINDOWS_H
#define MPK_WINDOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void mpk__window_begins(uintptr_t handle, const void *memory, size_t bytes);
void mpk__window_ends(uintptr_t handle);
bool mpk__is_in_window(const void *memory, size_t bytes); /* any of these bytes */
void mpk__forget_windows(void);

#endif
