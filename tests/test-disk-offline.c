/*
 * test-disk-offline.c: a disk that somebody has for himself (offline.h): what it does to the
 * replicas, what is saved before, and what the next mount makes of it (O5, W2, W6).
 */
#include "quorum/disk-internal.h"
#include "quorum/offline.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <utime.h>

#define MIB    (1u << 20)
#define SECTOR 512u
#define SIZE   (4u * MIB)

/* What the saver was told, by replica. */
static struct {
    unsigned calls;
    uint64_t bytes[8], first[8];
    bool told_right; /* `old` is what the file holds, `new` is the model */
    int answer, commit_answer;
    unsigned commits;
    disk_rig *rig;
} saved;

static disk *try_open(disk_rig *rig, bool offline, GError **error)
{
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->offline = offline;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    rig->disk = disk_open(options, rig->journal, error);
    disk_options_free(options);
    return rig->disk;
}

static int save(void *opaque, unsigned i, uint64_t offset, const void *old,
                const void *new, size_t length)
{
    size_t size;
    (void)opaque;
    g_autofree uint8_t *held = support_load(saved.rig->paths[i], &size);
    if (saved.calls++ == 0)
        saved.told_right = true;
    saved.told_right &= !old || memcmp(old, held + offset, length) == 0;
    saved.told_right &= memcmp(new, saved.rig->model + offset, length) == 0;
    saved.first[i] = saved.bytes[i] ? MIN(saved.first[i], offset) : offset;
    saved.bytes[i] += length;
    return saved.answer;
}

/* Until then nothing is overwritten. */
static int commit(void *opaque)
{
    (void)opaque;
    saved.commits++;
    return saved.commit_answer;
}

static void must_open(disk_rig *rig, bool offline)
{
    GError *error = NULL;
    cr_assert_not_null(try_open(rig, offline, &error), "%s", error ? error->message : "");
    if (offline) {
        memset(&saved, 0, sizeof saved);
        saved.rig = rig;
        disk_set_saver(rig->disk, (repair_saver){.save = save, .commit = commit});
    }
}

static void must_close(disk_rig *rig)
{
    cr_assert_eq(disk_close(g_steal_pointer(&rig->disk)), 0);
    fault_clear();
}

/* Three replicas that were mounted once, closed. */
static disk_rig *rig_mounted(void)
{
    disk_rig *rig = disk_rig_new(3, 0, SIZE);
    must_close(rig);
    must_open(rig, false);
    must_close(rig);
    return rig;
}

/* Replica i misses a write: closed again before it has caught up. */
static void miss_write(disk_rig *rig, unsigned i, uint64_t offset, size_t length)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, 0x33, length);
    must_open(rig, false);
    disk_rig_fail(rig, i, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, offset, length, data), 0);
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_WRITE,
                      .error = EIO}); /* nor does it now */
    must_close(rig);
    memcpy(rig->model + offset, data, length);
}

/* The next mount has nothing to do, and all replicas hold the model. */
static void expect_healthy(disk_rig *rig)
{
    must_open(rig, false);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    cr_assert_eq(disk_offline_unreconciled(rig->disk), 0);
    disk_rig_check_replicas(rig, 7);
    must_close(rig);
}

static void touch(disk_rig *rig, unsigned i)
{
    const struct utimbuf times = {1000000000, 1000000000 + (time_t)i};
    cr_assert_eq(utime(rig->paths[i], &times), 0);
}

static repair_stats repair_all(disk_rig *rig, int from)
{
    const repair_options options = {.from = from, .op = "repair"};
    repair_stats stats = {0};
    cr_assert_eq(disk_repair_range(rig->disk, 0, rig->size, &options, &stats), 0);
    return stats;
}

/* ---- Stale replicas ----------------------------------------------------------------------- */

Test(disk_offline, W2_what_was_missed_is_compared_saved_and_written)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    miss_write(rig, 1, MIB, 8192);
    must_open(rig, true);
    disk_rig_expect_state(rig, 1, REPLICA_STALE); /* nobody has begun by himself */
    cr_assert(disk_offline_is_stale(rig->disk, 1, MIB, SECTOR));
    cr_assert(!disk_offline_is_stale(rig->disk, 0, MIB, SECTOR));
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), 0);
    cr_assert_eq(saved.bytes[1], 8192);
    cr_assert_eq(saved.first[1], MIB);
    cr_assert(saved.told_right);
    cr_assert_eq(saved.bytes[0] + saved.bytes[2], 0);
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    must_close(rig);
    expect_healthy(rig);
}

