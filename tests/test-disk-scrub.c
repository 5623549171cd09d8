/*
 * test-disk-scrub.c: all of a disk is looked at while guests use it (quorum/scrub.h), and
 * stale replicas are filled when somebody asks for it (disk_resync).
 */
#include "quorum/disk-internal.h"
#include "quorum/scrub.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SECTOR 512u
#define MIB    (1024u * 1024u)

static scrub_status status_of(disk_rig *rig)
{
    scrub_status status;
    scrub_get_status(rig->disk, &status);
    return status;
}

static scrub_status await_end(disk_rig *rig)
{
    while (status_of(rig).state == SCRUB_RUNNING)
        g_thread_yield();
    return status_of(rig);
}

static scrub_status scrub_all(disk_rig *rig, bool repair)
{
    const scrub_options options = {.repair = repair};
    cr_assert_eq(scrub_start(rig->disk, &options), 0);
    return await_end(rig);
}

/* One whose first piece is also its last for the next 12 days. */
static void start_slowly(disk_rig *rig)
{
    const scrub_options options = {.speed = 1};
    cr_assert_eq(scrub_start(rig->disk, &options), 0);
    while (status_of(rig).offset == 0)
        g_thread_yield();
}

/* ---- What it finds ---- */

Test(disk_scrub, before_the_first_there_is_none)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(status_of(rig).state, SCRUB_NONE);
    cr_assert_eq(scrub_cancel(rig->disk), -ENOENT);
}

Test(disk_scrub, R4_every_flip_is_found_and_nothing_is_written)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 5 * MIB + 300);
    uint8_t *held[3];
    size_t length;
    for (unsigned k = 0; k < 40; k++)
        disk_rig_corrupt(rig, k % 3, k * 131072 + k * 2 * SECTOR, 1, 0x01);
    disk_rig_corrupt(rig, 1, 5 * MIB + 299, 1, 0x01);
    for (unsigned i = 0; i < 3; i++)
        held[i] = support_load(rig->paths[i], &length);
    scrub_status status = scrub_all(rig, false);
    cr_assert_eq(status.state, SCRUB_COMPLETED);
    cr_assert_eq(status.error, 0);
    cr_assert_eq(status.offset, rig->size);
    cr_assert_eq(status.stats.checked, rig->size);
    cr_assert_eq(status.stats.differing, 40 * SECTOR + 300);
    cr_assert_eq(status.stats.repaired, 0);
    cr_assert_eq(disk_rig_count(rig, "divergence", "scrub"), 41);
    cr_assert_eq(disk_rig_count(rig, "repair", ""), 0);
    cr_assert_eq(repair_exit_code(&status.stats), 1);
    for (unsigned i = 0; i < 3; i++) {
        g_autofree uint8_t *now = support_load(rig->paths[i], &length);
        cr_assert(memcmp(now, held[i], length) == 0);
        g_free(held[i]);
    }
    json_t *jobs = disk_rig_records(rig, "job", "scrub");
    cr_assert_eq(json_array_size(jobs), 2);
    cr_assert_str_eq(record_str(json_array_get(jobs, 0), "action"), "started");
    cr_assert_str_eq(record_str(json_array_get(jobs, 1), "action"), "completed");
    json_decref(jobs);
}

Test(disk_scrub, with_repair_all_replicas_are_equal_afterwards)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 3 * MIB);
    for (unsigned k = 0; k < 40; k++)
        disk_rig_corrupt(rig, k % 3, k * 65536, SECTOR, 0x01);
    scrub_status status = scrub_all(rig, true);
    cr_assert_eq(status.state, SCRUB_COMPLETED);
    cr_assert_eq(status.stats.repaired, 40 * SECTOR);
    disk_rig_check_replicas(rig, 7);
    status = scrub_all(rig, true);
    cr_assert_eq(status.stats.differing, 0);
    cr_assert_eq(status.stats.repaired, 0);
}

Test(disk_scrub, R3_what_cannot_be_read_is_found_too)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 2 * MIB);
    fault_add((fault){.chain = disk_chain(rig->disk, 2),
                      .kind = FAULT_READ,
                      .offset = MIB + 7 * SECTOR,
                      .length = SECTOR,
                      .error = EIO});
    scrub_status status = scrub_all(rig, false);
    cr_assert_eq(status.stats.unreadable, SECTOR);
    cr_assert_eq(repair_exit_code(&status.stats), 4);
}

