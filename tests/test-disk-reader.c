/*
 * test-disk-reader.c: a read-only open after a crash (W6, R1): nobody reconciles, so the replicas
 * vote on what they hold, and nothing is written.
 */
#include "tests/disk-set.h"

static char *digest_files(set *s)
{
    g_autofree char *dir = support_path("state");
    return support_output("cat %s %s %s %s/*.state | sha256sum", s->rig->paths[0],
                          s->rig->paths[1], s->rig->paths[2], dir);
}

/* The write was cut off: a majority, three versions, and a part that all took. */
static void crash_in_write(set *s)
{
    set_init(s, 3, 2);
    crash_after_write(s, MIB, 4 * SECTOR);
    disk_rig_corrupt(s->rig, 2, MIB, SECTOR, 1);
    disk_rig_corrupt(s->rig, 1, MIB + SECTOR, SECTOR, 1);
    disk_rig_corrupt(s->rig, 2, MIB + SECTOR, SECTOR, 2);
}

static void check_reader(disk_pattern pattern)
{
    g_auto(set) s;
    crash_in_write(&s);
    g_autofree char *before = digest_files(&s);
    s.read_only = true;
    s.pattern = pattern;
    must_open(&s);
    cr_assert(!disk_writable(s.disk));
    cr_assert_gt(disk_unreconciled_bytes(s.disk), 0);
    for (unsigned k = 0; k < 3; k++) { /* whoever's turn it is */
        disk_rig_check_read(s.rig, MIB, SECTOR);
        cr_assert_eq(disk_rig_read(s.rig, MIB + SECTOR, SECTOR), -EIO);
        disk_rig_check_read(s.rig, MIB + 2 * SECTOR, 2 * SECTOR);
        disk_rig_check_read(s.rig, 0, MIB);
    }
    cr_assert_eq(disk_write(s.disk, MIB, SECTOR, s.rig->model), -EROFS);
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", ""), 0);
    set_close(&s);
    g_autofree char *after = digest_files(&s);
    cr_assert_str_eq(before, after);

    s.read_only = false; /* who may write does it, as if nobody had looked */
    must_open(&s);
    disk_rig_check_read(s.rig, MIB, 4 * SECTOR);
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", ""), 2);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_reader, W6_R1_a_reader_votes_on_what_a_crash_left)
{
    check_reader(DISK_PATTERN_QUORUM);
}

Test(disk_reader, W6_R1_also_who_asks_the_first)
{
    check_reader(DISK_PATTERN_FIFO);
}

Test(disk_reader, W6_R1_also_who_asks_in_turn)
{
    check_reader(DISK_PATTERN_ROTATE);
}