/* Somebody touched its file: stale as a whole, though it lacks next to nothing. */
Test(disk_offline, O5_a_changed_replica_is_written_only_where_it_differs)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    disk_rig_corrupt(rig, 2, 3 * MIB + SECTOR, SECTOR, 1);
    touch(rig, 2);
    must_open(rig, true);
    replica_status status;
    disk_replica_status(rig->disk, 2, &status);
    cr_assert_eq(status.stale_bytes, SIZE);
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), 0);
    cr_assert_eq(saved.calls, 1);
    cr_assert_eq(saved.bytes[2], SECTOR);
    cr_assert_eq(saved.first[2], 3 * MIB + SECTOR);
    must_close(rig);
    expect_healthy(rig);
}

Test(disk_offline, W2_where_the_others_do_not_agree_it_stays_stale)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    disk_rig_corrupt(rig, 1, 0, SIZE, 1);
    touch(rig, 1);
    must_open(rig, true);
    disk_rig_corrupt(rig, 0, MIB, SECTOR, 2); /* a and c: one against one */
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), 0);
    cr_assert_eq(saved.bytes[1], SIZE - SECTOR);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    must_close(rig);
    must_open(rig, true);
    cr_assert(disk_offline_is_stale(rig->disk, 1, MIB, SECTOR));
    cr_assert(!disk_offline_is_stale(rig->disk, 1, 0, MIB));
    cr_assert(!disk_offline_is_stale(rig->disk, 1, 2 * MIB, 2 * MIB));
    must_close(rig);
}

Test(disk_offline, what_cannot_be_saved_stays_as_it_is)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    miss_write(rig, 1, MIB, 8192);
    must_open(rig, true);
    saved.answer = -ENOSPC;
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), -ENOSPC);
    cr_assert_eq(saved.calls, 1);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    must_close(rig);
    must_open(rig, true);
    cr_assert(disk_offline_is_stale(rig->disk, 1, MIB, SECTOR));
    must_close(rig);
}

Test(disk_offline, a_piece_is_saved_as_a_whole_before_it_is_overwritten)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    must_open(rig, true);
    for (unsigned k = 0; k < 8; k++)
        disk_rig_corrupt(rig, 1, 4096 * k, SECTOR, 1);
    saved.commit_answer = -EIO;
    cr_assert_eq(repair_all(rig, -1).failed, 8 * SECTOR);
    cr_assert_eq(saved.calls, 8);
    cr_assert_eq(saved.commits, 1);
    must_close(rig);
    touch(rig, 1); /* stale as a whole */
    must_open(rig, true);
    saved.commit_answer = -EIO;
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), -EIO);
    cr_assert_eq(saved.commits, 1);
    cr_assert_eq(saved.bytes[1], 8 * SECTOR); /* all of it was still to be done */
    must_close(rig);
    must_open(rig, true);
    cr_assert_eq(disk_offline_catch_up(rig->disk, NULL, NULL, NULL), 0);
    cr_assert_eq(saved.bytes[1], 8 * SECTOR);
    must_close(rig);
    expect_healthy(rig);
}

Test(disk_offline, it_can_be_cancelled)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    const volatile int cancel = 1;
    miss_write(rig, 1, MIB, 8192);
    must_open(rig, true);
    cr_assert_eq(disk_offline_catch_up(rig->disk, &cancel, NULL, NULL), -EINTR);
    cr_assert_eq(saved.calls, 0);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    must_close(rig);
}

/* ---- After a crash ------------------------------------------------------------------------ */

/* The record as it was while a write was under way, put in its place after the close. */
static void leave_dirty(disk_rig *rig, uint64_t offset)
{
    uint8_t data[SECTOR];
    size_t length;
    g_autofree char *dir = support_path("state");
    g_autofree char *path = state_path(dir, "disk");
    memset(data, 0x44, sizeof data);
    must_open(rig, false);
    cr_assert_eq(disk_write(rig->disk, offset, SECTOR, data), 0);
    memcpy(rig->model + offset, data, sizeof data);
    g_autofree uint8_t *record = support_load(path, &length);
    must_close(rig);
    support_save(path, record, length);
}

Test(disk_offline, W6_what_a_crash_left_is_reconciled_and_saved)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    leave_dirty(rig, MIB);
    disk_rig_corrupt(rig, 2, MIB, SECTOR, 1);
    must_open(rig, true);
    cr_assert_gt(disk_offline_unreconciled(rig->disk), 0);
    cr_assert_eq(saved.calls, 0); /* nobody has begun by himself */
    cr_assert_eq(disk_offline_reconcile(rig->disk, NULL), 0);
    cr_assert_eq(disk_offline_unreconciled(rig->disk), 0);
    cr_assert_eq(saved.bytes[2], SECTOR);
    cr_assert(saved.told_right);
    must_close(rig);
    expect_healthy(rig);
}

