/* How the memory of the regions is mapped, and what follows from it. The owner of the session looks it up once for each region, at
 * the first safe point after the region was added. Memory of mpk_alloc need not be looked up.
 *
 *   private, anonymous   is write-protected: nobody else can write to it, but by the calls that the guard knows
 *   private, of a file   shows the file where it was not written to yet. Its pages are made the process's own, and then are as above
 *   shared               others may have it mapped too, in this process or another, and their writes cause no fault here:
 *                        it is pinned, which means copied at each cut and never protected
 *   of huge pages        (hugetlbfs) blocks are parts of a page, which cannot be protected alone: pinned too
 *   of an MPI window     that MPI allocated: peers write to it through their network cards: pinned too
 *
 * The pool has room for all blocks that are pinned. A cut that waited for room would block the program for long, and the last
 * blocks that it copies would be the memory of a later instant. */
#include "mapping.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"
#include "session.h"
#include "windows.h"

static bool is_pinned(const mpk__region *r) { return r->mapping >= MPK_MAPPED_SHARED; }

/* The whole pages that a region touches, of others' data too. */
static uintptr_t first_page(const mpk__region *r) {
    return (uintptr_t)r->memory / mpk__prim_page_size() * mpk__prim_page_size();
}
static uintptr_t behind_pages(const mpk__region *r) {
    size_t page = mpk__prim_page_size();
    return ((uintptr_t)r->memory + r->bytes + page - 1) / page * page;
}

typedef struct search {
    mpk_session *s;
    bool
        of_files; /* the second time: of mappings of files the sizes of their pages are needed, which take longer to find out */
    uint32_t n_sorted; /* regions that are looked up, */
    uint32_t *sorted; /* by address; */
    uint32_t at; /* those below end before the mapping that comes next */
} search;

static void note(mpk__region *r, enum mpk_mapping mapping, const char *path) {
    if (r->mapping >= mapping) return;
    r->mapping = mapping;
    free(r->mapped_path);
    r->mapped_path = path && *path ? strdup(path) : NULL; /* for a message: it may be missing */
}

/* The pages of a mapping become the process's own, step by step. */
static int own_pages(const mpk_session *s, uintptr_t from, uintptr_t to) {
    for (uintptr_t at = from; at < to;) {
        if (!mpk__may_take(&s->taking, at - from)) return -ENOMEM;
        size_t step = to - at < MPK_TAKING_STEP ? to - at : MPK_TAKING_STEP;
        int error = mpk__prim_own_pages((void *)at, step);
        if (error) return error;
        at += step;
    }
    return 0;
}

static int take_part(const mpk_session *s, mpk__region *r, const mpk__mapped *m, uintptr_t from, uintptr_t to, bool of_files) {
    if (!of_files) {
        r->mapped_bytes += to - from;
        note(r, m->is_shared ? MPK_MAPPED_SHARED : MPK_MAPPED_PRIVATE, m->path);
        if (m->has_file && !m->is_shared) r->has_file = true;
    } else if (m->has_file && !m->is_shared) {
        if (m->page_bytes > mpk__prim_page_size())
            note(r, MPK_MAPPED_HUGE, m->path);
        else
            return own_pages(s, from, to);
    }
    return 0;
}

/* Called for one mapping after the other, by ascending addresses. */
static int take_mapping(void *context, const mpk__mapped *m) {
    search *all = context;
    const mpk_session *s = all->s;
    while (all->at < all->n_sorted && behind_pages(&s->blocks.regions[all->sorted[all->at]]) <= m->from) all->at++;
    for (uint32_t i = all->at; i < all->n_sorted; i++) {
        mpk__region *r = &s->blocks.regions[all->sorted[i]];
        uintptr_t from = first_page(r), to = behind_pages(r);
        if (from >= m->to) break;
        if (all->of_files && !r->has_file) continue;
        int error = take_part(s, r, m, from > m->from ? from : m->from, to < m->to ? to : m->to, all->of_files);
        if (error) return r->mapping_error = error;
    }
    return 0;
}

