/*
 * qcow2-cache.c: a bounded cache of blocks of one size, for slices of L2 tables and for
 * decompressed clusters.
 *
 * State of a slot     meaning                                      leaves it by
 *   EMPTY             no key; not in the hash                      get: a load begins
 *   LOADING           in the hash; its loader fills the block      load ended: READY, EMPTY
 *   READY, users > 0  the block is valid and lent out              put
 *   READY, users = 0  the block is valid; the clock hand may       get: lent out again, or
 *                     take it                                      LOADING for another key
 *
 * Invariants, under `lock`
 * - A key is in at most one slot of the present epoch, so a block is loaded once however
 *   many threads ask. qcow2_cache_clear begins a new epoch: what was loaded or is being
 *   loaded is found no more, and its slots are taken again when nobody uses them.
 * - A slot that is LOADING or has users is never taken for another key; a block's bytes
 *   change only while LOADING, by the one thread that loads.
 * - Whoever finds no free slot, or its key LOADING, waits for `changed`. That ends: loaders
 *   do not wait for the cache, and a thread holds at most one block.
 * - A failed load leaves the slot EMPTY; each waiter then tries for itself, so that every
 *   caller gets an error of its own read and a passing fault is forgotten.
 *
 * The lock is held for a hash lookup, never during a load. Blocks are allocated when a
 * slot is first used. pthread, not GMutex: ThreadSanitizer does not see into GLib.
 */
#include "formats/qcow2-internal.h"
#include <pthread.h>

#define NO_SLOT UINT32_MAX

typedef enum slot_state { SLOT_EMPTY, SLOT_LOADING, SLOT_READY } slot_state;

typedef struct slot {
    uint64_t key;
    slot_state state;
    unsigned users;
    bool recent; /* used since the clock hand last passed */
    uint32_t epoch;
    uint32_t next; /* in the hash bucket */
    void *block;
} slot;

struct qcow2_cache {
    pthread_mutex_t lock; /* guards everything but the bytes of the blocks */
    pthread_cond_t changed;
    size_t block_size;
    uint32_t n_slots;
    uint32_t hand;
    uint32_t epoch;
    unsigned bucket_bits;
    uint32_t *buckets;
    slot *slots;
};

qcow2_cache *qcow2_cache_new(size_t block_size, unsigned n_blocks)
{
    qcow2_cache *cache = g_new0(qcow2_cache, 1);
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->changed, NULL);
    cache->block_size = block_size;
    cache->n_slots = n_blocks;
    cache->slots = g_new0(slot, n_blocks);
    cache->bucket_bits = 1;
    while ((1u << cache->bucket_bits) < n_blocks)
        cache->bucket_bits++;
    cache->buckets = g_new(uint32_t, (size_t)1 << cache->bucket_bits);
    memset(cache->buckets, 0xff, sizeof(uint32_t) << cache->bucket_bits);
    return cache;
}

void qcow2_cache_free(qcow2_cache *cache)
{
    if (!cache)
        return;
    for (uint32_t i = 0; i < cache->n_slots; i++)
        g_free(cache->slots[i].block);
    g_free(cache->slots);
    g_free(cache->buckets);
    pthread_cond_destroy(&cache->changed);
    pthread_mutex_destroy(&cache->lock);
    g_free(cache);
}

static uint32_t *bucket_of(const qcow2_cache *cache, uint64_t key)
{
    return &cache->buckets[key * 0x9e3779b97f4a7c15u >> (64 - cache->bucket_bits)];
}

static slot *find(const qcow2_cache *cache, uint64_t key)
{
    for (uint32_t i = *bucket_of(cache, key); i != NO_SLOT; i = cache->slots[i].next) {
        if (cache->slots[i].key == key && cache->slots[i].epoch == cache->epoch)
            return &cache->slots[i];
    }
    return NULL;
}

static void make_empty(qcow2_cache *cache, slot *s)
{
    uint32_t index = (uint32_t)(s - cache->slots);
    uint32_t *link = bucket_of(cache, s->key);
    while (*link != index)
        link = &cache->slots[*link].next;
    *link = s->next;
    s->state = SLOT_EMPTY;
}

/* Finds a slot that is EMPTY or can be made so: two turns of the clock hand, for the
 * first may only clear the marks. NULL: all are in use. */
static slot *take_slot(qcow2_cache *cache)
{
    for (uint32_t i = 0; i < 2 * cache->n_slots; i++) {
        slot *s = &cache->slots[cache->hand];
        cache->hand = (cache->hand + 1) % cache->n_slots;
        if (s->state == SLOT_EMPTY)
            return s;
        if (s->state == SLOT_LOADING || s->users > 0)
            continue;
        if (!s->recent) {
            make_empty(cache, s);
            return s;
        }
        s->recent = false;
    }
    return NULL;
}

/* Called and returns with the lock held. */
static int load_slot(qcow2_cache *cache, slot *s, uint64_t key, qcow2_cache_load *load,
                     const void *user)
{
    uint32_t *bucket = bucket_of(cache, key);
    s->key = key;
    s->epoch = cache->epoch;
    s->state = SLOT_LOADING;
    s->next = *bucket;
    *bucket = (uint32_t)(s - cache->slots);
    pthread_mutex_unlock(&cache->lock);
    if (!s->block)
        s->block = g_malloc(cache->block_size);
    int result = load(user, key, s->block);
    pthread_mutex_lock(&cache->lock);
    if (result == 0)
        s->state = SLOT_READY;
    else
        make_empty(cache, s);
    pthread_cond_broadcast(&cache->changed);
    return result;
}

int qcow2_cache_get(qcow2_cache *cache, uint64_t key, qcow2_cache_load *load,
                    const void *user, qcow2_block *ret_block)
{
    int result = 0;
    pthread_mutex_lock(&cache->lock);
    slot *s = find(cache, key);
    while (result == 0 && (!s || s->state != SLOT_READY)) {
        slot *free_slot = s ? NULL : take_slot(cache);
        if (free_slot)
            result = load_slot(cache, free_slot, key, load, user);
        else
            pthread_cond_wait(&cache->changed, &cache->lock);
        s = find(cache, key);
    }
    if (result == 0) {
        s->users++;
        s->recent = true;
        *ret_block = (qcow2_block){s->block, (uint32_t)(s - cache->slots)};
    }
    pthread_mutex_unlock(&cache->lock);
    return result;
}

void qcow2_cache_put(qcow2_cache *cache, qcow2_block *block)
{
    if (!block->data)
        return;
    pthread_mutex_lock(&cache->lock);
    if (--cache->slots[block->slot].users == 0)
        pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
    *block = (qcow2_block){0};
}

void qcow2_cache_clear(qcow2_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->epoch++;
    pthread_mutex_unlock(&cache->lock);
}
