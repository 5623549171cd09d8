/*
 * state.c: the set, and intent (state.h).
 *
 * Intent. A region has one word: how many writes are under way, flags, how many ever began.
 * A write begins with one atomic addition, which also tells whether the region's bit is
 * stable, and ends with one subtraction. Who clears takes the whole word in phase one, and in
 * phase two exchanges just that word for one without the flag: the exchange fails if any
 * write has begun since, over or not. So there is no moment between "the bit is there" and
 * "I am counted" for a clearer to slip in, and no flush that a write came too late for. The
 * exchange and what it does to the bitmap are one step under the lock, in which a write that
 * finds the flag gone waits to set its bit again.
 */
#include "quorum/state-internal.h"
#include <errno.h>
#include <string.h>

struct state_collection {
    GArray *regions; /* of collected */
};

typedef struct collected {
    uint32_t region;
    uint64_t word;
} collected;

#define COLLECT_MAX 65536u

/* ---- The set ------------------------------------------------------------------------- */

bool state_is_new(const state *s)
{
    return s->is_new;
}

bool state_was_clean(const state *s)
{
    return s->was_clean;
}

void state_set_id(state *s, uint8_t ret_id[16])
{
    memcpy(ret_id, s->facts.set_id, sizeof s->facts.set_id);
}

int state_settle(state *s)
{
    g_mutex_lock(&s->lock);
    bool pending = s->facts_dirty || s->queue->len > 0 || s->running;
    int result = pending ? state_commit(s) : 0;
    g_mutex_unlock(&s->lock);
    return result;
}

uint64_t state_size(state *s)
{
    g_mutex_lock(&s->lock);
    uint64_t size = s->facts.size;
    g_mutex_unlock(&s->lock);
    return size;
}

bool state_get_resize(state *s, uint64_t *ret_from, uint64_t *ret_to)
{
    g_mutex_lock(&s->lock);
    *ret_from = s->facts.resize_from;
    *ret_to = s->facts.resize_to;
    g_mutex_unlock(&s->lock);
    return *ret_from != *ret_to;
}

uint64_t state_generation(state *s)
{
    g_mutex_lock(&s->lock);
    uint64_t generation = s->facts.generation;
    g_mutex_unlock(&s->lock);
    return generation;
}

void state_get_replica(state *s, unsigned i, state_replica *ret_replica)
{
    g_mutex_lock(&s->lock);
    *ret_replica = s->facts.replicas[i].record;
    g_mutex_unlock(&s->lock);
}

/* The lock is held, and given up here. */
static int commit_facts(state *s)
{
    s->facts_dirty = true;
    int result = state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
}

int state_set_replica(state *s, unsigned i, const state_replica *replica)
{
    g_mutex_lock(&s->lock);
    state_replica *record = &s->facts.replicas[i].record;
    record->state = replica->state;
    record->identity = replica->identity;
    return commit_facts(s);
}

static void set_identities(state *s, const identity *identities)
{
    for (unsigned i = 0; i < s->facts.n; i++)
        if (identities[i].kind != IDENTITY_NONE)
            s->facts.replicas[i].record.identity = identities[i];
}

int state_begin_session(state *s, const identity *identities)
{
    g_mutex_lock(&s->lock);
    set_identities(s, identities);
    s->facts.generation++;
    s->facts.clean = false;
    return commit_facts(s);
}

int state_set_marks(state *s, const qcow2_mark *marks)
{
    g_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->facts.n; i++)
        s->facts.replicas[i].record.identity.mark = marks[i];
    return commit_facts(s);
}

static void copy_id(state *s, uint8_t to[16])
{
    memcpy(to, s->facts.set_id, sizeof s->facts.set_id);
}

void state_get_mark(state *s, unsigned i, bool clean, qcow2_mark *ret_mark)
{
    g_mutex_lock(&s->lock);
    *ret_mark = (qcow2_mark){.present = true,
                             .replica = s->facts.replicas[i].record.number,
                             .generation = s->facts.generation,
                             .clean = clean};
    copy_id(s, ret_mark->set_id);
    g_mutex_unlock(&s->lock);
}

void state_get_generation(state *s, unsigned i, state_replica *record,
                          generation_record *ret)
{
    g_mutex_lock(&s->lock);
    *record = s->facts.replicas[i].record;
    *ret = (generation_record){.identity = &record->identity,
                               .clean = s->was_clean,
                               .replica = record->number,
                               .generation = s->facts.generation};
    copy_id(s, ret->set_id);
    g_mutex_unlock(&s->lock);
}

static bool has_unequal_region(state *s)
{
    for (uint32_t region = 0; region < s->bitmaps[0].bits; region++)
        if (atomic_load(&s->regions[region]) & (STATE_KEPT | STATE_UNRECONCILED))
            return true;
    return false;
}

int state_end_session(state *s, const identity *identities)
{
    g_mutex_lock(&s->lock);
    set_identities(s, identities);
    s->facts.reconcile = has_unequal_region(s);
    s->facts.clean = true;
    return commit_facts(s);
}