static int sort_unknown(search *all) {
    const mpk_session *s = all->s;
    all->sorted = calloc(s->blocks.n_regions + 1, sizeof *all->sorted);
    if (!all->sorted) return -ENOMEM;
    for (uint32_t i = 0; i < s->blocks.n_regions; i++) {
        mpk__region *r = &s->blocks.regions[i];
        if (r->mapping != MPK_MAPPING_UNKNOWN || r->bytes == 0) continue;
        r->mapped_bytes = 0;
        r->has_file = false;
        uint32_t at = all->n_sorted++;
        for (; at > 0 && s->blocks.regions[all->sorted[at - 1]].memory > r->memory; at--) all->sorted[at] = all->sorted[at - 1];
        all->sorted[at] = i;
    }
    return 0;
}

static int check_mapped(const search *all) {
    for (uint32_t i = 0; i < all->n_sorted; i++) {
        mpk__region *r = &all->s->blocks.regions[all->sorted[i]];
        if (mpk__is_in_window(r->memory, r->bytes)) note(r, MPK_MAPPED_WINDOW, NULL);
        if (r->mapped_bytes < behind_pages(r) - first_page(r)) return r->mapping_error = -EFAULT;
    }
    return 0;
}

int mpk_session_look_up(mpk_session *s) {
    search all = {.s = s};
    bool has_files = false;
    int error = sort_unknown(&all);
    if (!error && all.n_sorted) error = mpk__prim_mappings(false, take_mapping, &all);
    if (!error) error = check_mapped(&all);
    for (uint32_t i = 0; i < all.n_sorted; i++) has_files |= s->blocks.regions[all.sorted[i]].has_file;
    if (!error && has_files) {
        all.of_files = true;
        all.at = 0;
        error = mpk__prim_mappings(true, take_mapping, &all);
    }
    for (uint32_t i = 0; error && i < all.n_sorted; i++) s->blocks.regions[all.sorted[i]].mapping = MPK_MAPPING_UNKNOWN;
    free(all.sorted);
    return error;
}

int mpk_region_memory(const mpk_session *s, uint32_t region, mpk_memory *out) {
    if (region >= s->blocks.n_regions) return -EINVAL;
    const mpk__region *r = &s->blocks.regions[region];
    *out = (mpk_memory){.mapping = r->mapping, .error = -r->mapping_error, .path = r->mapped_path ? r->mapped_path : ""};
    out->is_pinned = is_pinned(r);
    out->absent_bytes = mpk__prim_absent_bytes(r->memory, r->bytes);
    return 0;
}

void mpk__pin_blocks(mpk__blocks *blocks) {
    blocks->n_pinned = 0;
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *r = &blocks->regions[i];
        if (!is_pinned(r)) continue;
        for (uint32_t b = r->first_block; b < r->first_block + r->n_blocks; b++) atomic_fetch_add(&blocks->pins[b], 1);
        blocks->n_pinned += r->n_blocks;
    }
}

/* A region that others may write to is compared with its copies after all of it was copied. If they differ it was written to
 * meanwhile, and the copies may be of two instants. */
static bool is_torn(const mpk__blocks *blocks, const mpk__region *r) {
    if (memcmp(r->edges, r->memory, r->head) != 0 || memcmp(r->edges + r->head, r->pages + r->data, r->tail) != 0) return true;
    for (uint32_t b = r->first_block; b < r->first_block + r->n_blocks; b++) {
        mpk__place place = mpk__block_place_in_handler(blocks, b);
        uint32_t now[2];
        mpk__chaos();
        mpk__checksum_in_handler(blocks, &place, place.memory, now);
        if (now[0] != blocks->crc[b][0] || now[1] != blocks->crc[b][1]) return true;
    }
    return false;
}

int32_t mpk__find_torn_region(const mpk__blocks *blocks) {
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *r = &blocks->regions[i];
        if (is_pinned(r) && r->mapping != MPK_MAPPED_HUGE && is_torn(blocks, r)) return (int32_t)i;
    }
    return -1;
}