/* It is left behind at the first piece, and the others are compared. */
Test(disk_scrub, R5_a_replica_that_hangs_does_not_hold_it_up)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 0, 3 * MIB);
    fault_add((fault){
        .chain = disk_chain(rig->disk, 1), .kind = FAULT_READ, .error = ETIMEDOUT});
    disk_rig_corrupt(rig, 2, 2 * MIB, SECTOR, 0x01);
    scrub_status status = scrub_all(rig, false);
    cr_assert_eq(status.state, SCRUB_COMPLETED);
    cr_assert_eq(status.stats.unreadable, MIB);
    cr_assert_eq(status.stats.no_quorum, SECTOR); /* 3 of 4, and a and d are two */
    disk_rig_expect_state(rig, 1, REPLICA_HUNG);
    cr_assert_eq(disk_rig_count(rig, "replica-error", "scrub"), 1);
}

/* Holes in all replicas are not read; a replica that holds something there is found. */
Test(disk_scrub, what_is_zero_by_every_map_is_skipped)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 40 * MIB);
    cr_assert_eq(disk_discard(rig->disk, MIB, 30 * MIB), 0);
    memset(rig->model + MIB, 0, 30 * MIB);
    disk_rig_corrupt(rig, 1, 25 * MIB + 5 * SECTOR, SECTOR, 0x01);
    scrub_status status = scrub_all(rig, true);
    cr_assert_eq(status.offset, rig->size);
    cr_assert_eq(status.stats.differing, SECTOR);
    cr_assert_eq(status.stats.repaired, SECTOR);
    cr_assert_geq(status.skipped, 27u * MIB);
    cr_assert_leq(status.skipped, 30u * MIB);
    cr_assert_eq(status.stats.checked + status.skipped, rig->size);
    disk_rig_check_replicas(rig, 7);
}

/* What is in the page cache may not be what is on the medium any more. */
Test(disk_scrub, what_is_looked_at_comes_from_the_media)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    scrub_all(rig, false);
    cr_assert_eq(fault_forgotten(), 3);
}

/* ---- One at a time, and its end ---- */

Test(disk_scrub, a_disk_has_one_scrub_at_a_time)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 3 * MIB);
    const scrub_options options = {0};
    start_slowly(rig);
    cr_assert_eq(scrub_start(rig->disk, &options), -EBUSY);
    cr_assert_eq(status_of(rig).options.speed, 1);
    cr_assert_eq(scrub_cancel(rig->disk), 0);
    scrub_status status = await_end(rig);
    cr_assert_eq(status.state, SCRUB_CANCELLED);
    cr_assert_eq(status.offset, MIB);
    cr_assert_neq(status.ended_us, 0);
    cr_assert_eq(scrub_cancel(rig->disk), -ENOENT);
    status = scrub_all(rig, false);
    cr_assert_eq(status.state, SCRUB_COMPLETED);
    cr_assert_eq(status.offset, rig->size);
}

Test(disk_scrub, a_disk_is_closed_while_it_is_scrubbed)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 3 * MIB);
    start_slowly(rig);
    disk_rig_reopen(rig, 0);
    cr_assert_eq(status_of(rig).state, SCRUB_NONE);
    disk_rig_check_read(rig, 0, MIB);
    json_t *jobs = disk_rig_records(rig, "job", "scrub");
    cr_assert_str_eq(record_str(json_array_get(jobs, 1), "action"), "cancelled");
    json_decref(jobs);
    start_slowly(rig);
}

Test(disk_scrub, O4_a_repairing_one_needs_a_majority_and_a_writable_disk)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    const scrub_options options = {.repair = true};
    cr_assert_eq(scrub_start(rig->disk, &options), -EPERM);
    cr_assert_eq(status_of(rig).state, SCRUB_NONE);
    cr_assert_eq(scrub_all(rig, false).state, SCRUB_COMPLETED);
}

/* The first flush is that before anything is read. */
static void fail_last_flush(disk_rig *rig, unsigned i)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_FLUSH,
                      .error = EIO,
                      .times = 1,
                      .after = 1});
}

Test(disk_scrub, W4_what_was_repaired_is_flushed_before_it_is_told)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    replica_status replica;
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x01);
    fail_last_flush(rig, 1);
    cr_assert_eq(scrub_all(rig, true).state, SCRUB_COMPLETED);
    disk_replica_status(rig->disk, 1, &replica);
    cr_assert_neq(replica.state, REPLICA_IN_SYNC);
}

Test(disk_scrub, W4_a_flush_that_fails_fails_the_scrub)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x01);
    fail_last_flush(rig, 0);
    fail_last_flush(rig, 1);
    scrub_status status = scrub_all(rig, true);
    cr_assert_eq(status.state, SCRUB_FAILED);
    cr_assert_eq(status.error, -EIO);
}

/* ---- W7 ---- */

#define BLOCKS 512u
#define BLOCK  (16 * SECTOR)

typedef struct guest {
    disk_rig *rig;
    unsigned half;
    uint64_t state;
} guest;

