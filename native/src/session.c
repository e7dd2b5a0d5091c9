/* The life of a session: regions are added, sealed, cut any number of times, unsealed. All of it runs on the thread
 * that owns the session, while no other thread of the program writes to a region. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

#define SLICE_NS 100000000 /* of a wait for a drain, which the storage may hold up */
#define SWEEP_US 10000 /* a huge page in so long, or it is too slow for a sweep: 200 MiB/s */

void *mpk_alloc(size_t bytes, unsigned flags) { return mpk__prim_map(bytes, flags & MPK_ALLOC_HUGE); }
void mpk_free(void *memory, size_t bytes) { mpk__prim_unmap(memory, bytes); }

int mpk_session_create(mpk_session **out, unsigned flags) {
    mpk_session *s = calloc(1, sizeof *s);
    if (!s) return -ENOMEM;
    s->want_direct = !(flags & MPK_SESSION_BUFFERED);
    s->ignores_deadlines = flags & MPK_SESSION_BY_ADDRESS;
    s->unit_bytes = MPK__HUGE_PAGE;
    s->sweep_us = SWEEP_US;
    s->epoch.direct_fd = s->epoch.buffered_fd = -1;
    atomic_init(&s->untracked, -1);
    atomic_init(&s->torn_region, -1);
    *out = s;
    return 0;
}

void mpk_session_ask_before_taking(mpk_session *s, mpk_may_take *may, void *context) {
    s->may_take = may;
    s->may_take_context = context;
}

size_t mpk_session_pool_bytes(const mpk_session *s) { return s->pool.entry_bytes * s->pool.n_entries; }

static void forget_regions(mpk_session *s) {
    for (uint32_t i = 0; i < s->n_regions; i++) {
        free(s->regions[i].edges);
        free(s->regions[i].mapped_path);
    }
    free(s->regions);
    s->regions = NULL;
    s->n_regions = 0;
}

void mpk_session_destroy(mpk_session *s) {
    if (!s || mpk_session_unseal(s) != 0) return;
    free(s->stall_text);
    free(s);
}

int mpk_session_set_stall_limit(mpk_session *s, uint64_t limit_ns, const char *text) {
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy) return -ENOMEM;
    free(s->stall_text);
    s->stall_text = copy;
    s->stall_limit_ns = limit_ns;
    return 0;
}

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

int mpk_region_add(mpk_session *s, void *memory, size_t bytes, unsigned flags) {
    if (s->sealed) return -EBUSY;
    bool owned = flags & MPK_REGION_OWNED;
    if ((!memory && bytes) || (owned && (uintptr_t)memory % mpk__prim_page_size())) return -EINVAL;
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *other = &s->regions[i];
        if (bytes && other->bytes && (uint8_t *)memory < other->memory + other->bytes &&
            other->memory < (uint8_t *)memory + bytes)
            return -EEXIST;
    }
    mpk__region *grown = realloc(s->regions, sizeof *grown * (s->n_regions + 1));
    if (!grown) return -ENOMEM;
    s->regions = grown;
    mpk__region r = {.memory = memory, .bytes = bytes, .mapping = owned ? MPK_MAPPED_PRIVATE : MPK_MAPPING_UNKNOWN};
    split_region(&r, owned);
    r.edges = malloc(r.head + r.tail + 1); /* never of size 0, which may be NULL */
    if (!r.edges) return -ENOMEM;
    s->regions[s->n_regions++] = r;
    return 0;
}

static int64_t find_in_order(const mpk_session *s, uintptr_t address) {
    size_t low = 0, high = s->n_regions;
    while (low < high) { /* the first region that ends behind address */
        size_t mid = (low + high) / 2;
        const mpk__region *r = &s->regions[s->by_address[mid]];
        if ((uintptr_t)r->pages + r->span <= address)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == s->n_regions) return -1;
    const mpk__region *r = &s->regions[s->by_address[low]];
    return address >= (uintptr_t)r->pages ? (int64_t)s->by_address[low] : -1;
}

int64_t mpk__block_at_in_handler(const mpk_session *s, uintptr_t address) {
    int64_t i = find_in_order(s, address);
    if (i < 0) return -1;
    const mpk__region *r = &s->regions[i];
    return r->first_block + (int64_t)((address - (uintptr_t)r->pages) / s->block_bytes);
}

mpk__place mpk__block_place(const mpk_session *s, uint32_t b) {
    const mpk__region *r = &s->regions[s->block_region[b]];
    size_t from = (size_t)(b - r->first_block) * s->block_bytes;
    size_t bytes = r->data - from < s->block_bytes ? r->data - from : s->block_bytes;
    size_t span = r->span - from < s->block_bytes ? r->span - from : s->block_bytes;
    return (mpk__place){.region = r, .memory = r->pages + from, .bytes = bytes, .span = span, .offset = r->head + from};
}

