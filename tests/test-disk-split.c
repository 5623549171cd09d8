/*
 * test-disk-split.c: what image.h asks of those who write and flush several images at once:
 * one submission, every change finished, every flush carried on to its end.
 */
#include "tests/disk-rig.h"
#include "tests/fault.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SECTOR 512u
#define MIB    (1024u * 1024u)

static void write_ones(disk_rig *rig, uint64_t offset, size_t length, int expected)
{
    uint8_t data[8 * SECTOR];
    memset(data, 0x11, sizeof data);
    cr_assert_eq(disk_write(rig->disk, offset, length, data), expected);
    if (expected == 0)
        memset(rig->model + offset, 0x11, length);
}

static void expect_states(disk_rig *rig, uint64_t others, replica_state state)
{
    for (unsigned i = 0; i < rig->n; i++)
        disk_rig_expect_state(rig, i, others >> i & 1 ? state : REPLICA_IN_SYNC);
}

/* ---- Writes ---- */

Test(disk_split, W2_all_replicas_are_written_in_one_submission)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_track_changes();
    write_ones(rig, 4096 + 7, 2000, 0);
    cr_assert_eq(fault_runs(), 1);
    cr_assert_eq(fault_run_ops(), 3);
    cr_assert_eq(fault_finished_changes(), 3);
    cr_assert_eq(fault_open_changes(), 0);
    disk_rig_check_read(rig, 0, MIB);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_split, W2_a_driver_without_changes_has_nothing_to_finish)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_ops(1, ENOSPC, 1);
    write_ones(rig, 0, SECTOR, 0);
    expect_states(rig, 0, REPLICA_STALE);
    write_ones(rig, SECTOR, SECTOR, 0);
    expect_states(rig, 1u << 1, REPLICA_STALE);
    g_autofree char *record = disk_rig_only_record(rig, "replica-error", "write");
    g_autofree char *digest = disk_rig_digest(rig, SECTOR, SECTOR, 0);
    g_autofree char *expected =
        g_strdup_printf("512+512 a,c=%s|b!%d errno %d, served", digest, ENOSPC, ENOSPC);
    cr_assert_str_eq(record, expected);
    disk_rig_check_read(rig, 0, 4096);
}

/* a cannot prepare, c's op fails, e's finish fails: b and d took it, and all that prepared
 * were finished. */
Test(disk_split, W2_every_change_is_finished_whatever_the_others_say)
{
    g_autoptr(disk_rig) rig = disk_rig_new(5, 2, MIB);
    fault_track_changes();
    disk_rig_fail(rig, 0, FAULT_WRITE, ENOSPC, 0);
    fault_ops(2, EIO, 0);
    disk_rig_fail(rig, 4, FAULT_FINISH, EDQUOT, 0);
    write_ones(rig, 0, 4 * SECTOR, 0);
    cr_assert_eq(fault_run_ops(), 4);
    cr_assert_eq(fault_finished_changes(), 4);
    cr_assert_eq(fault_open_changes(), 0);
    expect_states(rig, 1u << 0 | 1u << 2 | 1u << 4, REPLICA_STALE);
    json_t *records = disk_rig_records(rig, "replica-error", "write");
    static const int expected[] = {ENOSPC, EIO, EDQUOT};
    cr_assert_eq(json_array_size(records), 3);
    for (unsigned k = 0; k < 3; k++)
        cr_assert_eq(record_int(json_array_get(records, k), "errno"), expected[k]);
    json_decref(records);
    disk_rig_check_read(rig, 0, 8 * SECTOR);
    disk_rig_check_replicas(rig, 1u << 1 | 1u << 3);
}

Test(disk_split, W3_a_write_that_fails_as_a_whole_is_finished_too)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_track_changes();
    disk_rig_fail(rig, 0, FAULT_FINISH, ENOSPC, 0);
    disk_rig_fail(rig, 2, FAULT_WRITE, ENOSPC, 0);
    write_ones(rig, 0, SECTOR, -ENOSPC);
    cr_assert_eq(fault_finished_changes(), 2);
    cr_assert_eq(fault_open_changes(), 0);
    expect_states(rig, 0, REPLICA_STALE);
    write_ones(rig, 0, SECTOR, 0);
    disk_rig_check_replicas(rig, 7);
}

/* ---- Flushes ---- */

Test(disk_split, W4_replicas_are_flushed_in_one_submission)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_eq(fault_runs(), 1);
    cr_assert_eq(fault_run_ops(), 3);
}

/* b takes three rounds more than the others, which have no ops in them. */
Test(disk_split, W4_a_flush_takes_as_many_rounds_as_the_slowest_replica)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_flush_rounds(disk_chain(rig->disk, 1), 3);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_eq(fault_runs(), 4);
    cr_assert_eq(fault_run_ops(), 1);
    expect_states(rig, 0, REPLICA_FAILED);
}

Test(disk_split, W4_a_failure_in_a_late_round_is_that_replicas)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_flush_rounds(disk_chain(rig->disk, 1), 3);
    fault_ops(1, EIO, 2);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_eq(fault_runs(), 3);
    expect_states(rig, 1u << 1, REPLICA_FAILED);
    g_autofree char *error = disk_rig_only_record(rig, "replica-error", "flush");
    cr_assert_str_eq(error, "0+0 a,c|b!5 errno 5, served");
}

Test(disk_split, W4_a_flush_is_carried_on_although_others_failed)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_flush_rounds(disk_chain(rig->disk, 1), 2);
    disk_rig_fail(rig, 0, FAULT_FLUSH, EIO, 0);
    fault_ops(2, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), -EIO);
    cr_assert_eq(fault_runs(), 3);
    expect_states(rig, 1u << 0 | 1u << 2, REPLICA_FAILED);
}
