/*
 * state-file.c: what is wanted reaches the file.
 *
 * Rounds. Whoever needs something durable changes what is wanted (bits, facts), under the
 * lock, and calls state_commit, which waits until a round that began after that has
 * succeeded. One of those that wait leads the round, without the lock: it writes the sectors
 * that are queued, and a slot if the facts changed, and syncs once. What changes meanwhile
 * waits for the next round. What a failed round took is queued again, so that a later
 * success covers everything before it, and `good` is all that anybody has to look at.
 * Written again, not only synced again: after a failed sync the kernel may call pages clean
 * that never reached the disk.
 *
 * All sectors are written by rounds, one round at a time. So a bit that a round wrote, and
 * that is still wanted when it ends, is on disk and stays there until some later round
 * takes the sector without it: only such a bit is called stable. A bit that was given up
 * while the round ran is not, whatever the disk holds.
 *
 * Slots. A round writes the slot that is not known to be durable, syncs, and then copies it
 * to the other one without a sync: at rest both say the same, and rot in one costs nothing.
 * The slot that a sync has covered is never the next one to be written.
 */
#include "quorum/state-internal.h"
#include <errno.h>
#include <string.h>

/* ---- Bitmaps ------------------------------------------------------------------------- */

void state_bitmap_init(state_bitmap *bitmap, unsigned index, const state_facts *facts)
{
    bitmap->index = index;
    bitmap->shift = index == 0 ? facts->intent_shift : facts->stale_shift;
    bitmap->bits = state_bits(facts->size, bitmap->shift);
    bitmap->sectors = state_sectors(bitmap->bits);
    size_t words = (size_t)bitmap->sectors * STATE_SECTOR_WORDS;
    bitmap->wanted = g_new0(atomic_uint_fast64_t, words);
    bitmap->stable = g_new0(uint64_t, words);
    bitmap->copied = NULL;
    bitmap->queued = g_new0(bool, bitmap->sectors);
}

void state_bitmap_clear(state_bitmap *bitmap)
{
    g_clear_pointer(&bitmap->wanted, g_free);
    g_clear_pointer(&bitmap->stable, g_free);
    g_clear_pointer(&bitmap->copied, g_free);
    g_clear_pointer(&bitmap->queued, g_free);
}

uint64_t state_bit_bytes(const state *s, const state_bitmap *bitmap, uint32_t bit)
{
    uint64_t start = (uint64_t)bit << bitmap->shift;
    return MIN(UINT64_C(1) << bitmap->shift, s->facts.size - start);
}

void state_queue_sector(state *s, state_bitmap *bitmap, uint32_t sector)
{
    if (bitmap->queued[sector])
        return;
    bitmap->queued[sector] = true;
    uint64_t key = (uint64_t)bitmap->index << 32 | sector;
    g_array_append_val(s->queue, key);
}

bool state_want_bit(state *s, state_bitmap *bitmap, uint32_t bit, bool value)
{
    if (state_has_bit(bitmap, bit) == value)
        return false;
    uint64_t mask = UINT64_C(1) << bit % 64;
    if (value)
        atomic_fetch_or(&bitmap->wanted[bit / 64], mask);
    else
        atomic_fetch_and(&bitmap->wanted[bit / 64], ~mask);
    state_queue_sector(s, bitmap, bit / STATE_SECTOR_BITS);
    return true;
}

/* ---- One round ----------------------------------------------------------------------- */

typedef struct state_round {
    GArray *keys;     /* of uint64_t, ascending */
    uint8_t *sectors; /* one for each key */
    uint8_t *slot;    /* NULL: the facts did not change */
    size_t slot_length;
    unsigned slot_index;
} state_round;