void mpk__checksum_in_handler(const mpk_session *s, const mpk__place *place, const uint8_t *image, uint32_t crc[2]) {
    size_t before = mpk__bytes_before_border(s, place);
    crc[0] = mpk_crc32c(0, image, before);
    crc[1] = mpk_crc32c(0, image + before, place->bytes - before);
}

int mpk__session_is_valid(const mpk_session *s) {
    if (mpk__drain_is_open(s)) return 1; /* in motion: nothing can be said */
    if (atomic_load(&s->pool.used) != 0 || atomic_load(&s->pending) != 0) return 0;
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        enum mpk__block_state state = mpk__state_of(atomic_load(&s->blocks[b]));
        if (state != MPK__WRITABLE && state != MPK__CLEAN) return 0;
    }
    uint32_t free_entries = 0; /* each pool entry is on the free list, once */
    for (uint32_t i = (uint32_t)atomic_load(&s->pool.free_list); i && free_entries <= s->pool.n_entries; free_entries++)
        i = atomic_load(&s->pool.next[i - 1]);
    return free_entries == s->pool.n_entries;
}

static int number_blocks(mpk_session *s) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_regions; i++) {
        mpk__region *r = &s->regions[i];
        size_t blocks = (r->data + s->block_bytes - 1) / s->block_bytes;
        if (n + blocks > INT32_MAX) return -EINVAL; /* block_bytes is far too small for this much memory */
        r->first_block = (uint32_t)n;
        r->n_blocks = (uint32_t)blocks;
        n += blocks;
    }
    s->n_blocks = (uint32_t)n;
    size_t room = n ? n : 1;
    s->blocks = calloc(room, sizeof *s->blocks);
    s->block_region = calloc(room, sizeof *s->block_region);
    s->crc = calloc(room, sizeof *s->crc);
    s->by_address = calloc(s->n_regions + 1, sizeof *s->by_address);
    s->opened = calloc(room, sizeof *s->opened);
    s->pins = calloc(room, sizeof *s->pins);
    if (!s->blocks || !s->block_region || !s->crc || !s->by_address || !s->opened || !s->pins) return -ENOMEM;
    memset((void *)s->opened, 1, room);
    for (uint32_t i = 0; i < s->n_regions; i++) {
        for (uint32_t b = 0; b < s->regions[i].n_blocks; b++) s->block_region[s->regions[i].first_block + b] = i;
        uint32_t at = i; /* insertion: sealing happens once, and there are few regions */
        for (; at > 0 && s->regions[s->by_address[at - 1]].pages > s->regions[i].pages; at--)
            s->by_address[at] = s->by_address[at - 1];
        s->by_address[at] = i;
    }
    return 0;
}

static void free_blocks(mpk_session *s) {
    mpk__pool_destroy(&s->pool);
    mpk__history_destroy(s);
    mpk__order_destroy(s);
    free((void *)s->blocks);
    free((void *)s->opened);
    free((void *)s->pins);
    free(s->block_region);
    free(s->crc);
    free(s->by_address);
    s->blocks = NULL;
    s->opened = NULL;
    s->pins = NULL;
    s->block_region = s->by_address = NULL;
    s->crc = NULL;
    atomic_store(&s->untracked, -1);
    s->n_blocks = 0;
}

int mpk_session_seal(mpk_session *s, size_t block_bytes, size_t pool_bytes) {
    size_t page = mpk__prim_page_size();
    if (s->sealed) return -EBUSY;
    if (block_bytes < page || block_bytes < MPK__IO_ALIGN || (block_bytes & (block_bytes - 1))) return -EINVAL;
    s->block_bytes = block_bytes;
    mpk_crc32c(0, "", 0); /* makes its tables, which the handler must not */
    int error = mpk_session_look_up(s);
    size_t n_entries = (pool_bytes + block_bytes - 1) / block_bytes;
    if (!error) error = number_blocks(s);
    if (!error) mpk__pin_blocks(s);
    if (!error && s->n_pinned > n_entries) error = -ENOBUFS;
    if (!error) error = mpk__history_create(s);
    if (!error) error = mpk__order_create(s);
    if (!error) error = mpk__pool_create(&s->pool, block_bytes, n_entries, s->n_pinned, s->may_take, s->may_take_context);
    if (!error) error = mpk__fault_watch(s);
    if (error) {
        free_blocks(s);
        return error;
    }
    error = mpk__drain_start_threads(s);
    if (error) {
        mpk__fault_unwatch();
        free_blocks(s);
        return error;
    }
    s->sealed = true;
    mpk__guard_pin_ranges(s);
    return 0;
}

