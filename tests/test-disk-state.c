/*
 * test-disk-state.c: what a disk remembers (W2, W5, O5), and what it makes of it after a
 * crash (W6) or when a replica comes back.
 */
#include "tests/disk-set.h"
#include <signal.h>
#include <sys/resource.h>

/* ---- W2 ---- */

Test(disk_state, W2_a_missed_write_is_remembered_by_the_next_open)
{
    g_auto(set) s;
    set_init(&s, 4, 2); /* half: nobody may copy (O4) */
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ENOSPC, 0);
    write_model(&s, MIB + 8192, 4096, 7);
    set_close(&s);
    must_open(&s);
    cr_assert_eq(status_of(&s, 1).state, REPLICA_STALE);
    cr_assert_eq(status_of(&s, 1).stale_bytes, MIB); /* a region of the record */
    disk_rig_check_read(s.rig, 0, MIB);
    disk_rig_check_read(s.rig, MIB, MIB);
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0); /* it did not vote */
    disk_worker_stop(s.disk);
    cr_assert(!disk_resync_step(s.disk));
}

/* Two of three took an acknowledged write; the third and one that fell back must not win. */
Test(disk_state, W2_two_stale_copies_never_win_after_a_restart)
{
    g_auto(set) s;
    set_init(&s, 3, 3); /* so that b and c can be lost one after the other */
    set_close(&s);
    s.threshold = 2;
    must_open(&s);
    fault_add((fault){.chain = disk_chain(s.disk, 1), .kind = FAULT_WRITE, .error = EIO});
    write_model(&s, 0, 4096, 9);
    set_close(&s);
    support_poke(s.rig->paths[2], 0, "old", 3); /* c falls back */
    GError *error = NULL;
    cr_assert_null(open_disk(&s, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_STALE));
    cr_assert(strstr(error->message, "'b', 'c'"), "%s", error->message);
    g_error_free(error);
}

Test(disk_state, W7_a_stale_replica_catches_up)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ENOSPC, 0);
    write_model(&s, MIB - 4096, 8192, 3); /* two regions */
    set_close(&s);
    must_open(&s);
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
    cr_assert_eq(status_of(&s, 1).stale_bytes, 0);
    set_close(&s);
    must_open(&s); /* and that is remembered too */
    cr_assert_eq(status_of(&s, 1).state, REPLICA_IN_SYNC);
    cr_assert_eq(status_of(&s, 1).stale_bytes, 0);
}

/* ---- W4 ---- */

Test(disk_state, W4_a_failed_flush_makes_the_replica_stale_as_a_whole)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 5);
    disk_rig_fail(s.rig, 2, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(s.disk), 0);
    cr_assert_eq(status_of(&s, 2).state, REPLICA_FAILED);
    set_close(&s);
    disk_rig_corrupt(s.rig, 2, 2 * MIB, SECTOR, 0xff); /* what its cache lost */
    must_open(&s);
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0);
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* ---- W3 ---- */

Test(disk_state, W3_what_a_failed_write_left_different_is_made_equal_by_the_next_open)
{
    g_auto(set) s;
    uint8_t data[4096] = {9};
    set_init(&s, 3, 2);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, EIO, 0);
    disk_rig_fail(s.rig, 2, FAULT_WRITE, EIO, 0);
    cr_assert_eq(disk_write(s.disk, MIB, sizeof data, data), -EIO);
    set_close(&s);
    must_open(&s);
    disk_rig_check_read(s.rig, MIB, sizeof data);
    disk_rig_check_replicas(s.rig, 7);
}

/* ---- W7 ---- */

static const char *spoilt;

static void spoil(void)
{
    support_poke(spoilt, 0, "rot", 3);
}

Test(disk_state, W7_what_was_copied_is_read_back)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, EIO, 0);
    write_model(&s, 0, 4096, 5);
    spoilt = s.rig->paths[1];
    fault_add((fault){
        .chain = disk_chain(s.disk, 1), .kind = FAULT_READ, .times = 1, .hook = spoil});
    cr_assert(disk_resync_step(s.disk));
    disk_rig_expect_state(s.rig, 1, REPLICA_STALE);
    cr_assert_eq(status_of(&s, 1).stale_bytes, 4096);
    disk_rig_check_read(s.rig, 0, 4096);
}

