/*
 * test-disk-judge.c: what is made of reads in which several things go wrong at once.
 */
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>

#define SECTOR 512u
#define KIB    1024u
#define MIB    (1024u * 1024u)

static void fail_read(disk_rig *rig, unsigned i, uint64_t offset, uint64_t length,
                      int error, unsigned times)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_READ,
                      .offset = offset,
                      .length = length,
                      .error = error,
                      .times = times});
}

/* Two stretches of one request, each lost in its own way: neither errno is the answer. */
Test(disk_judge, R3_different_errors_of_different_sectors_are_EIO)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 2, MIB);
    fail_read(rig, 0, 0, SECTOR, ENODEV, 0);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -ENODEV);
    fail_read(rig, 1, 8 * KIB, SECTOR, ENXIO, 0);
    cr_assert_eq(disk_rig_read(rig, 8 * KIB, 4096), -ENXIO);
    cr_assert_eq(disk_rig_read(rig, 0, 16 * KIB), -EIO);
}

/* What the replica did not answer in time is not asked for in 2,400 small pieces. */
Test(disk_judge, R5_a_time_out_ends_the_search_for_bad_sectors)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 0, 0, MIB, EIO, 2); /* the request and its first 64 KiB */
    fail_read(rig, 0, 0, MIB, ETIMEDOUT, 0);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert_eq(fault_hits(), 3);
    cr_assert_eq(disk_rig_count(rig, "replica-error", "read"), 2); /* 4 KiB, the rest */
}

Test(disk_judge, bad_ranges_without_a_majority_cut_those_with_one)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 2, 0, 8 * SECTOR, 1);
    disk_rig_check_read(rig, 0, 4096);
    for (unsigned k = 2; k <= 5; k += 3) {
        disk_rig_corrupt(rig, 0, k * SECTOR, SECTOR, 2);
        cr_assert_eq(disk_rig_read(rig, k * SECTOR, SECTOR), -EIO);
    }
    static const disk_bad_range wanted[] = {
        {0, 2, false}, {2, 1, true}, {3, 2, false}, {5, 1, true}, {6, 2, false}};
    g_autoptr(GArray) bad = disk_bad_ranges(rig->disk);
    cr_assert_eq(bad->len, G_N_ELEMENTS(wanted));
    for (unsigned k = 0; k < bad->len; k++) {
        const disk_bad_range *range = &g_array_index(bad, disk_bad_range, k);
        cr_assert_eq(range->offset, wanted[k].offset * SECTOR);
        cr_assert_eq(range->length, wanted[k].length * SECTOR);
        cr_assert_eq(range->no_quorum, wanted[k].no_quorum);
    }
}
