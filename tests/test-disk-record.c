/*
 * test-disk-record.c: what must be in the record, and what is made of it, where another rule
 * would hide that it was not (W2, W4, W5, W7, O5). Nothing is done in the background, but what
 * a worker may have done before it was stopped.
 */
#include "tests/disk-set.h"

static void quiet_open(set *s)
{
    must_open(s);
    cr_assert(disk_rejoin_stop(s->disk));
    disk_worker_stop(s->disk);
}

static void quiet_init(set *s, unsigned n, unsigned threshold)
{
    set_init(s, n, threshold);
    set_close(s);
    quiet_open(s);
}

static void work(set *s)
{
    while (disk_worker_step(s->disk))
        ;
}

/* A replica that failed a flush and never came back. Its file looks as it did before, as that of
 * a remote one always does. */
Test(disk_record, W4_one_that_is_recorded_as_failed_is_stale_as_a_whole)
{
    g_auto(set) s;
    quiet_init(&s, 4, 2); /* half: nobody copies (O4) */
    disk_rig_fail(s.rig, 1, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(s.disk), 0);
    disk_rig_expect_state(s.rig, 1, REPLICA_FAILED);
    set_close(&s);
    quiet_open(&s);
    disk_rig_expect_state(s.rig, 1, REPLICA_STALE);
    cr_assert_eq(status_of(&s, 1).stale_bytes, SIZE);
}

/* It was out before: nothing but the mark of each change tells that it missed that one. */
Test(disk_record, W2_who_was_not_asked_missed_the_change)
{
    g_auto(set) s;
    quiet_init(&s, 4, 2);
    fault_add(
        (fault){.chain = disk_chain(s.disk, 1), .kind = FAULT_WRITE, .error = ETIMEDOUT});
    write_model(&s, 0, SECTOR, 1);
    disk_rig_expect_state(s.rig, 1, REPLICA_HUNG);
    write_model(&s, 3 * MIB, SECTOR, 2);
    cr_assert_eq(fault_hits(), 1);
    cr_assert(state_is_stale(s.disk->store, 1, 3 * MIB, SECTOR));
    set_close(&s);
    quiet_open(&s);
    cr_assert_eq(status_of(&s, 1).stale_bytes, SIZE); /* what was dirty then, too */
    disk_rig_check_read(s.rig, 3 * MIB, MIB);
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0);
}

/* Also of a change that fails: those that were asked hold old or new bytes, but that one only
 * old ones, and the next change that succeeds there may be a part of it only. */
Test(disk_record, W3_who_was_not_asked_missed_a_change_that_failed)
{
    g_auto(set) s;
    uint8_t data[SECTOR] = {1};
    quiet_init(&s, 5, 3);
    fault_add(
        (fault){.chain = disk_chain(s.disk, 1), .kind = FAULT_WRITE, .error = ETIMEDOUT});
    write_model(&s, 0, SECTOR, 1);
    disk_rig_expect_state(s.rig, 1, REPLICA_HUNG);
    disk_rig_fail(s.rig, 2, FAULT_WRITE, ENOSPC, 0);
    disk_rig_fail(s.rig, 3, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(s.disk, 3 * MIB, SECTOR, data), -ENOSPC);
    cr_assert(state_is_stale(s.disk->store, 1, 3 * MIB, SECTOR));
    cr_assert(!state_is_stale(s.disk->store, 2, 3 * MIB, SECTOR));
}

/* Their old bytes would be outvoted; that they differ says nothing (R4). */
Test(disk_record, W7_a_copy_asks_nobody_who_is_stale_there)
{
    g_auto(set) s;
    quiet_init(&s, 5, 3);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ENOSPC, 0);
    disk_rig_fail(s.rig, 2, FAULT_WRITE, ENOSPC, 0);
    write_model(&s, MIB, SECTOR, 1);
    work(&s);
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0);
    cr_assert_eq(status_of(&s, 1).divergent_bytes + status_of(&s, 2).divergent_bytes, 0);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 31);
}

/* The flush that was to allow the clearing is the one that a replica fails. */
Test(disk_record, W5_a_replica_that_goes_missing_keeps_the_intent)
{
    g_auto(set) s;
    quiet_init(&s, 3, 2);
    write_model(&s, MIB, SECTOR, 1);
    disk_rig_fail(s.rig, 2, FAULT_FLUSH, EIO, 0);
    disk_state_tidy(s.disk);
    disk_rig_expect_state(s.rig, 2, REPLICA_FAILED);
    cr_assert_eq(state_dirty_bytes(s.disk->store), SIZE);
    disk_state_tidy(s.disk);
    cr_assert_eq(state_dirty_bytes(s.disk->store), SIZE);
}

static set *missing;

static void *write_beside(void *opaque)
{
    (void)opaque;
    miss(missing, 1, 2 * MIB);
    return NULL;
}

static void miss_in_flush(void)
{
    g_thread_join(g_thread_new("guest", write_beside, NULL));
}

/* Between the last copy and the end of the flush it misses another write. */
Test(disk_record, W7_who_missed_something_meanwhile_has_not_caught_up)
{
    g_auto(set) s;
    quiet_init(&s, 3, 2);
    miss(&s, 1, MIB);
    cr_assert(disk_resync_step(s.disk)); /* copied */
    missing = &s;
    fault_add((fault){.chain = disk_chain(s.disk, 0),
                      .kind = FAULT_FLUSH,
                      .times = 1,
                      .hook = miss_in_flush});
    cr_assert(disk_resync_step(s.disk)); /* flushed */
    disk_rig_expect_state(s.rig, 1, REPLICA_RESYNCING);
    cr_assert_eq(status_of(&s, 1).stale_bytes, SECTOR);
    cr_assert(state_is_stale(s.disk->store, 1, 2 * MIB, SECTOR));
    cr_assert(!state_is_stale(s.disk->store, 1, MIB, SECTOR));
    work(&s);
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    cr_assert_eq(state_stale_bytes(s.disk->store, 1), 0);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* The last flush fails: the session did not end, whatever was written to the files since. */
Test(disk_record, W4_a_close_that_could_not_flush_is_as_a_crash)
{
    g_auto(set) s;
    quiet_init(&s, 3, 2);
    write_model(&s, MIB, SECTOR, 1);
    fault_add((fault){.kind = FAULT_FLUSH, .error = ENOSPC});
    cr_assert_eq(disk_close(g_steal_pointer(&s.disk)), -ENOSPC);
    s.rig->disk = NULL;
    fault_clear();
    disk_rig_corrupt(s.rig, 2, MIB, SECTOR, 1); /* what the cache lost */
    quiet_open(&s);
    cr_assert(!state_was_clean(s.disk->store));
    work(&s);
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", "reconcile"), 1);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
}