static void *write_blocks(void *opaque)
{
    guest *g = opaque;
    uint8_t data[BLOCK];
    for (unsigned k = 0; k < 600; k++) {
        uint64_t offset =
            (support_random(&g->state) % (BLOCKS / 2) * 2 + g->half) * BLOCK;
        support_pattern(data, BLOCK, offset, support_random(&g->state));
        cr_assert_eq(disk_write(g->rig->disk, offset, BLOCK, data), 0);
        memcpy(g->rig->model + offset, data, BLOCK);
    }
    return NULL;
}

Test(disk_scrub, W7_guests_write_while_it_repairs)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, BLOCKS * BLOCK);
    uint64_t seed = support_seed();
    guest guests[2] = {{rig, 0, seed | 1}, {rig, 1, seed * 3 | 1}};
    GThread *threads[2];
    for (unsigned b = 0; b < BLOCKS; b += 2)
        disk_rig_corrupt(rig, b % 3, b * BLOCK + b % 16 * SECTOR, SECTOR, 0x99);
    for (unsigned k = 0; k < 2; k++)
        threads[k] = g_thread_new("guest", write_blocks, &guests[k]);
    scrub_status status = scrub_all(rig, true);
    for (unsigned k = 0; k < 2; k++)
        g_thread_join(threads[k]);
    cr_assert_eq(status.state, SCRUB_COMPLETED);
    cr_assert_eq(status.stats.differing, status.stats.repaired);
    cr_assert_eq(status.stats.failed, 0);
    disk_rig_check_replicas(rig, 7);
    cr_assert_eq(scrub_all(rig, false).stats.differing, 0);
}

/* ---- Resync, when it is asked for ---- */

/* A disk that remembers, and whose worker's steps are the test's. */
static void reopen_remembering(disk_rig *rig)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = support_path("state");
    support_run("rm -rf state && mkdir state");
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->state_dir = g_strdup(dir);
    disk_close(g_steal_pointer(&rig->disk));
    rig->disk = disk_open(options, rig->journal, &error);
    cr_assert_not_null(rig->disk, "%s", error ? error->message : "no error");
    disk_options_free(options);
    disk_worker_stop(rig->disk);
}

static disk_resync_status resync_of(disk_rig *rig)
{
    disk_resync_status status;
    disk_get_resync_status(rig->disk, &status);
    return status;
}

Test(disk_scrub, a_resync_that_failed_is_tried_again_when_asked_for)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 4 * MIB);
    reopen_remembering(rig);
    cr_assert(!resync_of(rig).stale && !resync_of(rig).running);
    memset(rig->model, 0x11, 4 * SECTOR);
    disk_rig_fail(rig, 1, FAULT_WRITE, EIO, 0);
    cr_assert_eq(disk_write(rig->disk, 0, 4 * SECTOR, rig->model), 0);
    cr_assert(resync_of(rig).stale && resync_of(rig).running);

    disk_rig_fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    while (disk_worker_step(rig->disk))
        ;
    disk_resync_status status = resync_of(rig);
    cr_assert(status.stale && !status.running);
    cr_assert_eq(status.error, -ENOSPC);
    cr_assert_eq(status.missed, 4 * SECTOR);
    cr_assert_eq(status.length, 4 * SECTOR);

    cr_assert_eq(disk_resync(rig->disk), 0);
    cr_assert(resync_of(rig).running);
    cr_assert_eq(resync_of(rig).error, 0);
    while (disk_worker_step(rig->disk))
        ;
    cr_assert(!resync_of(rig).stale);
    cr_assert_eq(resync_of(rig).length, 0);
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    disk_rig_check_replicas(rig, 7);
}

/* Its file is gone while it is to come back, and there again when somebody asks. */
Test(disk_scrub, R5_who_is_out_is_tried_again_when_asked_for)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    reopen_remembering(rig);
    support_run("mv '%s' away.raw", rig->paths[1]);
    disk_rig_fail(rig, 1, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_write(rig->disk, 0, SECTOR, rig->model), 0);
    cr_assert_eq(disk_flush(rig->disk), 0);
    while (disk_rig_count(rig, "replica-state", "rejoin") == 0)
        g_thread_yield();
    disk_rig_expect_state(rig, 1, REPLICA_FAILED);
    support_run("mv away.raw '%s'", rig->paths[1]);
    cr_assert_eq(disk_resync(rig->disk), 0);
    while (resync_of(rig).running)
        if (!disk_worker_step(rig->disk))
            g_thread_yield();
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_scrub, O4_resync_says_where_it_can_do_nothing)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(disk_resync(rig->disk), -EROFS); /* nothing is remembered */
    g_autoptr(disk_rig) half = disk_rig_new(2, 1, MIB);
    half->disk->session = true;
    cr_assert_eq(disk_resync(half->disk), -EPERM);
    half->disk->session = false;
}
