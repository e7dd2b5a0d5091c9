/* The operating system boundary for Linux, as prim_linux.c: what the kernel tells of the process's own mappings. Called by
 * the owner of the session at a safe point; keeps no state. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "prim.h"

#define LINE_BYTES 8192 /* longer than any line: a path has PATH_MAX bytes, and each of its newlines is written as four */

/* A line such as "7f2c-7f2e rw-s 00000000 00:19 1034   /dev/shm/x". False for the lines of /proc/self/smaps below it, which
 * begin with a capital letter. */
static bool read_line(char *line, mpk__mapped *out) {
    char mode[5];
    uint64_t from, to, inode;
    int path = 0;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*x:%*x %" SCNu64 " %n", &from, &to, mode, &inode, &path) < 4)
        return false;
    *out = (mpk__mapped){
        .from = (uintptr_t)from, .to = (uintptr_t)to, .is_shared = mode[3] == 's', .has_file = inode != 0, .path = line + path};
    return true;
}

int mpk__prim_mappings(bool with_page_bytes, mpk__take_mapped *take, void *context) {
    FILE *maps = fopen(with_page_bytes ? "/proc/self/smaps" : "/proc/self/maps", "re");
    if (!maps) return -errno;
    char *lines = malloc(2 * LINE_BYTES); /* this line, and that of the mapping whose page size is still to come */
    int error = lines ? 0 : -ENOMEM;
    mpk__mapped one = {0};
    size_t kib;
    while (!error && fgets(lines, LINE_BYTES, maps)) {
        size_t length = strcspn(lines, "\n");
        lines[length] = 0;
        if (lines[0] >= 'A' && lines[0] <= 'Z') { /* of smaps */
            if (one.to && sscanf(lines, "KernelPageSize: %zu kB", &kib) == 1) {
                one.page_bytes = kib * 1024;
                error = take(context, &one);
            }
        } else {
            memcpy(lines + LINE_BYTES, lines, length + 1);
            if (!read_line(lines + LINE_BYTES, &one)) one.to = 0;
            if (one.to && !with_page_bytes) error = take(context, &one);
        }
    }
    if (!error && ferror(maps)) error = -EIO;
    free(lines);
    fclose(maps);
    return error;
}
