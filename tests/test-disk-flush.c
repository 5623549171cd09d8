/*
 * test-disk-flush.c: flushes that run beside each other (W4). The kernel tells of a lost write
 * once: of two flushes, each of which has to cover it, only one may hear of it from the replica.
 */
#include "tests/disk-set.h"

/* Other threads that flush; started in the middle of a flush, from a hook. */
static struct {
    disk *disk;
    unsigned threads;
    GThread *running[8];
    int results[8];
    atomic_uint ended;
} others;

static void *flush_once(void *opaque)
{
    int *result = opaque;
    *result = disk_flush(others.disk);
    atomic_fetch_add(&others.ended, 1);
    return NULL;
}

static unsigned count_waiting(disk *d)
{
    g_mutex_lock(&d->flush_turns.lock);
    unsigned n = d->flush_turns.n_waiting;
    g_mutex_unlock(&d->flush_turns.lock);
    return n;
}

/* Until all of them wait for their turn, or need not. */
static void start_others(void)
{
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    atomic_store(&others.ended, 0);
    for (unsigned k = 0; k < others.threads; k++)
        others.running[k] = g_thread_new("other", flush_once, &others.results[k]);
    while (count_waiting(others.disk) + atomic_load(&others.ended) < others.threads) {
        cr_assert_lt(g_get_monotonic_time(), deadline);
        g_usleep(1000);
    }
}

static void join_others(void)
{
    for (unsigned k = 0; k < others.threads; k++)
        g_thread_join(others.running[k]);
}

/* The next flush of replica i fails with `error` (0: not), after it has started the others. */
static void interrupt(set *s, unsigned i, int error, unsigned threads)
{
    others.disk = s->disk;
    others.threads = threads;
    fault_add((fault){.chain = disk_chain(s->disk, i),
                      .kind = FAULT_FLUSH,
                      .error = error,
                      .times = 1,
                      .hook = start_others});
}

Test(disk_flush, W4_a_lost_write_fails_every_flush_that_has_to_cover_it)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    write_model(&s, 0, SECTOR, 1);
    disk_rig_fail(s.rig, 1, FAULT_FLUSH, EIO, 0);
    interrupt(&s, 2, EIO, 2);
    cr_assert_eq(disk_flush(s.disk), -EIO);
    join_others();
    cr_assert_eq(others.results[0], -EIO);
    cr_assert_eq(others.results[1], -EIO);
}

Test(disk_flush, W4_one_that_failed_alone_is_out_for_those_that_waited)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    write_model(&s, 0, SECTOR, 1);
    interrupt(&s, 2, EIO, 1);
    cr_assert_eq(disk_flush(s.disk), 0);
    join_others();
    cr_assert_eq(others.results[0], 0);
    disk_rig_expect_state(s.rig, 2, REPLICA_FAILED);
}

Test(disk_flush, W4_those_that_wait_share_the_next_flush)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    write_model(&s, 0, SECTOR, 1);
    interrupt(&s, 2, 0, 8);
    fault_add((fault){.chain = disk_chain(s.disk, 0), .kind = FAULT_FLUSH});
    cr_assert_eq(disk_flush(s.disk), 0);
    join_others();
    for (unsigned k = 0; k < 8; k++)
        cr_assert_eq(others.results[k], 0);
    cr_assert_eq(fault_hits(), 1 + 2); /* c once, and two flushes of a */
    disk_counters counters;
    disk_get_counters(s.disk, &counters);
    cr_assert_eq(counters.flushes, 9);
}

/* What a resync's own flush hears must not be missing in the guest's. */
Test(disk_flush, W4_a_flush_that_failed_in_a_resync_is_known_to_the_guests)
{
    g_auto(set) s;
    set_init(&s, 4, 3);
    disk_worker_stop(s.disk);
    miss(&s, 1, MIB);
    cr_assert(disk_resync_step(s.disk)); /* copied */
    disk_rig_fail(s.rig, 3, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(s.disk), 0);
    disk_rig_expect_state(s.rig, 3, REPLICA_FAILED);
    interrupt(&s, 1, EIO, 1);
    cr_assert(disk_resync_step(s.disk)); /* flushed, in vain */
    join_others();
    cr_assert_eq(others.results[0], -EIO);
    disk_rig_expect_state(s.rig, 1, REPLICA_FAILED);
}