bool mpk__block_beside_in_handler(const mpk_session *s, uint32_t b, bool behind, uint32_t *beside) {
    const mpk__region *r = &s->regions[s->block_region[b]];
    *beside = behind ? b + 1 : b - 1;
    if (behind ? b + 1 < r->first_block + r->n_blocks : b > r->first_block) return true;
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *other = &s->regions[i];
        if (!other->n_blocks || other->mapping != MPK_MAPPED_PRIVATE) continue;
        if (behind ? other->pages != r->pages + r->span : other->pages + other->span != r->pages) continue;
        *beside = behind ? other->first_block : other->first_block + other->n_blocks - 1;
        return true;
    }
    return false;
}

/* Regions that lie side by side may be one mapping, which to split there may be no room; opened in one call they are only
 * joined. Where that fails, some pages are not there: a child has no pages that it was not to inherit (MADV_DONTFORK, which
 * libraries of RDMA ask for). */
void mpk__open_all(mpk_session *s) {
    size_t page = mpk__prim_page_size();
    for (uint32_t i = 0, next; i < s->n_regions; i = next) {
        const mpk__region *first = &s->regions[s->by_address[i]];
        size_t span = first->mapping == MPK_MAPPED_PRIVATE ? first->span : 0;
        for (next = i + 1; next < s->n_regions; next++) {
            const mpk__region *other = &s->regions[s->by_address[next]];
            if (!span || other->pages != first->pages + span || other->mapping != MPK_MAPPED_PRIVATE) break;
            span += other->span;
        }
        if (!span || mpk__prim_protect_in_handler(first->pages, span, true) == 0) continue;
        for (size_t at = 0; at < span; at += page) mpk__prim_protect_in_handler(first->pages + at, page, true);
    }
}

/* Puts a block into its state for this cut, and tells whether its pages are to be protected now. A drain thread may claim it
 * as soon as its word says PROTECTED. Thousands of full barriers would cost more than all else here: whoever protects makes one. */
static bool protect_block(mpk_session *s, uint32_t b) {
    mpk__history *h = &s->history[b];
    bool is_closed = mpk__state_of(atomic_load(&s->blocks[b])) == MPK__CLEAN && !s->is_distrusted;
    h->is_pinned = !is_closed && atomic_load(&s->pins[b]) != 0;
    if (!h->is_pinned && atomic_load(&s->opened[b]) && atomic_exchange(&s->opened[b], 0)) atomic_fetch_add(&s->n_closed, 1);
    enum mpk__block_state state = h->is_pinned ? MPK__WRITABLE : h->is_dirty ? MPK__PROTECTED : MPK__CLEAN;
    atomic_store_explicit(&s->blocks[b], mpk__word(s->cut, 0, state), memory_order_release);
    return !is_closed && !h->is_pinned;
}

int mpk__protect_blocks(mpk_session *s, bool (*wants)(mpk_session *, uint32_t)) {
    int error = 0;
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *r = &s->regions[i];
        uint32_t n = 0; /* wanted blocks just before block k */
        for (uint32_t k = 0; k <= r->n_blocks; k++) {
            if (k < r->n_blocks && wants(s, r->first_block + k)) {
                n++;
            } else if (n) {
                size_t start = (k - n) * s->block_bytes, end = k < r->n_blocks ? k * s->block_bytes : r->span;
                atomic_thread_fence(memory_order_seq_cst); /* whoever faults on these pages sees the words of their blocks */
                int failed = mpk__prim_protect_in_handler(r->pages + start, end - start, false);
                if (failed && !error) error = failed;
                n = 0;
            }
        }
    }
    s->is_distrusted = error != 0;
    return error;
}

/* The cut itself. A word is PROTECTED before its page is protected: a write in between, of a thread that should not run, is
 * then one before the cut and not a torn image. Pinned blocks are copied, which may wait for room in the pool. */
static int protect(mpk_session *s) {
    int error = mpk__protect_blocks(s, protect_block);
    bool first = true;
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        if (!s->history[b].is_pinned) continue;
        if (first) mpk__drain_wake_in_handler(s); /* it makes the room */
        first = false;
        mpk__copy_pinned_block(s, b);
    }
    int torn = mpk__check_pinned(s);
    return error ? error : torn;
}

static void free_payload(mpk__payload *p) {
    free(p->data);
    free(p->spill_path);
    *p = (mpk__payload){0};
}