static state_replica_state recorded_of(set *s, unsigned i)
{
    state_replica record;
    state_get_replica(s->disk->store, i, &record);
    return record.state;
}

/* A second fsync of the same file would succeed, without what the first one lost. */
/* Where the others disagree nothing can be copied; that does not keep the rest from it. */
Test(disk_state, W7_what_the_others_cannot_tell_holds_nothing_up)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    for (unsigned k = 0; k < 4; k++) {
        disk_rig_fail(s.rig, 2, FAULT_WRITE, EIO, 0);
        write_model(&s, k * MIB, 4096, (uint8_t)(10 + k));
    }
    disk_rig_corrupt(s.rig, 0, MIB, SECTOR, 1);
    replica_status status;
    for (unsigned k = 0; k < 2; k++) {
        while (disk_resync_step(s.disk))
            ;
        disk_replica_status(s.disk, 2, &status);
        cr_assert_eq(status.state, REPLICA_STALE);
        cr_assert_eq(status.stale_bytes, 4096);
        cr_assert_eq(disk_resync(s.disk), 0);
    }
    disk_rig_corrupt(s.rig, 0, MIB, SECTOR, 0);
    while (disk_resync_step(s.disk))
        ;
    disk_rig_expect_state(s.rig, 2, REPLICA_IN_SYNC);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_state, W4_a_flush_that_fails_after_a_resync_takes_the_replica_out)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk); /* its steps are made here */
    disk_rig_fail(s.rig, 1, FAULT_WRITE, EIO, 0);
    write_model(&s, 0, 4096, 5);
    cr_assert(disk_resync_step(s.disk));
    disk_rig_expect_state(s.rig, 1, REPLICA_RESYNCING);
    disk_rig_fail(s.rig, 1, FAULT_FLUSH, EIO, 0);
    cr_assert(disk_resync_step(s.disk));
    disk_rig_expect_state(s.rig, 1, REPLICA_FAILED);
    cr_assert_eq(recorded_of(&s, 1), STATE_FAILED);
    set_close(&s);
    disk_rig_corrupt(s.rig, 1, 0, SECTOR, 0xff); /* what it lost */
    must_open(&s);
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* As when the file system of the state directory is full. */
Test(disk_state, W4_no_flush_succeeds_before_it_is_recorded_who_failed_one)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    write_model(&s, 0, 4096, 5);
    struct rlimit usual, none;
    getrlimit(RLIMIT_FSIZE, &usual);
    none = usual;
    none.rlim_cur = 0;
    signal(SIGXFSZ, SIG_IGN);
    disk_rig_fail(s.rig, 0, FAULT_FLUSH, EIO, 0);
    setrlimit(RLIMIT_FSIZE, &none);
    int first = disk_flush(s.disk), second = disk_flush(s.disk);
    setrlimit(RLIMIT_FSIZE, &usual);
    cr_assert_eq(first, -EFBIG);
    cr_assert_eq(second, -EFBIG);
    cr_assert_eq(disk_flush(s.disk), 0);
}

/* ---- Resize ---- */

Test(disk_state, W7_the_odd_end_of_a_disk_catches_up_for_good)
{
    g_auto(set) s;
    set_init_size(&s, 3, 2, MIB + 3 * SECTOR);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, EIO, 0);
    write_model(&s, MIB, 3 * SECTOR, 3);
    set_close(&s);
    must_open(&s);
    await_in_sync(&s);
    cr_assert_eq(state_stale_bytes(s.disk->store, 1), 0);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_state, W7_nothing_is_missed_behind_a_new_end)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, EIO, 0);
    write_model(&s, 3 * MIB, 4096, 3);
    cr_assert_eq(disk_resize(s.disk, 2 * MIB), 0);
    disk_rig_model_resize(s.rig, 2 * MIB);
    cr_assert_eq(status_of(&s, 1).stale_bytes, 0);
    cr_assert(disk_resync_step(s.disk));
    disk_rig_expect_state(s.rig, 1, REPLICA_IN_SYNC);
    cr_assert(!disk_resync_step(s.disk));
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_state, W2_a_resize_without_a_failed_replica_is_remembered)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_rig_fail(s.rig, 2, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(s.disk, SIZE + MIB), 0);
    disk_rig_model_resize(s.rig, SIZE + MIB);
    cr_assert_eq(recorded_of(&s, 2), STATE_STALE_RANGES);
    write_model(&s, SIZE, MIB, 3);
    cr_assert_eq(disk_resize(s.disk, SIZE + 2 * MIB), 0); /* c is not asked any more */
    cr_assert_eq(disk_resize(s.disk, MIB), 0);
    cr_assert_eq(disk_resize(s.disk, SIZE), 0);
    disk_rig_model_resize(s.rig, MIB);
    disk_rig_model_resize(s.rig, SIZE);
    write_model(&s, SIZE - MIB, MIB, 4);
    disk_rig_check_read(s.rig, 0, MIB);
    disk_rig_check_replicas(s.rig, 3);
}

