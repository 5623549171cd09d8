/*
 * The cache of equal blocks: bounded, loads each block once, and stays right when many
 * threads want more blocks than it holds and some loads fail.
 */
#include "formats/qcow2-internal.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>

#define WORDS 8
#define KEYS  40

/* What the loads see; a key that is divisible by 10 fails on every second load. */
typedef struct source {
    unsigned loads[KEYS];
    unsigned running[KEYS]; /* loads under way */
    unsigned overlaps;
} source;

static int load(const void *user, uint64_t key, void *block)
{
    source *s = *(source *const *)user;
    uint64_t *words = block;
    if (__atomic_fetch_add(&s->running[key], 1, __ATOMIC_SEQ_CST) != 0)
        __atomic_fetch_add(&s->overlaps, 1, __ATOMIC_SEQ_CST);
    unsigned count = __atomic_add_fetch(&s->loads[key], 1, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < WORDS; i++)
        words[i] = key * 100 + i;
    __atomic_fetch_sub(&s->running[key], 1, __ATOMIC_SEQ_CST);
    return key % 10 == 0 && count % 2 ? -EIO : 0;
}

static int get(qcow2_cache *cache, source *s, uint64_t key)
{
    qcow2_block block = {0};
    int result = qcow2_cache_get(cache, key, load, &s, &block);
    const uint64_t *words = block.data;
    for (unsigned i = 0; result == 0 && i < WORDS; i++) {
        if (words[i] != key * 100 + i)
            result = -EBADMSG;
    }
    qcow2_cache_put(cache, &block);
    return result;
}

Test(qcow2_cache, a_block_is_loaded_once_while_it_fits)
{
    source s = {0};
    qcow2_cache *cache = qcow2_cache_new(WORDS * 8, 4);
    for (unsigned round = 0; round < 10; round++) {
        for (uint64_t key = 1; key <= 4; key++)
            cr_assert_eq(get(cache, &s, key), 0);
    }
    for (uint64_t key = 1; key <= 4; key++)
        cr_assert_eq(s.loads[key], 1);
    cr_assert_eq(get(cache, &s, 5), 0); /* takes a slot of one of them */
    unsigned loads = 0;
    for (uint64_t key = 1; key <= 5; key++) {
        cr_assert_eq(get(cache, &s, key), 0);
        loads += s.loads[key];
    }
    cr_assert_gt(loads, 5);
    qcow2_cache_free(cache);
    qcow2_cache_free(NULL);
}

Test(qcow2_cache, a_failed_load_is_not_kept)
{
    source s = {0};
    qcow2_cache *cache = qcow2_cache_new(WORDS * 8, 2);
    cr_assert_eq(get(cache, &s, 10), -EIO);
    cr_assert_eq(get(cache, &s, 10), 0);
    cr_assert_eq(get(cache, &s, 10), 0);
    cr_assert_eq(s.loads[10], 2);
    qcow2_cache_free(cache);
}

typedef struct worker {
    qcow2_cache *cache;
    source *s;
    uint64_t seed;
    unsigned wrong;
} worker;

static void *work(void *data)
{
    worker *w = data;
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t key = support_random(&w->seed) % KEYS;
        int result = get(w->cache, w->s, key);
        if (result != 0 && !(result == -EIO && key % 10 == 0))
            w->wrong++;
    }
    return NULL;
}

Test(qcow2_cache, threads_share_fewer_blocks_than_they_want)
{
    uint64_t seed = support_seed();
    for (unsigned n_blocks = 1; n_blocks <= 16; n_blocks *= 4) {
        source s = {0};
        worker workers[4];
        pthread_t threads[4];
        qcow2_cache *cache = qcow2_cache_new(WORDS * 8, n_blocks);
        for (unsigned i = 0; i < 4; i++) {
            workers[i] = (worker){cache, &s, support_random(&seed), 0};
            pthread_create(&threads[i], NULL, work, &workers[i]);
        }
        for (unsigned i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            cr_assert_eq(workers[i].wrong, 0);
        }
        cr_assert_eq(s.overlaps, 0);
        qcow2_cache_free(cache);
    }
}