static void free_plan(mpk__epoch *e) {
    free_payload(&e->objects);
    free_payload(&e->channels);
    free(e->path);
    e->path = NULL;
}

void mpk__session_free(mpk_session *s) {
    mpk__drain_unmap_bounces(s);
    mpk__writer_close(s);
    free_blocks(s);
    free_plan(&s->epoch);
    forget_regions(s);
    free(s->stall_text);
    free(s);
}

static void wait_for_drain(mpk_session *s) {
    mpk__patience patience = {.ended = atomic_load(&s->calls_ended)};
    uint64_t start = mpk__prim_now_ns();
    while (!mpk_session_wait(s, SLICE_NS)) {
        uint64_t now = mpk__prim_now_ns();
        mpk__drain_waited_in_handler(s, &patience, now - start);
        start = now;
    }
}

int mpk_session_unseal(mpk_session *s) {
    if (s->sealed) {
        if (atomic_load(&s->channels) == MPK__CHANNELS_PENDING) mpk__drain_fail_in_handler(s, ECANCELED);
        mpk_session_boost(s, 1);
        wait_for_drain(s);
        mpk_session_boost(s, 0);
        bool hangs = atomic_load(&s->drain_state) == MPK_DRAIN_HUNG && !mpk__is_forked_child();
        if (!hangs) mpk__drain_stop_threads(s);
        mpk__open_all(s);
        mpk__fault_unwatch();
        if (hangs) {
            mpk__drain_abandon_threads(s); /* s is gone */
            return -EBUSY;
        }
        free_blocks(s);
        free_plan(&s->epoch);
        s->sealed = false;
    }
    forget_regions(s);
    return 0;
}

static bool copy_path(char **to, const char *path) {
    *to = path ? strdup(path) : NULL;
    return *to || !path;
}

/* Copies what the drain threads will need: after this the caller's plan is not read again. */
static int take_plan(mpk_session *s, const mpk_plan *plan) {
    mpk__epoch *e = &s->epoch;
    free_plan(e);
    e->path = strdup(plan->path);
    e->objects = (mpk__payload){.data = malloc(plan->objects_bytes + 1), .bytes = plan->objects_bytes};
    if (!e->path || !e->objects.data || !copy_path(&e->objects.spill_path, plan->spill_path) ||
        !copy_path(&e->channels.spill_path, plan->channels_follow ? plan->channels_spill_path : NULL))
        return -ENOMEM;
    if (plan->objects_bytes) memcpy(e->objects.data, plan->objects, plan->objects_bytes);
    e->objects.offset = plan->objects_offset;
    e->channels.offset = plan->channels_offset;
    e->channels_room = plan->channels_room;
    e->record_offset = plan->record_offset;
    e->holding = mpk__holding_of(s, plan->path);
    if (!e->holding) return -ENOMEM;
    e->record = (mpk_record){
        .rank = plan->rank,
        .epoch = plan->epoch,
        .step = plan->step,
        .run = plan->run,
        .objects_bytes = plan->objects_bytes,
        .objects_spilled = plan->spill_path != NULL,
        .cut_time_ns = mpk__prim_wall_clock_ns(),
    };
    memcpy(e->record.magic, MPK_RECORD_MAGIC, sizeof e->record.magic);
    memcpy(e->record.digest, plan->digest, sizeof e->record.digest);
    for (uint32_t i = 0; i < s->n_regions; i++) {
        s->regions[i].data_offset = plan->data_offsets[i];
        s->regions[i].checksum_offset = plan->checksum_offsets[i];
    }
    return 0;
}

static void copy_edges(mpk_session *s) {
    for (uint32_t i = 0; i < s->n_regions; i++) {
        const mpk__region *r = &s->regions[i];
        if (r->head) memcpy(r->edges, r->memory, r->head);
        if (r->tail) memcpy(r->edges + r->head, r->pages + r->data, r->tail);
    }
}