Test(disk_offline, W6_what_cannot_be_saved_is_not_reconciled)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    leave_dirty(rig, MIB);
    disk_rig_corrupt(rig, 2, MIB, SECTOR, 1);
    must_open(rig, true);
    saved.answer = -ENOSPC;
    cr_assert_eq(disk_offline_reconcile(rig->disk, NULL), -ENOSPC);
    disk_rig_expect_state(rig, 2, REPLICA_IN_SYNC);
    must_close(rig);
    must_open(rig, true);
    cr_assert_gt(disk_offline_unreconciled(rig->disk), 0);
    must_close(rig);
}

/* Killed in the middle, a repair must not leave regions that the next mount makes equal by
 * taking the first replica. */
Test(disk_offline, W5_a_repair_leaves_no_intent)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    must_open(rig, true);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 1);
    repair_stats stats = repair_all(rig, -1);
    cr_assert_eq(stats.repaired, SECTOR);
    cr_assert_eq(state_dirty_bytes(rig->disk->store), 0);
    must_close(rig);
    expect_healthy(rig);
}

/* ---- One replica is right ----------------------------------------------------------------- */

static void change_two(disk_rig *rig)
{
    disk_rig_corrupt(rig, 1, MIB, 2 * SECTOR, 1);
    disk_rig_corrupt(rig, 2, MIB, SECTOR, 2);
    touch(rig, 1);
    touch(rig, 2);
    cr_assert_null(try_open(rig, false, NULL)); /* too few are in sync */
}

Test(disk_offline, O5_one_replica_is_right_and_all_are_in_sync)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    change_two(rig);
    must_open(rig, true);
    cr_assert_str_eq(disk_state_name(rig->disk), "failed");
    cr_assert(disk_writable(rig->disk));
    disk_offline_trust(rig->disk);
    repair_stats stats = repair_all(rig, 0);
    cr_assert_eq(stats.repaired, 2 * SECTOR);
    cr_assert_eq(saved.bytes[1], 2 * SECTOR);
    cr_assert_eq(saved.bytes[2], SECTOR);
    cr_assert_eq(disk_offline_settle(rig->disk, true), 0);
    must_close(rig);
    expect_healthy(rig);
}

Test(disk_offline, O5_unless_it_came_to_its_end_the_record_stays)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    change_two(rig);
    must_open(rig, true);
    disk_offline_trust(rig->disk);
    cr_assert_eq(disk_offline_settle(rig->disk, false), 0);
    must_close(rig);
    GError *error = NULL;
    cr_assert_null(try_open(rig, false, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_STALE));
    g_error_free(error);
}

/* The region that a crash left dirty is not reconciled by a majority that is wrong. */
Test(disk_offline, W6_trust_comes_before_reconciling)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    leave_dirty(rig, MIB);
    disk_rig_corrupt(rig, 0, MIB, SECTOR, 1);
    disk_rig_corrupt(rig, 1, MIB, SECTOR, 1);
    must_open(rig, true);
    disk_offline_trust(rig->disk);
    repair_stats stats = repair_all(rig, 2);
    cr_assert_eq(stats.repaired, SECTOR);
    cr_assert_eq(disk_offline_settle(rig->disk, true), 0);
    must_close(rig);
    expect_healthy(rig);
}

Test(disk_offline, W6_what_stays_different_stays_dirty)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    leave_dirty(rig, MIB);
    must_open(rig, true);
    disk_offline_trust(rig->disk);
    cr_assert_eq(disk_offline_unreconciled(rig->disk), 0);
    cr_assert_eq(disk_offline_settle(rig->disk, false), 0);
    must_close(rig);
    must_open(rig, true);
    cr_assert_gt(disk_offline_unreconciled(rig->disk), 0);
    must_close(rig);
}

/* ---- Putting back ------------------------------------------------------------------------- */

Test(disk_offline, what_is_put_back_is_in_one_replica)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    uint8_t data[SECTOR];
    memset(data, 0x77, sizeof data);
    must_open(rig, true);
    cr_assert_eq(disk_offline_put_back(rig->disk, 1, MIB, data, SECTOR, false), 0);
    cr_assert_eq(state_dirty_bytes(rig->disk->store), 0);
    must_close(rig);
    must_open(rig, false);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_replicas(rig, 5);
    disk_rig_check_read(rig, MIB, SECTOR);
    cr_assert_eq(disk_rig_count(rig, "divergence", "read"), 1);
    must_close(rig);
}

Test(disk_offline, W2_what_was_stale_is_stale_again)
{
    g_autoptr(disk_rig) rig = rig_mounted();
    uint8_t data[SECTOR];
    memset(data, 0x77, sizeof data);
    must_open(rig, true);
    cr_assert_eq(disk_offline_put_back(rig->disk, 1, MIB, data, SECTOR, true), 0);
    must_close(rig);
    must_open(rig, true);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    cr_assert(disk_offline_is_stale(rig->disk, 1, MIB, SECTOR));
    must_close(rig);
}
