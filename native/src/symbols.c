/* ELF as far as interposition needs it. Pure but for what the loader itself is asked (dladdr, dlsym); called by interpose.c alone. */
#define _GNU_SOURCE
#include "symbols.h"

#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>

#define VERSION_INDEX 0x7fff /* of an entry of DT_VERSYM, beside the bit that hides the symbol */

bool mpk__elf_has_address(ElfW(Addr) base, const ElfW(Phdr) * headers, int n, const void *address) {
    for (int i = 0; i < n; i++) {
        uintptr_t from = base + headers[i].p_vaddr;
        if (headers[i].p_type != PT_LOAD) continue;
        if ((uintptr_t)address >= from && (uintptr_t)address < from + headers[i].p_memsz) return true;
    }
    return false;
}

mpk__dynamic mpk__elf_read(ElfW(Addr) base, const ElfW(Dyn) * at) {
    mpk__dynamic d = {0};
    bool calls_are_rela = true;
    for (; at && at->d_tag != DT_NULL; at++) {
        /* glibc has turned these into addresses, but for those of objects that it did not relocate (the vdso). */
        uintptr_t value = at->d_un.d_ptr, address = value < base ? base + value : value;
        switch (at->d_tag) {
        case DT_SYMTAB: d.symbols = (const ElfW(Sym) *)address; break;
        case DT_STRTAB: d.names = (const char *)address; break;
        case DT_JMPREL: d.calls = (const ElfW(Rela) *)address; break;
        case DT_PLTRELSZ: d.n_calls = at->d_un.d_val / sizeof(ElfW(Rela)); break;
        case DT_PLTREL: calls_are_rela = at->d_un.d_val == DT_RELA; break;
        case DT_RELA: d.others = (const ElfW(Rela) *)address; break;
        case DT_RELASZ: d.n_others = at->d_un.d_val / sizeof(ElfW(Rela)); break;
        case DT_VERSYM: d.versions = (const ElfW(Half) *)address; break;
        case DT_VERNEED: d.needed_versions = (const ElfW(Verneed) *)address; break;
        case DT_VERNEEDNUM: d.n_needed_versions = at->d_un.d_val; break;
        default: break;
        }
    }
    if (!d.symbols || !d.names) d = (mpk__dynamic){0};
    if (!d.calls || !calls_are_rela) d.n_calls = 0;
    if (!d.others) d.n_others = 0;
    return d;
}

mpk__dynamic mpk__elf_read_object(ElfW(Addr) base, const ElfW(Phdr) * headers, int n_headers) {
    const ElfW(Dyn) *at = NULL;
    for (int i = 0; i < n_headers; i++)
        if (headers[i].p_type == PT_DYNAMIC) at = (const ElfW(Dyn) *)(base + headers[i].p_vaddr);
    return mpk__elf_read(base, at);
}

const char *mpk__elf_version_of(const mpk__dynamic *d, size_t symbol) {
    unsigned wanted = d->versions && d->needed_versions ? d->versions[symbol] & VERSION_INDEX : VER_NDX_GLOBAL;
    if (wanted <= VER_NDX_GLOBAL) return NULL;
    const char *library = (const char *)d->needed_versions;
    for (size_t i = 0; i < d->n_needed_versions; i++) {
        const ElfW(Verneed) *of_library = (const ElfW(Verneed) *)library;
        const char *at = library + of_library->vn_aux;
        for (unsigned k = 0; k < of_library->vn_cnt; k++) {
            const ElfW(Vernaux) *version = (const ElfW(Vernaux) *)at;
            if ((version->vna_other & VERSION_INDEX) == wanted) return d->names + version->vna_name;
            at += version->vna_next;
        }
        library += of_library->vn_next;
    }
    return NULL;
}

/* Whether a definition carries a version. One that has none serves all who ask: wrappers are mostly built so. */
static bool has_version(void *definition) {
    Dl_info where;
    const ElfW(Sym) *symbol = NULL;
    struct link_map *in = NULL;
    if (!dladdr1(definition, &where, (void **)&symbol, RTLD_DL_SYMENT) || !symbol) return false;
    if (!dladdr1(definition, &where, (void **)&in, RTLD_DL_LINKMAP) || !in) return false;
    mpk__dynamic d = mpk__elf_read(in->l_addr, in->l_ld);
    return d.versions && (d.versions[symbol - d.symbols] & VERSION_INDEX) > VER_NDX_GLOBAL;
}

static bool in_one_object(void *a, void *b) {
    Dl_info of_a, of_b;
    return dladdr(a, &of_a) && dladdr(b, &of_b) && of_a.dli_fbase == of_b.dli_fbase;
}

/* dlsym heeds no version, and dlvsym takes no definition without one from an object that has versions. */
void *mpk__elf_find(void *scope, const char *name, const char *version) {
    void *first = dlsym(scope, name);
    void *exact = first && version ? dlvsym(scope, name, version) : NULL;
    if (!exact || exact == first) return first;
    return in_one_object(first, exact) || has_version(first) ? exact : first;
}