int mpk_cut(mpk_session *s, const mpk_plan *plan) {
    if (!s->sealed || mpk__is_forked_child()) return -EINVAL;
    if (plan->channels_follow && !plan->channels_spill_path) return -EINVAL;
    if (mpk__drain_is_open(s)) return -EBUSY;
    uint64_t start = mpk__prim_now_ns();
    int error = take_plan(s, plan);
    if (!error) error = mpk__fault_install();
    if (error) return error;
    copy_edges(s);
    s->cut++;
    uint64_t interval = start - s->epoch.started_ns;
    s->epoch.started_ns = start;
    s->n_dirty = mpk__history_advance(s);
    mpk__check_begin(s, interval);
    atomic_store(&s->epoch_number, plan->epoch);
    atomic_store(&s->bytes_written, 0);
    atomic_store(&s->bytes_waiting, 0);
    atomic_store(&s->bytes_urgent, 0);
    atomic_store(&s->blocks_copied, 0);
    atomic_store(&s->stall_ns, 0);
    atomic_store(&s->fault_ns, 0);
    atomic_store(&s->faults, 0);
    atomic_store(&s->error, 0);
    atomic_store(&s->torn_region, -1);
    atomic_store(&s->cursor, 0);
    atomic_store(&s->late_cursor, 0);
    atomic_store(&s->starved, 0);
    atomic_store(&s->stall_said, 0);
    atomic_fetch_add(&s->idle_blocks, s->chunk_blocks);
    bool follow = plan->channels_follow;
    atomic_store(&s->channels, follow ? MPK__CHANNELS_PENDING : MPK__CHANNELS_NONE);
    uint32_t compares = s->n_pinned != 0;
    atomic_store(&s->pending, s->n_dirty + (follow ? 2 : 1) + compares);
    atomic_store(&s->begun, 0); /* a thread that was late in the last epoch may open this one from here on */
    /* A drain thread that is still awake from the last epoch may begin on the first blocks at once: all that it needs
     * is in place, and the program is blocked. */
    atomic_store(&s->drain_state, MPK_DRAIN_ACTIVE);
    error = protect(s);
    if (error) mpk__drain_fail_in_handler(s, -error); /* not all are protected, or copies are torn; too late only if all is saved */
    if (compares) mpk__drain_finished_in_handler(s, 1);
    mpk__drain_wake_for_cut(s);
    atomic_store(&s->blocked_ns, mpk__prim_now_ns() - start);
    return 0;
}

void mpk_session_boost(mpk_session *s, int on) {
    uint32_t wanted = on != 0;
    if (atomic_exchange(&s->boost, wanted) != wanted) mpk__drain_wake_in_handler(s); /* it wakes all threads */
}

int mpk_session_wait(mpk_session *s, int64_t timeout_ns) {
    uint64_t start = mpk__prim_now_ns();
    while (atomic_load(&s->drain_state) == MPK_DRAIN_ACTIVE) {
        if (mpk__is_forked_child()) return 1; /* the parent's drain */
        int64_t left = timeout_ns < 0 ? -1 : timeout_ns - (int64_t)(mpk__prim_now_ns() - start);
        if (timeout_ns >= 0 && left <= 0) return 0;
        mpk__prim_wait_in_handler(&s->drain_state, MPK_DRAIN_ACTIVE, left);
    }
    return 1;
}

void mpk_session_progress(const mpk_session *s, mpk_progress *out) {
    uint32_t state = atomic_load(&s->drain_state);
    uint32_t pending = atomic_load(&s->pending);
    int error = atomic_load(&s->error);
    bool active = state == MPK_DRAIN_ACTIVE;
    bool follows = active && atomic_load(&s->channels) == MPK__CHANNELS_PENDING; /* after pending, which then counts them */
    if (follows && pending) pending--;
    *out = (mpk_progress){
        .epoch = atomic_load(&s->epoch_number),
        .state = (enum mpk_drain_state)state,
        .error = active ? 0 : error ? error : state == MPK_DRAIN_HUNG ? ETIMEDOUT : 0,
        .untracked_region = -1,
        .torn_region = atomic_load(&s->torn_region),
        .blocks = s->n_blocks,
        .blocks_dirty = s->n_dirty,
        .blocks_saved = pending < s->n_dirty ? s->n_dirty - pending : 0,
        .blocks_copied = atomic_load(&s->blocks_copied),
        .bytes_written = atomic_load(&s->bytes_written),
        .bytes_waiting = atomic_load(&s->bytes_waiting),
        .bytes_urgent = atomic_load(&s->bytes_urgent),
        .blocked_ns = atomic_load(&s->blocked_ns),
        .drain_ns = active || state == MPK_DRAIN_HUNG ? mpk__prim_now_ns() - s->epoch.started_ns : atomic_load(&s->drain_ns),
        .stall_ns = atomic_load(&s->stall_ns),
        .fault_ns = atomic_load(&s->fault_ns),
        .faults = atomic_load(&s->faults),
        .direct = atomic_load(&s->use_direct),
        .channels_pending = follows,
        .calls = atomic_load(&s->calls),
        .calls_ended = atomic_load(&s->calls_ended),
    };
    int64_t untracked = atomic_load(&s->untracked);
    if (untracked < 0) return;
    mpk__place place = mpk__block_place(s, (uint32_t)untracked);
    out->untracked_region = (int32_t)(place.region - s->regions);
    out->untracked_offset = place.offset;
}
