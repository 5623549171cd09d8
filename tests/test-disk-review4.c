/*
 * test-disk-review4.c: who comes back is trusted no further than he was flushed (W4, W6, O5),
 * and only one at a time has him come back.
 */
#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define MIB  (1u << 20)
#define SIZE (4u * MIB)

static disk_options *set_options(disk_rig *rig)
{
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->degraded_warn = true;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    return options;
}

/* Nothing is done in the background. */
static void set_open(disk_rig *rig)
{
    GError *error = NULL;
    disk_options *options = set_options(rig);
    rig->disk = disk_open(options, rig->journal, &error);
    cr_assert_not_null(rig->disk, "%s", error ? error->message : "no error");
    disk_options_free(options);
    cr_assert(disk_rejoin_stop(rig->disk));
    disk_worker_stop(rig->disk);
}

static disk_rig *set_new(void)
{
    disk_rig *rig = disk_rig_new(3, 2, SIZE);
    cr_assert_eq(disk_close(g_steal_pointer(&rig->disk)), 0);
    set_open(rig);
    return rig;
}

static void write_model(disk_rig *rig, uint64_t offset, size_t length, uint8_t byte)
{
    memset(rig->model + offset, byte, length);
    cr_assert_eq(disk_write(rig->disk, offset, length, rig->model + offset), 0);
}

static void must_return(disk_rig *rig, unsigned i)
{
    g_autoptr(GError) error = NULL;
    fault_clear();
    rejoin_result result = disk_rejoin_try(rig->disk, i, &error);
    cr_assert_eq(result, REJOIN_BACK, "%s", error ? error->message : "it waits");
}

/* All took it; then a's flush fails, and what it had in memory is gone. */
static void lose_flush(disk_rig *rig, int error)
{
    write_model(rig, MIB, 4096, 7);
    disk_rig_fail(rig, 0, FAULT_FLUSH, error, 0);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_neq(disk_voter_run(rig->disk, MIB, MIB + 512, &(uint64_t){0}) & 1, 1);
    disk_rig_corrupt(rig, 0, MIB, 4096, 0xff);
}

/* b leaves, a comes back: only c has it now. */
static void expect_kept(disk_rig *rig)
{
    disk_rig_fail(rig, 1, FAULT_READ, ETIMEDOUT, 0);
    disk_rig_read(rig, 2 * MIB, 4096);
    disk_rig_expect_state(rig, 1, REPLICA_HUNG);
    must_return(rig, 0);
    cr_assert_eq(disk_rig_read(rig, MIB, 4096), -EIO);
    while (disk_worker_step(rig->disk))
        ;
    must_return(rig, 1);
    disk_rig_check_read(rig, MIB, 4096);
    cr_assert_eq(disk_resync(rig->disk), 0);
    while (disk_worker_step(rig->disk))
        ;
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_replicas(rig, 7);
}

Test(disk_review4, W6_what_a_flush_covered_outlives_who_missed_it)
{
    g_autoptr(disk_rig) rig = set_new();
    lose_flush(rig, EIO);
    expect_kept(rig);
}

Test(disk_review4, W6_what_a_flush_covered_outlives_who_hung_in_it)
{
    g_autoptr(disk_rig) rig = set_new();
    lose_flush(rig, ETIMEDOUT);
    expect_kept(rig);
}

/* What was read is not unsaid by who was out meanwhile. */
Test(disk_review4, R1_what_the_others_served_is_not_taken_back)
{
    g_autoptr(disk_rig) rig = set_new();
    write_model(rig, MIB, 4096, 7);
    disk_rig_fail(rig, 0, FAULT_READ, ETIMEDOUT, 0);
    disk_rig_check_read(rig, MIB, 4096);
    disk_rig_expect_state(rig, 0, REPLICA_HUNG);
    disk_rig_corrupt(rig, 0, MIB, 4096, 0xff);
    expect_kept(rig);
}

/* The same over a crash: who flushed it is not there the next time, but for one. */
Test(disk_review4, W6_who_missed_a_flush_is_stale_after_a_crash)
{
    g_autoptr(disk_rig) rig = set_new();
    lose_flush(rig, ETIMEDOUT);
    state_replica recorded;
    state_get_replica(rig->disk->store, 0, &recorded);
    cr_assert_eq(recorded.state, STATE_STALE_RANGES);
    cr_assert(state_is_stale(rig->disk->store, 0, MIB, 4096));
    must_return(rig, 0);
    while (disk_worker_step(rig->disk))
        ;
    disk_state_tidy(rig->disk);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    cr_assert_eq(state_stale_bytes(rig->disk->store, 0), 0);
    cr_assert_eq(state_dirty_bytes(rig->disk->store), 0);
}

/* A thread may be stuck in opening what it was. That thread uses its options, and would put in
 * what it opened. */
Test(disk_review4, R5_one_at_a_time_has_it_come_back)
{
    g_autoptr(disk_rig) rig = set_new();
    g_autoptr(GError) error = NULL;
    replica_options *options = replica_options_new();
    options->name = g_strdup("new");
    options->path = support_path("new.raw");
    options->source = g_strdup(options->path);
    options->format = g_strdup("raw");
    support_save(options->path, rig->model, SIZE);
    cr_assert(disk_rejoin_claim(rig->disk, 1));
    cr_assert(disk_remove_replica(rig->disk, 1, NULL));
    cr_assert(!disk_put_replica(rig->disk, 1, options, &error));
    cr_assert(g_str_has_prefix(error->message, "is still being opened"));
    disk_rig_expect_state(rig, 1, REPLICA_REMOVED);
    disk_rejoin_release(rig->disk, 1);
    g_clear_error(&error);
    cr_assert(disk_put_replica(rig->disk, 1, options, &error), "%s",
              error ? error->message : "");
    replica_options_free(options);
    while (disk_worker_step(rig->disk))
        ;
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
}