static gint compare_keys(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static state_bitmap *bitmap_of(state *s, uint64_t key)
{
    return &s->bitmaps[key >> 32];
}

static void take_sector(state_bitmap *bitmap, uint32_t sector, uint8_t *ret_bytes)
{
    atomic_uint_fast64_t *words = bitmap->wanted + (size_t)sector * STATE_SECTOR_WORDS;
    for (unsigned k = 0; k < STATE_SECTOR_WORDS; k++) {
        uint64_t word = GUINT64_TO_LE(atomic_load(&words[k]));
        memcpy(ret_bytes + k * 8, &word, sizeof word);
    }
    bitmap->queued[sector] = false;
}

static void mark_synced(state *s)
{
    for (unsigned i = 0; i < s->facts.n; i++) {
        state_replica *record = &s->facts.replicas[i].record;
        if (record->state == STATE_IN_SYNC && atomic_load(&s->stale_bytes[i]) == 0)
            record->synced_generation = s->facts.generation;
    }
}

/* Under the lock: a copy of all that is to be written. */
static void round_take(state *s, state_round *round)
{
    round->keys = g_steal_pointer(&s->queue);
    s->queue = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_array_sort(round->keys, compare_keys);
    round->sectors = g_malloc0((size_t)round->keys->len * STATE_SECTOR);
    for (guint k = 0; k < round->keys->len; k++) {
        uint64_t key = g_array_index(round->keys, uint64_t, k);
        take_sector(bitmap_of(s, key), (uint32_t)key,
                    round->sectors + (size_t)k * STATE_SECTOR);
    }
    round->slot = NULL;
    round->slot_index = !s->durable_slot;
    if (!s->facts_dirty)
        return;
    s->facts_dirty = false;
    s->facts.sequence++;
    mark_synced(s);
    round->slot_length = state_slot_length(&s->facts);
    round->slot = g_malloc(round->slot_length);
    state_encode_slot(&s->facts, round->slot);
}

/* Runs of neighbouring sectors. The facts that say where they are change only in a
 * reshape, which no round runs beside. */
static int write_sectors(state *s, state_round *round)
{
    const uint64_t *keys = (const uint64_t *)(void *)round->keys->data;
    int error = 0;
    for (guint from = 0, to; from < round->keys->len && !error; from = to) {
        for (to = from; to < round->keys->len && keys[to] == keys[from] + (to - from);
             to++)
            state_seal_sector(&s->facts, (unsigned)(keys[to] >> 32), (uint32_t)keys[to],
                              round->sectors + (size_t)to * STATE_SECTOR);
        error = file_write_full(s->fd, round->sectors + (size_t)from * STATE_SECTOR,
                                (size_t)(to - from) * STATE_SECTOR,
                                state_sector_at(&s->facts, (unsigned)(keys[from] >> 32),
                                                (uint32_t)keys[from]));
    }
    return error;
}

static int round_write(state *s, state_round *round)
{
    if (round->keys->len == 0 && !round->slot)
        return 0;
    int error = write_sectors(s, round);
    if (!error && round->slot)
        error = file_write_full(s->fd, round->slot, round->slot_length,
                                (uint64_t)round->slot_index * STATE_SLOT_MAX);
    if (!error)
        error = file_sync(s->fd);
    if (!error && round->slot)
        (void)!file_write_full(s->fd, round->slot, round->slot_length,
                               (uint64_t)!round->slot_index * STATE_SLOT_MAX);
    return error;
}

static void publish_sector(state *s, uint64_t key, const uint8_t *bytes)
{
    state_bitmap *bitmap = bitmap_of(s, key);
    size_t first = (size_t)(uint32_t)key * STATE_SECTOR_WORDS;
    for (unsigned k = 0; k < STATE_SECTOR_WORDS; k++) {
        uint64_t word;
        memcpy(&word, bytes + k * 8, sizeof word);
        word = GUINT64_FROM_LE(word) & atomic_load(&bitmap->wanted[first + k]);
        uint64_t gained = word & ~bitmap->stable[first + k];
        bitmap->stable[first + k] = word;
        for (; bitmap->index == 0 && gained != 0; gained &= gained - 1) {
            size_t region = (first + k) * 64 + (size_t)__builtin_ctzll(gained);
            atomic_fetch_or(&s->regions[region], STATE_STABLE);
        }
    }
}

static void round_end(state *s, state_round *round, int error)
{
    for (guint k = 0; k < round->keys->len; k++) {
        uint64_t key = g_array_index(round->keys, uint64_t, k);
        if (error)
            state_queue_sector(s, bitmap_of(s, key), (uint32_t)key);
        else
            publish_sector(s, key, round->sectors + (size_t)k * STATE_SECTOR);
    }
    if (round->slot && error)
        s->facts_dirty = true;
    else if (round->slot)
        s->durable_slot = round->slot_index;
    if (error)
        s->error = error;
    else
        s->good = s->begun;
    g_array_unref(round->keys);
    g_free(round->sectors);
    g_free(round->slot);
}

static void lead_round(state *s)
{
    state_round round;
    s->running = true;
    s->begun++;
    round_take(s, &round);
    g_mutex_unlock(&s->lock);
    int error = round_write(s, &round);
    g_mutex_lock(&s->lock);
    round_end(s, &round, error);
    s->ended = s->begun;
    s->running = false;
    g_cond_broadcast(&s->changed);
}

int state_commit(state *s)
{
    uint64_t target = s->begun + 1;
    if (s->pending)
        return 0;
    while (s->ended < target) {
        if (s->running)
            g_cond_wait(&s->changed, &s->lock);
        else
            lead_round(s);
    }
    return s->good >= target ? 0 : s->error;
}

void state_enter(state *s)
{
    while (s->running)
        g_cond_wait(&s->changed, &s->lock);
    s->running = true;
}

void state_leave(state *s)
{
    s->running = false;
    g_cond_broadcast(&s->changed);
}

/* The first round may leave sectors and no slot: a slot is not to lead to an area that is
 * not there. The third is for the other slot, whose copy was not synced. */
int state_write_all(state *s)
{
    int error = 0;
    g_mutex_lock(&s->lock);
    for (unsigned k = 0; k <= s->facts.n; k++)
        for (uint32_t sector = 0; sector < s->bitmaps[k].sectors; sector++)
            state_queue_sector(s, &s->bitmaps[k], sector);
    for (unsigned round = 0; round < 3 && !error; round++) {
        s->facts_dirty = round > 0;
        error = state_commit(s);
    }
    g_mutex_unlock(&s->lock);
    return error;
}