/* The record ends with the disk, and the region that the new end cuts has been missed by nobody
 * any more. */
Test(disk_state, W2_what_a_shrink_cuts_off_is_not_missed_any_more)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_worker_stop(s.disk);
    miss(&s, 1, MIB + 512 * 1024);
    cr_assert_eq(disk_resize(s.disk, MIB + 4096), 0);
    disk_rig_model_resize(s.rig, MIB + 4096);
    cr_assert_eq(state_stale_bytes(s.disk->store, 1), 4096);
    while (disk_worker_step(s.disk))
        ;
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    cr_assert_eq(state_stale_bytes(s.disk->store, 1), 0);
    disk_state_tidy(s.disk);
    cr_assert_eq(state_dirty_bytes(s.disk->store), 0);
    disk_rig_check_replicas(s.rig, 7);
}

/* ---- W5, W6 ---- */

static disk *watched;
static uint64_t dirty_at_write;

static void look_at_intent(void)
{
    dirty_at_write = state_dirty_bytes(watched->store);
}

Test(disk_state, W5_the_intent_stands_before_any_replica_is_written_to)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    watched = s.disk;
    cr_assert_eq(state_dirty_bytes(s.disk->store), 0);
    fault_add((fault){.chain = disk_chain(s.disk, 0),
                      .kind = FAULT_WRITE,
                      .times = 1,
                      .hook = look_at_intent});
    write_model(&s, 0, 512, 1);
    cr_assert_eq(dirty_at_write, SIZE); /* one region is more than the disk */
    set_close(&s);
    must_open(&s);
    cr_assert_eq(state_dirty_bytes(s.disk->store), 0); /* closed cleanly */
}

Test(disk_state, W6_after_a_crash_dirty_regions_are_made_equal)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    crash_after_write(&s, MIB, 4 * SECTOR);
    /* The crash caught the write in the middle: */
    disk_rig_corrupt(s.rig, 2, MIB, SECTOR, 1);          /* a, b | c */
    disk_rig_corrupt(s.rig, 0, MIB + SECTOR, SECTOR, 1); /* three versions */
    disk_rig_corrupt(s.rig, 1, MIB + SECTOR, SECTOR, 2);
    disk_rig_corrupt(s.rig, 0, MIB + 2 * SECTOR, SECTOR, 4); /* b, c | a */
    memset(s.rig->model + MIB + SECTOR, 1, SECTOR);          /* the first replica's */
    must_open(&s);
    disk_rig_check_read(s.rig, MIB, 4 * SECTOR);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", "reconcile"), 3);
    cr_assert_eq(disk_rig_count(s.rig, "quorum-failure", ""), 0);
}

