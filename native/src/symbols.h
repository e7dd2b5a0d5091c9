/* What an ELF object says of itself: its symbols, its relocations, and the versions that it asks for; and where a function is
 * found, as the loader would search. */
#ifndef MPK_SYMBOLS_H
#define MPK_SYMBOLS_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct mpk__dynamic {
    const ElfW(Sym) * symbols;
    const char *names;
    const ElfW(Rela) * calls, *others;
    size_t n_calls, n_others;
    const ElfW(Half) * versions; /* of each symbol, or NULL */
    const ElfW(Verneed) * needed_versions;
    size_t n_needed_versions;
} mpk__dynamic;

/* All zero for an object that has no symbols. */
mpk__dynamic mpk__elf_read(ElfW(Addr) base, const ElfW(Dyn) * at);
mpk__dynamic mpk__elf_read_object(ElfW(Addr) base, const ElfW(Phdr) * headers, int n_headers);
/* Whether an address lies in the segments of an object. */
bool mpk__elf_has_address(ElfW(Addr) base, const ElfW(Phdr) * headers, int n_headers, const void *address);
/* The version of a symbol that an object asks for; NULL: any. */
const char *mpk__elf_version_of(const mpk__dynamic *d, size_t symbol);
/* As the loader searches: the first object of a scope whose definition has the version that is asked for, or none. */
void *mpk__elf_find(void *scope, const char *name, const char *version);

#endif
