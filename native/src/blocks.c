/* Regions and blocks: where each one lies, and what its pages are. Regions are added and divided by the owner of the session;
 * what ends in _in_handler any thread may ask while the session is sealed. */
#define _GNU_SOURCE /* qsort_r */
#include "blocks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* -- regions ---------------------------------------------------------------------------------------------------------- */

/* What of the region can be protected: its own whole pages. */
static void split_region(mpk__region *r, bool owned) {
    size_t page = mpk__prim_page_size();
    size_t lead = (page - (uintptr_t)r->memory % page) % page;
    r->head = lead < r->bytes ? lead : r->bytes;
    r->pages = r->memory + r->head;
    size_t rest = r->bytes - r->head;
    r->data = owned ? rest : rest / page * page;
    r->tail = rest - r->data;
    r->span = (r->data + page - 1) / page * page;
}

int mpk__regions_add(mpk__blocks *blocks, void *memory, size_t bytes, bool owned) {
    if ((!memory && bytes) || (owned && (uintptr_t)memory % mpk__prim_page_size())) return -EINVAL;
    mpk__region *grown = realloc(blocks->regions, sizeof *grown * (blocks->n_regions + 1));
    if (!grown) return -ENOMEM;
    blocks->regions = grown;
    mpk__region r = {.memory = memory, .bytes = bytes, .mapping = owned ? MPK_MAPPED_PRIVATE : MPK_MAPPING_UNKNOWN};
    split_region(&r, owned);
    r.edges = malloc(r.head + r.tail + 1); /* never of size 0, which may be NULL */
    if (!r.edges) return -ENOMEM;
    blocks->regions[blocks->n_regions++] = r;
    return 0;
}

void mpk__regions_forget(mpk__blocks *blocks) {
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        free(blocks->regions[i].edges);
        free(blocks->regions[i].mapped_path);
    }
    free(blocks->regions);
    blocks->regions = NULL;
    blocks->n_regions = 0;
}

/* -- blocks ----------------------------------------------------------------------------------------------------------- */

static int compare_addresses(const void *one, const void *other, void *regions) {
    const mpk__region *a = (const mpk__region *)regions + *(const uint32_t *)one,
                      *b = (const mpk__region *)regions + *(const uint32_t *)other;
    if (a->memory != b->memory) return a->memory < b->memory ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

/* -EEXIST when two overlap. */
static int sort_regions(mpk__blocks *blocks) {
    for (uint32_t i = 0; i < blocks->n_regions; i++) blocks->by_address[i] = i;
    qsort_r(blocks->by_address, blocks->n_regions, sizeof *blocks->by_address, compare_addresses, blocks->regions);
    for (uint32_t i = 1; i < blocks->n_regions; i++) {
        const mpk__region *last = &blocks->regions[blocks->by_address[i - 1]];
        if (last->memory + last->bytes > blocks->regions[blocks->by_address[i]].memory) return -EEXIST;
    }
    return 0;
}

int mpk__blocks_create(mpk__blocks *blocks, size_t block_bytes) {
    uint64_t n = 0;
    blocks->block_bytes = block_bytes;
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        mpk__region *r = &blocks->regions[i];
        size_t of_region = (r->data + block_bytes - 1) / block_bytes;
        if (n + of_region > INT32_MAX) return -EINVAL; /* block_bytes is far too small for this much memory */
        r->first_block = (uint32_t)n;
        r->n_blocks = (uint32_t)of_region;
        n += of_region;
    }
    blocks->n = (uint32_t)n;
    size_t room = n ? n : 1;
    blocks->words = calloc(room, sizeof *blocks->words);
    blocks->region_of = calloc(room, sizeof *blocks->region_of);
    blocks->crc = calloc(room, sizeof *blocks->crc);
    blocks->by_address = calloc(blocks->n_regions + 1, sizeof *blocks->by_address);
    blocks->opened = calloc(room, sizeof *blocks->opened);
    blocks->pins = calloc(room, sizeof *blocks->pins);
    if (!blocks->words || !blocks->region_of || !blocks->crc || !blocks->by_address || !blocks->opened || !blocks->pins)
        return -ENOMEM;
    memset((void *)blocks->opened, 1, room);
    for (uint32_t i = 0; i < blocks->n_regions; i++)
        for (uint32_t b = 0; b < blocks->regions[i].n_blocks; b++) blocks->region_of[blocks->regions[i].first_block + b] = i;
    blocks->is_distrusted = false;
    return sort_regions(blocks);
}

