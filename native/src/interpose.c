/* Interposition by relocation entries. A dynamically linked object calls a foreign function through an entry in its
 * global offset table (GOT), and the object's relocations say which entry belongs to which name. So interposition needs no
 * order of loading and no environment variable, and it can be undone: the previous value of each rewritten entry is kept.
 *
 * A replacement calls what the object would have called otherwise, so that wrappers of the library (profilers, tracers, file
 * systems in user space) still see each call. That is the value of the entry where it is bound, and otherwise what the loader
 * would find for it; see `definition`.
 *
 * An object that was patched keeps a reference (dlopen) until its entries are restored. The object of this file is not
 * patched, so that the hooks and the drain threads call the real functions. Calls inside one object that do not go through an
 * entry, such as those of the C library among its own functions, cannot be intercepted. */
#define _GNU_SOURCE
#include "interpose.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "symbols.h"
#include "prim.h"

#if defined(__x86_64__)
#define RELOC_CALL R_X86_64_JUMP_SLOT
#define RELOC_DATA R_X86_64_GLOB_DAT
#define RELOC_POINTER R_X86_64_64
#elif defined(__aarch64__)
#define RELOC_CALL R_AARCH64_JUMP_SLOT
#define RELOC_DATA R_AARCH64_GLOB_DAT
#define RELOC_POINTER R_AARCH64_ABS64
#else
#error "mpickpt knows the relocations of x86-64 and aarch64"
#endif

typedef struct object {
    char *path; /* empty: the main program */
    ElfW(Addr) base;
    const ElfW(Phdr) * headers;
    int n_headers;
    void *pin; /* a handle of dlopen */
    bool patched;
    bool is_open; /* its read-only pages are writable for the moment; or for good, where they cannot be closed again */
    int refused; /* -errno: entries that cannot be written to were left as they are */
} object;

typedef struct rewrite {
    void **entry;
    void *before, *after;
    size_t object;
    unsigned char *use; /* of the definition that is called now */
} rewrite;

static object *objects;
static size_t n_objects;
static rewrite *rewrites;
static size_t n_rewrites, room_for_rewrites;
static void *program; /* a handle for all that is visible to everybody; open while entries are rewritten */
static unsigned long long loads_seen; /* the loader's own count of objects ever loaded */

static int count_loads(struct dl_phdr_info *info, size_t size, void *out) {
    (void)size;
    *(unsigned long long *)out = info->dlpi_adds;
    return 1; /* one object is enough: the count is the same for all */
}

bool mpk__interpose_is_stale(void) {
    unsigned long long loads = 0;
    dl_iterate_phdr(count_loads, &loads);
    return loads != loads_seen;
}

static bool is_known(const char *path, ElfW(Addr) base) {
    for (size_t i = 0; i < n_objects; i++)
        if (objects[i].base == base && strcmp(objects[i].path, path) == 0) return true;
    return false;
}

/* Notes an object that was not seen before. The loader's lock is held: nothing else is done here. */
static int note_object(struct dl_phdr_info *info, size_t size, void *out) {
    (void)size;
    if (mpk__elf_has_address(info->dlpi_addr, info->dlpi_phdr, info->dlpi_phnum, (void *)&note_object))
        return 0; /* ourselves */
    const char *path = info->dlpi_name ? info->dlpi_name : "";
    if (is_known(path, info->dlpi_addr)) return 0;
    object *grown = realloc(objects, sizeof *grown * (n_objects + 1));
    char *copy = strdup(path);
    if (grown) objects = grown;
    if (!grown || !copy) {
        free(copy);
        *(int *)out = -ENOMEM;
        return 1;
    }
    objects[n_objects++] = (object){
        .path = copy, .base = info->dlpi_addr, .headers = info->dlpi_phdr, .n_headers = info->dlpi_phnum};
    return 0;
}

/* The pages of a segment that the loader made read-only when it was done with them; none of another segment. */
static size_t read_only_pages(const object *o, const ElfW(Phdr) * p, uintptr_t *from) {
    size_t page = mpk__prim_page_size();
    *from = (o->base + p->p_vaddr) / page * page;
    uintptr_t to = (o->base + p->p_vaddr + p->p_memsz) / page * page; /* as the loader rounds */
    return p->p_type == PT_GNU_RELRO && to > *from ? to - *from : 0;
}

static int protect_read_only(const object *o, bool open) {
    int error = 0;
    for (int i = 0; i < o->n_headers; i++) {
        uintptr_t from;
        size_t bytes = read_only_pages(o, &o->headers[i], &from);
        int failed = bytes ? mpk__prim_protect_in_handler((void *)from, bytes, open) : 0;
        if (failed && !error) error = failed;
    }
    return error;
}

