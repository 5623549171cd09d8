/*
 * state-stale.c: what replicas missed (state.h).
 *
 * Stale marks are made under the lock even if they are there already, because a mark also
 * takes back what a resync said it had copied; a lock that nobody waits for is as fast as
 * the atomics that would replace it, and only replicas that failed are marked.
 *
 * Ranges known exactly (state-exact.c) are facts. An entry has its bit, in memory and, as one
 * round writes both, on disk. Where there are entries, a mark is durable only with the facts:
 * while those are on their way, a range that is in them already does not count yet.
 */
#include "quorum/state-internal.h"
#include <errno.h>

static bool is_durable(const state_bitmap *bitmap, state_range range)
{
    for (uint32_t bit = range.first; bit < range.end; bit++)
        if (!(bitmap->stable[bit / 64] >> bit % 64 & 1))
            return false;
    return true;
}

/* The lock is held. */
static void note_range(state *s, unsigned i, state_range range)
{
    state_bitmap *bitmap = &s->bitmaps[1 + i];
    for (uint32_t bit = range.first; bit < range.end; bit++) {
        if (bitmap->copied)
            bitmap->copied[bit / 64] &= ~(UINT64_C(1) << bit % 64);
        if (state_want_bit(s, bitmap, bit, true))
            atomic_fetch_add(&s->stale_bytes[i], state_bit_bytes(s, bitmap, bit));
    }
}

int state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    const state_bitmap *bitmap = &s->bitmaps[1 + i];
    state_range range;
    if (!state_touched(s, bitmap, offset, length, &range))
        return -EINVAL;
    g_mutex_lock(&s->lock);
    note_range(s, i, range);
    if (state_exact_add(&s->facts, i, offset, length))
        s->facts_dirty = true;
    bool moving = s->facts.n_exact > 0 && (s->facts_dirty || s->running);
    int result = is_durable(bitmap, range) && !moving ? 0 : state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
}

void state_note_stale(state *s, unsigned i, const rangeset *missed)
{
    g_mutex_lock(&s->lock);
    for (unsigned k = 0; k < rangeset_count(missed); k++) {
        state_range bits;
        rangeset_range range = rangeset_get(missed, k);
        uint64_t end = MIN(range.end, s->facts.size);
        if (range.start >= end)
            continue;
        uint64_t length = end - range.start;
        state_touched(s, &s->bitmaps[1 + i], range.start, length, &bits);
        note_range(s, i, bits);
        if (state_exact_add(&s->facts, i, range.start, length))
            s->facts_dirty = true;
    }
    g_mutex_unlock(&s->lock);
}

bool state_is_stale(const state *s, unsigned i, uint64_t offset, uint64_t length)
{
    const state_bitmap *bitmap = &s->bitmaps[1 + i];
    state_range range;
    if (atomic_load_explicit(&s->stale_bytes[i], memory_order_acquire) == 0)
        return false;
    state_touched(s, bitmap, offset, length, &range);
    for (uint32_t bit = range.first; bit < range.end; bit++)
        if (state_has_bit(bitmap, bit))
            return true;
    return false;
}

/* From a run of bits to what they stand for: all of the regions up to the first one with
 * entries, or an entry, or (false) nothing before *ret_next. */
static bool tell_run(const state_facts *facts, unsigned i, uint64_t *offset,
                     uint64_t *length, uint64_t *ret_next)
{
    uint64_t region = UINT64_C(1) << facts->stale_shift;
    uint64_t start = *offset & ~(region - 1), from = *offset;
    unsigned k = state_exact_find(facts, i, start);
    if (k == facts->n_exact || facts->exact[k].replica != i)
        return true;
    uint64_t told = facts->exact[k].offset & ~(region - 1);
    if (told > start) {
        *length = MIN(*length, told - from);
        return true;
    }
    k = state_exact_find(facts, i, from);
    *ret_next = start + region;
    if (k == facts->n_exact || facts->exact[k].replica != i ||
        facts->exact[k].offset >= *ret_next)
        return false;
    *offset = MAX(from, facts->exact[k].offset);
    *length = facts->exact[k].offset + facts->exact[k].length - *offset;
    return true;
}

bool state_next_stale(state *s, unsigned i, uint64_t from, uint64_t *ret_offset,
                      uint64_t *ret_length)
{
    g_mutex_lock(&s->lock);
    bool found;
    do
        found = state_next_run(s, &s->bitmaps[1 + i], state_is_set, from, ret_offset,
                               ret_length);
    while (found && !tell_run(&s->facts, i, ret_offset, ret_length, &from));
    g_mutex_unlock(&s->lock);
    return found;
}

bool state_is_crowded(state *s, uint64_t offset)
{
    unsigned current = 0;
    g_mutex_lock(&s->lock);
    for (unsigned i = 0; i < s->facts.n; i++) {
        const state_bitmap *bitmap = &s->bitmaps[1 + i];
        state_replica_state now = s->facts.replicas[i].record.state;
        current += (now == STATE_IN_SYNC || now == STATE_STALE_RANGES) &&
                   !state_has_bit(bitmap, (uint32_t)(offset >> bitmap->shift));
    }
    bool crowded = current < s->facts.threshold;
    g_mutex_unlock(&s->lock);
    return crowded;
}

bool state_set_exact(state *s, unsigned i, uint64_t offset, const rangeset *missed)
{
    const state_bitmap *bitmap = &s->bitmaps[1 + i];
    uint32_t bit = (uint32_t)(offset >> bitmap->shift);
    g_mutex_lock(&s->lock);
    bool worth = state_has_bit(bitmap, bit) && rangeset_count(missed) > 0 &&
                 rangeset_bytes(missed) < state_bit_bytes(s, bitmap, bit) &&
                 !state_exact_has(&s->facts, i, offset);
    bool set = worth && state_exact_set(&s->facts, i, offset, missed);
    s->facts_dirty |= set;
    g_mutex_unlock(&s->lock);
    return set;
}

void state_stale_copied(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    state_bitmap *bitmap = &s->bitmaps[1 + i];
    state_range range = state_covered(s, bitmap, offset, length);
    g_mutex_lock(&s->lock);
    if (!bitmap->copied)
        bitmap->copied = g_new0(uint64_t, (size_t)bitmap->sectors * STATE_SECTOR_WORDS);
    for (uint32_t bit = range.first; bit < range.end; bit++)
        bitmap->copied[bit / 64] |= UINT64_C(1) << bit % 64;
    g_mutex_unlock(&s->lock);
}

bool state_has_exact_bit(void *opaque, const state_exact *entry)
{
    const state_bitmap *bitmap = &((const state *)opaque)->bitmaps[1 + entry->replica];
    return state_has_bit(bitmap, (uint32_t)(entry->offset >> bitmap->shift));
}

int state_stale_clear(state *s, unsigned i)
{
    state_bitmap *bitmap = &s->bitmaps[1 + i];
    int result = 0;
    bool changed = false;
    g_mutex_lock(&s->lock);
    for (uint32_t bit = 0; bitmap->copied && bit < bitmap->bits; bit++) {
        uint64_t mask = UINT64_C(1) << bit % 64;
        if (!(bitmap->copied[bit / 64] & mask) || !state_want_bit(s, bitmap, bit, false))
            continue;
        bitmap->stable[bit / 64] &= ~mask;
        atomic_fetch_sub(&s->stale_bytes[i], state_bit_bytes(s, bitmap, bit));
        changed = true;
    }
    g_clear_pointer(&bitmap->copied, g_free);
    if (changed && state_exact_filter(&s->facts, state_has_exact_bit, s))
        s->facts_dirty = true;
    if (changed)
        result = state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
}
