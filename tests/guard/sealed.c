/* A library that calls read() through an entry in pages which the loader made read-only, and that can seal these pages
 * (mseal, Linux 6.10), as a hardened program does. */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MSEAL 462

/* Addresses that the loader fills in: pages before that of the entry. */
#define FOUR(x) x, x, x, x
#define MANY(x) FOUR(FOUR(FOUR(x)))
const void *const table[] = {FOUR(FOUR(MANY(&table)))};

static int find(struct dl_phdr_info *info, size_t size, void *out) {
    unsigned long *found = out;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        unsigned long from = (info->dlpi_addr + p->p_vaddr) & ~4095ul;
        unsigned long to = (info->dlpi_addr + p->p_vaddr + p->p_memsz) & ~4095ul;
        if (p->p_type != PT_GNU_RELRO || (unsigned long)table < from || (unsigned long)table >= to) continue;
        found[0] = from;
        found[1] = to;
    }
    return 0;
}

/* Seals all, or only the last page; gives where they begin, or -errno. */
long seal(int all) {
    unsigned long found[2] = {0, 0};
    dl_iterate_phdr(find, found);
    if (found[1] < found[0] + 2 * 4096) return -ENOENT;
    unsigned long from = all ? found[0] : found[1] - 4096;
    return syscall(MSEAL, from, found[1] - from, 0) == 0 ? (long)found[0] : -errno;
}

long call_read(int fd, void *to, long n) {
    long got = read(fd, to, n);
    return got < 0 ? -errno : got;
}