/* Makes them read-only again. Where that fails (the process may have no room for another mapping) it is tried again later. */
static void close_read_only(object *o) {
    if (o->is_open && protect_read_only(o, false) == 0) o->is_open = false;
}

/* 0 when the page of an entry may be written to. Otherwise it is as it was: the pages are sealed (mseal), say. */
static int make_writable(object *o, const void *entry) {
    bool is_read_only = false;
    for (int i = 0; i < o->n_headers; i++) {
        const ElfW(Phdr) *p = &o->headers[i];
        uintptr_t from, at = (uintptr_t)entry, start = o->base + p->p_vaddr;
        if (p->p_type == PT_LOAD && !(p->p_flags & PF_W) && at >= start && at < start + p->p_memsz) return -EACCES;
        size_t bytes = read_only_pages(o, p, &from);
        is_read_only = is_read_only || (at >= from && at < from + bytes);
    }
    if (!is_read_only || o->is_open) return 0;
    if (o->refused) return o->refused;
    int error = protect_read_only(o, true);
    if (error)
        protect_read_only(o, false); /* of several mappings those before the first that was refused are open */
    else
        o->is_open = true;
    return error;
}

static int remember(rewrite e) {
    if (n_rewrites == room_for_rewrites) {
        size_t room = room_for_rewrites ? 2 * room_for_rewrites : 256;
        rewrite *grown = realloc(rewrites, sizeof *grown * room);
        if (!grown) return -ENOMEM;
        rewrites = grown;
        room_for_rewrites = room;
    }
    rewrites[n_rewrites++] = e;
    return 0;
}

/* -- what the program would call --------------------------------------------------------------------------------------- */

/* What an object's unbound entry will lead to: first the program, what was preloaded, its libraries and all that was made
 * global, then the object's own libraries. (RTLD_DEEPBIND turns that round; it cannot be asked for, and matters only for
 * a function that the object has not called yet.) */
static void *definition(const object *o, const char *name, const char *version) {
    void *found = mpk__elf_find(program, name, version);
    return found ? found : mpk__elf_find(o->pin, name, version);
}

static bool is_inside(const object *o, const void *address) {
    return mpk__elf_has_address(o->base, o->headers, o->n_headers, address);
}

/* Until its first call an entry leads into its own object, from where the loader is called. */
static bool is_bound(const object *o, const ElfW(Sym) * symbol, const void *value) {
    bool is_own = symbol->st_shndx != SHN_UNDEF && (uintptr_t)value == o->base + symbol->st_value;
    return is_own || !is_inside(o, value);
}

/* -- the hooks ---------------------------------------------------------------------------------------------------------- */

/* Where `real` is, or can be, noted; -1: there are too many definitions. What a replacement called in an earlier session is
 * given up last: another tool may have kept the replacement. */
static int index_of(const mpk__hook *hook, const void *real) {
    for (int i = 0; i < MPK__DEFINITIONS; i++)
        if (hook->reals[i] == real) return i;
    for (int i = 0; i < MPK__DEFINITIONS; i++)
        if (!hook->reals[i]) return i;
    for (int i = 0; i < MPK__DEFINITIONS; i++)
        if (hook->uses[i] == MPK__UNUSED) return i;
    return -1;
}

static bool is_replaced(const mpk__hook *hook, const void *value) {
    for (int i = 0; i < MPK__DEFINITIONS; i++)
        if (hook->replacements[i] == value) return true;
    return false;
}