void mpk__blocks_destroy(mpk__blocks *blocks) {
    free((void *)blocks->words);
    free((void *)blocks->opened);
    free((void *)blocks->pins);
    free(blocks->region_of);
    free(blocks->crc);
    free(blocks->by_address);
    blocks->words = NULL;
    blocks->opened = NULL;
    blocks->pins = NULL;
    blocks->region_of = blocks->by_address = NULL;
    blocks->crc = NULL;
    blocks->n = 0;
    atomic_store(&blocks->n_closed, 0);
}

bool mpk__blocks_are_done(const mpk__blocks *blocks) {
    uint32_t n = 0;
    for (uint32_t b = 0; b < blocks->n; b++) {
        enum mpk__block_state state = mpk__state_of(atomic_load(&blocks->words[b]));
        n += state == MPK__WRITABLE || state == MPK__CLEAN;
    }
    return n == blocks->n;
}

bool mpk__blocks_are_counted(const mpk__blocks *blocks) {
    uint32_t n = 0;
    for (uint32_t b = 0; b < blocks->n; b++) n += !atomic_load(&blocks->opened[b]);
    return n == atomic_load(&blocks->n_closed);
}

/* -- places ----------------------------------------------------------------------------------------------------------- */

mpk__place mpk__block_place_in_handler(const mpk__blocks *blocks, uint32_t b) {
    MPK__ASSERT(b < blocks->n);
    const mpk__region *r = &blocks->regions[blocks->region_of[b]];
    size_t from = (size_t)(b - r->first_block) * blocks->block_bytes;
    size_t bytes = r->data - from < blocks->block_bytes ? r->data - from : blocks->block_bytes;
    size_t span = r->span - from < blocks->block_bytes ? r->span - from : blocks->block_bytes;
    return (mpk__place){.region = r, .memory = r->pages + from, .bytes = bytes, .span = span, .offset = r->head + from};
}

int64_t mpk__block_at_in_handler(const mpk__blocks *blocks, uintptr_t address) {
    size_t low = 0, high = blocks->n_regions;
    while (low < high) { /* the first region that ends behind address */
        size_t mid = (low + high) / 2;
        const mpk__region *r = &blocks->regions[blocks->by_address[mid]];
        if ((uintptr_t)r->pages + r->span <= address)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == blocks->n_regions) return -1;
    const mpk__region *r = &blocks->regions[blocks->by_address[low]];
    if (address < (uintptr_t)r->pages) return -1;
    return r->first_block + (int64_t)((address - (uintptr_t)r->pages) / blocks->block_bytes);
}

bool mpk__block_beside_in_handler(const mpk__blocks *blocks, uint32_t b, bool behind, uint32_t *beside) {
    const mpk__region *r = &blocks->regions[blocks->region_of[b]];
    *beside = behind ? b + 1 : b - 1;
    if (behind ? b + 1 < r->first_block + r->n_blocks : b > r->first_block) return true;
    for (uint32_t i = 0; i < blocks->n_regions; i++) {
        const mpk__region *other = &blocks->regions[i];
        if (!other->n_blocks || other->mapping != MPK_MAPPED_PRIVATE) continue;
        if (behind ? other->pages != r->pages + r->span : other->pages + other->span != r->pages) continue;
        *beside = behind ? other->first_block : other->first_block + other->n_blocks - 1;
        return true;
    }
    return false;
}

void mpk__checksum_in_handler(const mpk__blocks *blocks, const mpk__place *place, const uint8_t *image, uint32_t crc[2]) {
    size_t before = mpk__bytes_before_border(blocks, place);
    crc[0] = mpk_crc32c(0, image, before);
    crc[1] = mpk_crc32c(0, image + before, place->bytes - before);
}

/* -- protection ------------------------------------------------------------------------------------------------------- */

/* Regions that lie side by side may be one mapping, which to split there may be no room; opened in one call they are only
 * joined. Where that fails, some pages are not there: a child has no pages that it was not to inherit (MADV_DONTFORK, which
 * libraries of RDMA ask for). */
void mpk__blocks_open_all(const mpk__blocks *blocks) {
    size_t page = mpk__prim_page_size();
    for (uint32_t i = 0, next; i < blocks->n_regions; i = next) {
        const mpk__region *first = &blocks->regions[blocks->by_address[i]];
        size_t span = first->mapping == MPK_MAPPED_PRIVATE ? first->span : 0;
        for (next = i + 1; next < blocks->n_regions; next++) {
            const mpk__region *other = &blocks->regions[blocks->by_address[next]];
            if (!span || other->pages != first->pages + span || other->mapping != MPK_MAPPED_PRIVATE) break;
            span += other->span;
        }
        if (!span || mpk__prim_protect_in_handler(first->pages, span, true) == 0) continue;
        for (size_t at = 0; at < span; at += page) mpk__prim_protect_in_handler(first->pages + at, page, true);
    }
}