/* ---- Totals -------------------------------------------------------------------------- */

static uint64_t bitmap_bytes(const state *s, const state_bitmap *bitmap)
{
    uint64_t bytes = 0;
    for (uint32_t bit = 0; bit < bitmap->bits; bit++)
        if (state_has_bit(bitmap, bit))
            bytes += state_bit_bytes(s, bitmap, bit);
    return bytes;
}

void state_recount(state *s)
{
    uint64_t unreconciled = 0;
    for (uint32_t region = 0; region < s->bitmaps[0].bits; region++)
        if (atomic_load(&s->regions[region]) & STATE_UNRECONCILED)
            unreconciled += state_bit_bytes(s, &s->bitmaps[0], region);
    atomic_store(&s->unreconciled_bytes, unreconciled);
    atomic_store(&s->dirty_bytes, bitmap_bytes(s, &s->bitmaps[0]));
    for (unsigned i = 0; i < s->facts.n; i++)
        atomic_store(&s->stale_bytes[i], bitmap_bytes(s, &s->bitmaps[1 + i]));
}

uint64_t state_stale_bytes(const state *s, unsigned i)
{
    return atomic_load(&s->stale_bytes[i]);
}

uint64_t state_dirty_bytes(const state *s)
{
    return atomic_load(&s->dirty_bytes);
}

uint64_t state_unreconciled_bytes(const state *s)
{
    return atomic_load(&s->unreconciled_bytes);
}

uint64_t state_intent_region(const state *s)
{
    return UINT64_C(1) << s->bitmaps[0].shift;
}

uint64_t state_stale_region(const state *s)
{
    return UINT64_C(1) << s->bitmaps[1].shift;
}

/* ---- Ranges and bits ----------------------------------------------------------------- */

bool state_touched(const state *s, const state_bitmap *bitmap, uint64_t offset,
                   uint64_t length, state_range *ret_range)
{
    *ret_range = (state_range){0, 0};
    if (offset > s->facts.size || length > s->facts.size - offset)
        return false;
    if (length > 0) {
        ret_range->first = (uint32_t)(offset >> bitmap->shift);
        ret_range->end = (uint32_t)((offset + length - 1) >> bitmap->shift) + 1;
    }
    return true;
}

state_range state_covered(const state *s, const state_bitmap *bitmap, uint64_t offset,
                          uint64_t length)
{
    state_range range;
    if (!state_touched(s, bitmap, offset, length, &range) || length == 0)
        return (state_range){0, 0};
    uint64_t end = offset + length;
    range.first = state_bits(offset, bitmap->shift);
    if (end < s->facts.size)
        range.end = (uint32_t)(end >> bitmap->shift);
    range.end = MAX(range.end, range.first);
    return range;
}

bool state_next_run(const state *s, const state_bitmap *bitmap, state_test_bit *test,
                    uint64_t from, uint64_t *ret_offset, uint64_t *ret_length)
{
    if (from >= s->facts.size)
        return false;
    uint32_t first = (uint32_t)(from >> bitmap->shift);
    while (first < bitmap->bits && !test(s, bitmap, first))
        first++;
    uint32_t end = first;
    while (end < bitmap->bits && test(s, bitmap, end))
        end++;
    *ret_offset = MAX((uint64_t)first << bitmap->shift, from);
    *ret_length = MIN((uint64_t)end << bitmap->shift, s->facts.size) - *ret_offset;
    return first < end;
}

bool state_is_set(const state *s, const state_bitmap *bitmap, uint32_t bit)
{
    (void)s;
    return state_has_bit(bitmap, bit);
}

/* ---- Intent -------------------------------------------------------------------------- */

static int mark_regions(state *s, state_range range)
{
    state_bitmap *bitmap = &s->bitmaps[0];
    g_mutex_lock(&s->lock);
    for (uint32_t region = range.first; region < range.end; region++)
        if (state_want_bit(s, bitmap, region, true))
            atomic_fetch_add(&s->dirty_bytes, state_bit_bytes(s, bitmap, region));
    int result = state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
}

int state_write_begin(state *s, uint64_t offset, uint64_t length)
{
    state_range range;
    if (!state_touched(s, &s->bitmaps[0], offset, length, &range))
        return -EINVAL;
    uint64_t stable = STATE_STABLE;
    for (uint32_t region = range.first; region < range.end; region++)
        stable &= atomic_fetch_add(&s->regions[region], STATE_WRITE_ONE);
    int result = stable ? 0 : mark_regions(s, range);
    if (result < 0)
        state_write_end(s, offset, length, true);
    return result;
}

void state_write_end(state *s, uint64_t offset, uint64_t length, bool equal)
{
    state_range range;
    state_touched(s, &s->bitmaps[0], offset, length, &range);
    for (uint32_t region = range.first; region < range.end; region++) {
        if (!equal)
            atomic_fetch_or(&s->regions[region], STATE_KEPT);
        atomic_fetch_sub(&s->regions[region], 1);
    }
}