Test(disk_state, W6_the_worker_reconciles_what_nobody_touches)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    crash_after_write(&s, MIB, SECTOR);
    disk_rig_corrupt(s.rig, 1, MIB, SECTOR, 1);
    must_open(&s);
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    while (state_unreconciled_bytes(s.disk->store) > 0) {
        cr_assert_lt(g_get_monotonic_time(), deadline);
        g_usleep(1000);
    }
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_state, W6_a_sector_that_nobody_can_read_costs_nothing_else)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    crash_after_write(&s, MIB, SECTOR);
    disk_rig_corrupt(s.rig, 1, 2 * MIB, SECTOR, 1);
    fault_add((fault){
        .kind = FAULT_READ, .offset = MIB, .length = SECTOR, .error = EIO}); /* of all */
    must_open(&s);
    disk_rig_check_read(s.rig, MIB + SECTOR, MIB);
    cr_assert_eq(disk_rig_read(s.rig, MIB, SECTOR), -EIO);
    write_model(&s, MIB, SECTOR, 6);
    set_close(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* A resize replaces what requests and the worker look at. */
static void *read_on(void *opaque)
{
    set *s = opaque;
    const void *data;
    for (unsigned k = 0; k < 2000; k++)
        cr_assert_eq(disk_read(s->disk, k % 8 * SECTOR, SECTOR, &data), 0);
    return NULL;
}

Test(disk_state, W6_resizes_beside_requests_on_unreconciled_regions)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    crash_after_write(&s, 0, SECTOR);
    must_open(&s);
    GThread *reader = g_thread_new("reader", read_on, &s);
    for (unsigned k = 0; k < 20; k++)
        cr_assert_eq(disk_resize(s.disk, k % 2 ? SIZE : SIZE + MIB), 0);
    g_thread_join(reader);
    cr_assert_eq(state_unreconciled_bytes(s.disk->store), 0);
}

Test(disk_state, W6_a_region_is_flushed_before_it_counts_as_equal)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    crash_after_write(&s, MIB, SECTOR);
    fault_add((fault){.kind = FAULT_FLUSH, .error = EIO, .after = 2, .times = 1}); /* c */
    must_open(&s);
    disk_rig_check_read(s.rig, MIB, SECTOR);
    disk_rig_expect_state(s.rig, 2, REPLICA_FAILED);
}

Test(disk_state, W6_an_unclean_open_of_a_clean_disk_costs_nothing)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    pid_t child = fork();
    if (child == 0)
        _exit(open_disk(&s, NULL) == NULL);
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    must_open(&s);
    cr_assert_eq(state_unreconciled_bytes(s.disk->store), 0);
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
}

/* ---- O5 ---- */

Test(disk_state, O5_a_replica_changed_behind_our_back_is_not_trusted)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 4);
    set_close(&s);
    disk_rig_corrupt(s.rig, 1, 3 * MIB, SECTOR, 1);
    must_open(&s);
    disk_rig_check_read(s.rig, 3 * MIB, SECTOR);
    cr_assert_eq(disk_rig_count(s.rig, "divergence", ""), 0); /* it had no vote */
    cr_assert_eq(disk_rig_count(s.rig, "replica-state", "open"), 1);
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* Nothing but the record tells of the change once a session has begun. */
Test(disk_state, O5_a_changed_replica_stays_stale_when_the_session_just_ends)
{
    g_auto(set) s;
    set_init(&s, 4, 2); /* nobody may copy */
    set_close(&s);
    disk_rig_corrupt(s.rig, 1, 3 * MIB, SECTOR, 1);
    pid_t child = fork();
    if (child == 0)
        _exit(open_disk(&s, NULL) == NULL);
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    must_open(&s);
    disk_rig_expect_state(s.rig, 1, REPLICA_STALE);
    cr_assert_eq(status_of(&s, 1).stale_bytes, SIZE);
}

Test(disk_state, O5_a_replica_replaced_by_an_empty_one_is_filled)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    support_run("rm %s; truncate -s %u %s", s.rig->paths[2], SIZE, s.rig->paths[2]);
    must_open(&s);
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_state, O5_if_every_replica_was_changed_the_record_is_void)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ENOSPC, 0);
    write_model(&s, 0, 4096, 4);
    set_close(&s);
    for (unsigned i = 0; i < 3; i++)
        support_save(s.rig->paths[i], s.rig->model, SIZE);
    must_open(&s);
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    disk_rig_check_read(s.rig, 0, MIB);
    cr_assert_eq(disk_rig_count(s.rig, "replica-state", "open"), 1);
}

Test(disk_state, O5_a_state_file_that_cannot_be_read_is_void)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    g_autofree char *dir = support_path("state");
    support_run("for f in %s/*.state; do head -c 100000 /dev/urandom > $f; done", dir);
    must_open(&s);
    cr_assert_str_eq(disk_state_name(s.disk), "healthy");
    cr_assert_eq(disk_rig_count(s.rig, "replica-state", "open"), 1);
}