static mpk__hook *find_hook(mpk__hook **hooks, size_t n, const char *name) {
    if (strncmp(name, "PMPI_", 5) == 0) name++;
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        int order = strcmp(hooks[mid]->name, name);
        if (order == 0) return hooks[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static void say_that_one_is_left_alone(void) {
    static bool said;
    if (!said)
        mpk__prim_say_in_handler("mpickpt: more definitions of one function than the memory guard can intercept: "
                                 "calls of the others are not guarded\n");
    said = true;
}

static int patch(const mpk__dynamic *d, const ElfW(Rela) * relocs, size_t n, size_t index, mpk__hook **hooks, size_t n_hooks) {
    object *o = &objects[index];
    for (size_t i = 0; i < n; i++) {
        unsigned long type = ELF64_R_TYPE(relocs[i].r_info);
        if (type != RELOC_CALL && type != RELOC_DATA && type != RELOC_POINTER) continue;
        const ElfW(Sym) *symbol = &d->symbols[ELF64_R_SYM(relocs[i].r_info)];
        mpk__hook *hook = find_hook(hooks, n_hooks, d->names + symbol->st_name);
        if (!hook || (type != RELOC_CALL && relocs[i].r_addend != 0)) continue;
        void **entry = (void **)(o->base + relocs[i].r_offset);
        void *now = __atomic_load_n(entry, __ATOMIC_ACQUIRE);
        if (!now || is_replaced(hook, now)) continue; /* a weak function that is not there; or done */
        if (!o->pin) o->pin = dlopen(*o->path ? o->path : NULL, RTLD_LAZY | RTLD_NOLOAD);
        if (!o->pin) return 0; /* it is being unloaded */
        const char *name = d->names + symbol->st_name;
        bool is_profiling_name = name[0] == 'P';
        bool ask = type == RELOC_POINTER || (type == RELOC_CALL && !is_bound(o, symbol, now));
        void *real = ask ? definition(o, name, mpk__elf_version_of(d, ELF64_R_SYM(relocs[i].r_info))) : now;
        if (!real) continue;
        if (type == RELOC_POINTER && now != real) continue; /* data that the program has changed */
        if (is_profiling_name && is_inside(o, real)) continue; /* the MPI library's calls of itself are not the program's */
        int refused = make_writable(o, entry);
        if (refused) {
            o->refused = refused;
            continue;
        }
        int which = index_of(hook, real);
        if (which < 0) {
            say_that_one_is_left_alone();
            continue;
        }
        void *replacement = hook->replacements[which];
        int error = remember((rewrite){entry, now, replacement, index, &hook->uses[which]});
        if (error) return error;
        hook->reals[which] = real;
        if (hook->uses[which] == MPK__UNUSED) hook->uses[which] = MPK__USED;
        o->patched = true;
        __atomic_store_n(entry, replacement, __ATOMIC_RELEASE);
    }
    return 0;
}

int mpk__interpose_apply(mpk__hook **hooks, size_t n) {
    size_t first_new = n_objects;
    int error = 0;
    dl_iterate_phdr(count_loads, &loads_seen);
    dl_iterate_phdr(note_object, &error);
    program = dlopen(NULL, RTLD_LAZY | RTLD_NOLOAD);
    if (!program && !error) error = -ENOENT;
    for (size_t i = first_new; i < n_objects && !error; i++) {
        const object *o = &objects[i];
        mpk__dynamic d = mpk__elf_read_object(o->base, o->headers, o->n_headers);
        error = patch(&d, d.calls, d.n_calls, i, hooks, n);
        if (!error) error = patch(&d, d.others, d.n_others, i, hooks, n);
    }
    for (size_t i = 0; i < n_objects; i++) close_read_only(&objects[i]);
    if (program) dlclose(program);
    dlerror(); /* what was not found is no error of the program's */
    return error;
}

const char *mpk__interpose_refused(size_t n, int *error) {
    for (size_t i = 0; i < n_objects; i++)
        if (objects[i].refused && n-- == 0) {
            *error = objects[i].refused;
            return objects[i].path;
        }
    return NULL;
}

void mpk__interpose_undo(mpk__hook **hooks, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < MPK__DEFINITIONS; k++)
            if (hooks[i]->uses[k] == MPK__USED) hooks[i]->uses[k] = MPK__UNUSED;
    for (size_t i = 0; i < n_objects; i++) objects[i].refused = 0; /* from here on: what was sealed after it was rewritten */
    for (size_t i = 0; i < n_rewrites; i++) {
        object *o = &objects[rewrites[i].object];
        if (__atomic_load_n(rewrites[i].entry, __ATOMIC_ACQUIRE) != rewrites[i].after) continue;
        int refused = make_writable(o, rewrites[i].entry);
        if (refused) { /* it stays: the replacement hands on what it gets, and a next session finds it in place */
            o->refused = refused;
            *rewrites[i].use = MPK__USED_FOR_GOOD;
        } else {
            __atomic_store_n(rewrites[i].entry, rewrites[i].before, __ATOMIC_RELEASE);
        }
    }
    for (size_t i = 0; i < n_objects; i++) {
        close_read_only(&objects[i]);
        if (objects[i].pin) dlclose(objects[i].pin);
        free(objects[i].path);
    }
    free(objects);
    free(rewrites);
    objects = NULL;
    rewrites = NULL;
    n_objects = n_rewrites = room_for_rewrites = 0;
    loads_seen = 0;
}

void *mpk__interpose_find(const char *name) {
    for (size_t i = 0; i < n_objects; i++) {
        void *found = objects[i].patched ? dlsym(objects[i].pin, name) : NULL;
        if (found) return found;
    }
    return NULL;
}