static bool is_unreconciled(const state *s, const state_bitmap *bitmap, uint32_t bit)
{
    (void)bitmap;
    return atomic_load_explicit(&s->regions[bit], memory_order_acquire) &
           STATE_UNRECONCILED;
}

bool state_is_unreconciled(const state *s, uint64_t offset, uint64_t length)
{
    state_range range;
    if (atomic_load_explicit(&s->unreconciled_bytes, memory_order_acquire) == 0)
        return false;
    state_touched(s, &s->bitmaps[0], offset, length, &range);
    for (uint32_t region = range.first; region < range.end; region++)
        if (is_unreconciled(s, &s->bitmaps[0], region))
            return true;
    return false;
}

bool state_next_unreconciled(state *s, uint64_t from, uint64_t *ret_offset,
                             uint64_t *ret_length)
{
    return state_next_run(s, &s->bitmaps[0], is_unreconciled, from, ret_offset,
                          ret_length);
}

bool state_next_dirty(state *s, uint64_t from, uint64_t *ret_offset, uint64_t *ret_length)
{
    return state_next_run(s, &s->bitmaps[0], state_is_set, from, ret_offset, ret_length);
}

/* Under the lock, so that no region is cleared meanwhile; one that was collected before has
 * another word now, and stays. */
void state_unreconcile(state *s)
{
    const state_bitmap *bitmap = &s->bitmaps[0];
    g_mutex_lock(&s->lock);
    for (uint32_t region = 0; region < bitmap->bits; region++) {
        if (!state_has_bit(bitmap, region))
            continue;
        uint64_t before = atomic_fetch_or(&s->regions[region], STATE_UNRECONCILED);
        if (!(before & STATE_UNRECONCILED))
            atomic_fetch_add(&s->unreconciled_bytes, state_bit_bytes(s, bitmap, region));
    }
    g_mutex_unlock(&s->lock);
}

void state_reconciled(state *s, uint64_t offset, uint64_t length)
{
    const state_bitmap *bitmap = &s->bitmaps[0];
    state_range range = state_covered(s, bitmap, offset, length);
    for (uint32_t region = range.first; region < range.end; region++) {
        uint64_t before =
            atomic_fetch_and(&s->regions[region], ~(STATE_KEPT | STATE_UNRECONCILED));
        if (before & STATE_UNRECONCILED)
            atomic_fetch_sub(&s->unreconciled_bytes, state_bit_bytes(s, bitmap, region));
    }
}

/* W5: what a replica may lack is not forgotten. The lock is held. */
static bool is_replica_missing(const state *s)
{
    for (unsigned i = 0; i < s->facts.n; i++) {
        state_replica_state now = s->facts.replicas[i].record.state;
        if (now == STATE_REMOVED)
            continue;
        if (now != STATE_IN_SYNC || atomic_load(&s->stale_bytes[i]) > 0)
            return true;
    }
    return false;
}

state_collection *state_collect(state *s)
{
    g_autoptr(GArray) regions = g_array_new(FALSE, FALSE, sizeof(collected));
    uint64_t busy = STATE_WRITES | STATE_KEPT | STATE_UNRECONCILED;
    g_mutex_lock(&s->lock);
    bool missing = is_replica_missing(s);
    g_mutex_unlock(&s->lock);
    for (uint32_t region = 0; region < s->bitmaps[0].bits && !missing; region++) {
        collected found = {region, atomic_load(&s->regions[region])};
        if ((found.word & STATE_STABLE) && !(found.word & busy) &&
            regions->len < COLLECT_MAX)
            g_array_append_val(regions, found);
    }
    if (regions->len == 0)
        return NULL;
    state_collection *collection = g_new(state_collection, 1);
    collection->regions = g_steal_pointer(&regions);
    return collection;
}

void state_collection_free(state_collection *collection)
{
    if (!collection)
        return;
    g_array_unref(collection->regions);
    g_free(collection);
}

/* The lock is held. */
static bool clear_region(state *s, const collected *found)
{
    state_bitmap *bitmap = &s->bitmaps[0];
    uint64_t word = found->word;
    if (!atomic_compare_exchange_strong(&s->regions[found->region], &word,
                                        word & ~STATE_STABLE))
        return false;
    state_want_bit(s, bitmap, found->region, false);
    bitmap->stable[found->region / 64] &= ~(UINT64_C(1) << found->region % 64);
    atomic_fetch_sub(&s->dirty_bytes, state_bit_bytes(s, bitmap, found->region));
    return true;
}

int64_t state_clear(state *s, state_collection *collection)
{
    int64_t cleared = 0;
    int failed = 0;
    g_mutex_lock(&s->lock);
    for (guint k = 0; k < collection->regions->len && !is_replica_missing(s); k++)
        cleared += clear_region(s, &g_array_index(collection->regions, collected, k));
    if (cleared > 0)
        failed = state_commit(s);
    g_mutex_unlock(&s->lock);
    state_collection_free(collection);
    return failed ? failed : cleared;
}
