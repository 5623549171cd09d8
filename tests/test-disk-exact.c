/*
 * test-disk-exact.c: replicas that missed different sectors of one region of the record (W2).
 */
#include "tests/disk-set.h"

/* Half is the threshold: nobody copies meanwhile (O4). */
Test(disk_exact, W2_replicas_that_missed_other_sectors_of_one_region_vote_elsewhere)
{
    g_auto(set) s;
    set_init(&s, 4, 2);
    for (unsigned k = 0; k < 3; k++) { /* the second and third on what was loaded */
        miss(&s, 1, MIB + 4 * k * SECTOR);
        miss(&s, 2, 2 * MIB - SECTOR - 4 * k * SECTOR);
        miss(&s, 3, MIB + MIB / 2 + 4 * k * SECTOR);
        set_close(&s);
        must_open(&s);
        for (unsigned i = 1; i < 4; i++)
            cr_assert_eq(status_of(&s, i).stale_bytes, (k + 1) * SECTOR);
        disk_rig_check_read(s.rig, MIB, MIB);
    }
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0);
}

/* Also when it ends without a close: by then the guest has been told. The second of them
 * misses part of two regions, in each of which another one missed something. */
static void check_crash(unsigned misses)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    pid_t child = fork();
    if (child == 0) {
        must_open(&s);
        disk_worker_stop(s.disk);
        miss(&s, 1, MIB - 3 * SECTOR);
        miss(&s, 1, MIB + 3 * SECTOR);
        disk_rig_fail(s.rig, 2, FAULT_WRITE, EIO, 0);
        write_model(&s, MIB - SECTOR, 2 * SECTOR, 9);
        if (misses > 3)
            miss(&s, 1, MIB + 9 * SECTOR);
        _exit(0);
    }
    await_child(child);
    memset(s.rig->model + MIB - 3 * SECTOR, 0xfd, SECTOR);
    memset(s.rig->model + MIB + 3 * SECTOR, 3, SECTOR);
    memset(s.rig->model + MIB - SECTOR, 9, 2 * SECTOR);
    if (misses > 3)
        memset(s.rig->model + MIB + 9 * SECTOR, 9, SECTOR);
    must_open(&s);
    disk_rig_check_read(s.rig, 0, MIB);
    disk_rig_check_read(s.rig, MIB, MIB);
    await_in_sync(&s);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_exact, W2_what_is_exact_survives_a_crash)
{
    check_crash(3);
}

Test(disk_exact, W2_what_was_added_to_it_survives_a_crash)
{
    check_crash(4);
}

/* What was copied to a replica may still be lost: on record it is missed until a flush. */
Test(disk_exact, W2_what_was_copied_and_not_flushed_stays_on_record)
{
    g_auto(set) s;
    uint64_t offset, length;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    miss(&s, 1, MIB + 5 * SECTOR);
    cr_assert(disk_resync_step(s.disk));
    disk_rig_expect_state(s.rig, 1, REPLICA_RESYNCING);
    cr_assert_eq(status_of(&s, 1).stale_bytes, 0);
    miss(&s, 1, MIB + 20 * SECTOR);
    miss(&s, 2, MIB + 7 * SECTOR);
    cr_assert(state_next_stale(s.disk->store, 1, 0, &offset, &length));
    cr_assert_eq(offset, MIB + 5 * SECTOR);
    cr_assert_eq(length, SECTOR);
    cr_assert(state_next_stale(s.disk->store, 1, offset + length, &offset, &length));
    cr_assert_eq(offset, MIB + 20 * SECTOR);
    while (disk_worker_step(s.disk))
        ;
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    cr_assert(!state_next_stale(s.disk->store, 1, 0, &offset, &length));
    cr_assert_eq(rangeset_count(&s.disk->replicas[1].copied), 0);
}
