/* All that depends on the operating system, and nothing else. prim_linux.c and prim_maps.c implement it; a port, or another way
 * to protect pages, is a second implementation of this header.
 *
 * Functions that end in _in_handler may be called from the fault handler: they take no lock, do not allocate, and
 * touch nothing but their arguments. */
#ifndef MPK_PRIM_H
#define MPK_PRIM_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* The alignment of file offset, length and memory that O_DIRECT is used with: the largest logical block in use. */
#define MPK__IO_ALIGN ((size_t)4096)
#define MPK__HUGE_PAGE ((size_t)2 << 20)

size_t mpk__prim_page_size(void);
uint64_t mpk__prim_now_ns(void); /* monotonic */
uint64_t mpk__prim_process(void); /* the number of this process */
uint64_t mpk__prim_wall_clock_ns(void); /* since 1970 */

/* Anonymous zeroed memory. huge: aligned for huge pages, which are advised. NULL when there is none. */
void *mpk__prim_map(size_t bytes, bool huge);
/* Makes every page of such memory present, so that a handler that writes to it never waits for the kernel to find one. 0 or
 * -errno. */
int mpk__prim_populate(void *pages, size_t bytes);
size_t mpk__prim_absent_bytes(const void *memory, size_t bytes); /* of whole pages that are not in memory */
void mpk__prim_unmap(void *memory, size_t bytes);

/* A mapping of the process, and what is to be done with it: a negative errno ends the search. */
typedef struct mpk__mapped {
    uintptr_t from, to;
    bool is_shared, has_file;
    size_t page_bytes; /* 0 where it was not asked for */
    const char *path; /* of a file, or a name in brackets, or empty; valid during the call */
} mpk__mapped;
typedef int mpk__take_mapped(void *context, const mpk__mapped *one);
/* All of them, by ascending addresses; with the sizes of their pages that takes the kernel far longer. 0 or -errno. */
int mpk__prim_mappings(bool with_page_bytes, mpk__take_mapped *take, void *context);

/* Memory that shows a part of a file, and whose pages become its own when they are written to: until then a page shows
 * what anybody writes into the file. `offset` is on a page. NULL and errno when it cannot be had. */
void *mpk__prim_map_file(int fd, uint64_t offset, size_t bytes);
/* Makes all pages of such memory its own, with whatever they show, while the program may be writing to them. 0 or -errno. */
int mpk__prim_own_pages(void *pages, size_t bytes);
/* What is about to be read through the page cache, and what will not be needed there any more. */
void mpk__prim_read_ahead(int fd, uint64_t offset, size_t bytes);
void mpk__prim_forget_range(int fd, uint64_t offset, size_t bytes);
int64_t mpk__prim_file_bytes(int fd); /* or -errno */

/* A word that is 1 here, and 0 in every child process that has memory of its own (fork(), or a bare clone()). NULL where the
 * kernel cannot do that (before Linux 4.14). */
void *mpk__prim_map_fork_marker(void);

int mpk__prim_protect_in_handler(void *pages, size_t bytes, bool writable);

/* Sleeps while *word == expected, at most timeout_ns (negative: no limit). May return early for no reason. */
void mpk__prim_wait_in_handler(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
void mpk__prim_wake_in_handler(_Atomic uint32_t *word);
/* The same for sleepers of some kinds, one bit each: to wake a thread takes time in the call that does it. */
void mpk__prim_wait_as_in_handler(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns, uint32_t kinds);
void mpk__prim_wake_kinds_in_handler(_Atomic uint32_t *word, uint32_t kinds);

/* Says on standard error what cannot be said otherwise. */
void mpk__prim_say_in_handler(const char *text);

/* The lowest class of the processor and of the disk, for the calling thread. */
void mpk__prim_become_idle(void);
void mpk__prim_name_thread(const char *name);

/* Opening: -1 in *direct_fd when the file system has no O_DIRECT. */
int mpk__prim_open_slot(const char *path, bool want_direct, bool writing, int *direct_fd, int *buffered_fd);
int mpk__prim_file_id(int fd, uint64_t id[2]); /* the same for no other file that exists: 0 or -errno */
/* A new file of mode 0600 in place of what had its name, so that no link leads elsewhere: a descriptor or -errno. */
int mpk__prim_create_file(const char *path);
int mpk__prim_duplicate(int fd); /* another descriptor of the same file, or -errno */
void mpk__prim_close(int fd);

/* All of it, or -errno. iov is changed. */
int mpk__prim_write(int fd, struct iovec *iov, int n, uint64_t offset);

/* Several of these, handed to the kernel in one call, which saves most of what small ones cost the processor: through a
 * queue, which one thread uses at a time. Where there is none (0) they go one by one. */
typedef struct mpk__write {
    struct iovec *iov;
    int n;
    uint64_t offset;
} mpk__write;
unsigned long mpk__prim_open_queue(unsigned depth);
void mpk__prim_close_queue(unsigned long queue);
int mpk__prim_write_all(unsigned long queue, int fd, mpk__write *writes, int n); /* the writes are changed */

/* Bytes read, fewer than asked only at the end of the file, or -errno. */
int64_t mpk__prim_read(int fd, void *memory, size_t bytes, uint64_t offset);
/* Starts writing buffered data out, so that it neither piles up nor waits for the sync. */
void mpk__prim_flush_range(int fd, uint64_t offset, size_t bytes);
int mpk__prim_wait_range(int fd, uint64_t offset, size_t bytes); /* and waits for it: 0 or -errno */
int mpk__prim_sync(int fd); /* data is on stable storage: 0 or -errno */
/* The names in the folder that holds `path` are on stable storage, which syncing a file does not promise. */
int mpk__prim_sync_folder_of(const char *path);

#endif
