/*
 * state-stale.c: what replicas missed (state.h).
 *
 * Stale marks are made under the lock even if they are there already, because a mark also
 * takes back what a resync said it had copied; a lock that nobody waits for is as fast as
 * the atomics that would replace it, and only replicas that failed are marked.
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

int state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    state_bitmap *bitmap = &s->bitmaps[1 + i];
    state_range range;
    if (!state_touched(s, bitmap, offset, length, &range))
        return -EINVAL;
    g_mutex_lock(&s->lock);
    for (uint32_t bit = range.first; bit < range.end; bit++) {
        if (bitmap->copied)
            bitmap->copied[bit / 64] &= ~(UINT64_C(1) << bit % 64);
        if (state_want_bit(s, bitmap, bit, true))
            atomic_fetch_add(&s->stale_bytes[i], state_bit_bytes(s, bitmap, bit));
    }
    int result = is_durable(bitmap, range) ? 0 : state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
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

bool state_next_stale(state *s, unsigned i, uint64_t from, uint64_t *ret_offset,
                      uint64_t *ret_length)
{
    return state_next_run(s, &s->bitmaps[1 + i], state_is_set, from, ret_offset,
                          ret_length);
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
    if (changed)
        result = state_commit(s);
    g_mutex_unlock(&s->lock);
    return result;
}
