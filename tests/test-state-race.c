/*
 * test-state-race.c: marks and clears at the same time (W5), and what a mark costs.
 */
#include "quorum/state-internal.h"
#include "tests/state-rig.h"
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* Writers mark regions that a clearer clears as fast as it can. Between begin and end each
 * looks into the file, where the bit has to stand. */
#define RACE_REGIONS 64u
#define RACE_CLEARED 20

typedef struct race {
    state *s;
    int fd;
    atomic_bool stop;
    atomic_uint errors, lost, cleared;
    unsigned steps;
    uint64_t seed;
} race;

static void race_look(race *r, unsigned region)
{
    uint8_t byte;
    off_t at = STATE_AREA_MIN + region / 8;
    if (pread(r->fd, &byte, 1, at) != 1 || !(byte >> region % 8 & 1))
        atomic_fetch_add(&r->lost, 1);
}

static void *race_writer(void *opaque)
{
    race *r = opaque;
    uint64_t seed = r->seed + (uintptr_t)&seed;
    for (unsigned k = 0; k < r->steps || atomic_load(&r->cleared) < RACE_CLEARED; k++) {
        unsigned region = (unsigned)(support_random(&seed) % RACE_REGIONS);
        uint64_t offset = (uint64_t)region * RIG_INTENT;
        if (state_write_begin(r->s, offset, 1) != 0)
            atomic_fetch_add(&r->errors, 1);
        race_look(r, region);
        state_write_end(r->s, offset, 1, true);
    }
    return NULL;
}

/* One replica is marked here and there, and said to be copied all the time. */
static void *race_marker(void *opaque)
{
    race *r = opaque;
    for (unsigned k = 0; k < r->steps / 16; k++) {
        uint64_t offset = (k % 8) * RIG_STALE;
        if (state_mark_stale(r->s, 1, offset, 1) != 0)
            atomic_fetch_add(&r->errors, 1);
    }
    return NULL;
}

static void *race_clearer(void *opaque)
{
    race *r = opaque;
    while (!atomic_load(&r->stop)) {
        state_collection *collection = state_collect(r->s);
        int64_t cleared = collection ? state_clear(r->s, collection) : 0;
        atomic_fetch_add(cleared < 0 ? &r->errors : &r->cleared,
                         (unsigned)llabs(cleared));
        state_stale_copied(r->s, 1, 0, 8 * RIG_STALE);
        if (state_stale_clear(r->s, 1) < 0)
            atomic_fetch_add(&r->errors, 1);
    }
    return NULL;
}

Test(state, W5_no_mark_is_lost_in_a_race)
{
    g_autofree char *dir = NULL;
    race r = {.s = rig_start(&dir), .steps = 1000, .seed = support_seed()};
    g_autofree char *path = state_path(dir, "disk");
    r.fd = open(path, O_RDONLY | O_CLOEXEC);
    rig_set(r.s, 1, STATE_REMOVED); /* its marks must not keep regions dirty */
    GThread *threads[4];
    GThread *clearer = g_thread_new("clearer", race_clearer, &r);
    for (unsigned k = 0; k < G_N_ELEMENTS(threads); k++)
        threads[k] = g_thread_new("racer", k ? race_writer : race_marker, &r);
    for (unsigned k = 0; k < G_N_ELEMENTS(threads); k++)
        g_thread_join(threads[k]);
    atomic_store(&r.stop, true);
    g_thread_join(clearer);
    cr_assert_eq(atomic_load(&r.errors), 0);
    cr_assert_eq(atomic_load(&r.lost), 0);
    state *after = rig_peek_as_is(dir);
    cr_assert_eq(state_unreconciled_bytes(after), state_dirty_bytes(r.s));
    cr_assert_eq(state_stale_bytes(after, 1), state_stale_bytes(r.s, 1));
    state_close(after);
    state_close(r.s);
    close(r.fd);
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Nothing depends on it: printed, for whoever looks. */
Test(state, W5_cost_of_a_mark)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    uint64_t from = now_ns();
    for (unsigned k = 0; k < 100; k++)
        rig_write(s, (uint64_t)k * RIG_INTENT, 1);
    uint64_t slow = (now_ns() - from) / 100;
    from = now_ns();
    for (unsigned k = 0; k < 1000000; k++) {
        state_write_begin(s, 0, 4096);
        state_write_end(s, 0, 4096, true);
    }
    uint64_t fast = (now_ns() - from) / 1000;
    printf("a mark: %" G_GUINT64_FORMAT
           " ns; begin and end where it is set: %" G_GUINT64_FORMAT ".%03u ns\n",
           slow, fast / 1000, (unsigned)(fast % 1000));
    state_close(s);
}
