/*
 * test-disk-rejoin.c: replicas that do not answer, fail or are not there, and come back
 * (R5, W4, W6). Faults strike a chain; one that was opened anew has none.
 */
#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MIB  (1u << 20)
#define SIZE (4u * MIB)

typedef struct set {
    disk_rig *rig; /* its disk is the one that is open, if one is */
    unsigned threshold;
    bool warn, read_only;
} set;

static disk *open_disk(set *s, GError **error)
{
    disk_options *options = disk_rig_options(s->rig->paths, s->rig->n, "raw");
    options->threshold = s->threshold;
    options->degraded_warn = s->warn;
    options->read_only = s->read_only;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    s->rig->disk = disk_open(options, s->rig->journal, error);
    disk_options_free(options);
    return s->rig->disk;
}

/* Nothing is done in the background: not by threads that come back, nor by the worker. */
static void must_open(set *s)
{
    GError *error = NULL;
    cr_assert_not_null(open_disk(s, &error), "%s", error ? error->message : "no error");
    cr_assert(disk_rejoin_stop(s->rig->disk));
    disk_worker_stop(s->rig->disk);
}

static void set_close(set *s)
{
    cr_assert_eq(disk_close(g_steal_pointer(&s->rig->disk)), 0);
    fault_clear();
}

static void set_init(set *s, unsigned n, unsigned threshold)
{
    *s = (set){.rig = disk_rig_new(n, threshold, SIZE), .threshold = threshold};
    set_close(s);
    must_open(s);
}

static void set_clear(set *s)
{
    disk_rig_free(s->rig);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(set, set_clear)

static int write_byte(set *s, uint64_t offset, size_t length, uint8_t byte)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, byte, length);
    return disk_write(s->rig->disk, offset, length, data);
}

static void write_model(set *s, uint64_t offset, size_t length, uint8_t byte)
{
    cr_assert_eq(write_byte(s, offset, length, byte), 0);
    memset(s->rig->model + offset, byte, length);
}

/* Every further read or write of replica i as well. */
static void hang(set *s, unsigned i)
{
    fault_kind kinds[] = {FAULT_READ, FAULT_WRITE, FAULT_FLUSH};
    for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++)
        fault_add((fault){
            .chain = disk_chain(s->rig->disk, i), .kind = kinds[k], .error = ETIMEDOUT});
}

static void expect_state(set *s, unsigned i, replica_state wanted)
{
    disk_rig_expect_state(s->rig, i, wanted);
}

/* When it was opened; the worker may have begun with it before it was stopped. */
static void expect_was_behind(set *s, unsigned i)
{
    replica_status status;
    disk_replica_status(s->rig->disk, i, &status);
    cr_assert(status.state != REPLICA_IN_SYNC ||
              disk_rig_count(s->rig, "replica-state", "resync") > 0);
}

static void must_return(set *s, unsigned i)
{
    g_autoptr(GError) error = NULL;
    fault_clear();
    rejoin_result result = disk_rejoin_try(s->rig->disk, i, &error);
    cr_assert_eq(result, REJOIN_BACK, "%s", error ? error->message : "it waits");
}

/* Reconciles, resyncs and clears what is to be. */
static void work(set *s)
{
    while (disk_worker_step(s->rig->disk))
        ;
    disk_state_tidy(s->rig->disk);
}

static void expect_healthy(set *s)
{
    work(s);
    cr_assert_str_eq(disk_state_name(s->rig->disk), "healthy");
    disk_rig_check_replicas(s->rig, (1u << s->rig->n) - 1);
    disk_rig_check_read(s->rig, 0, MIB);
}

/* ---- R5: out at the first miss --------------------------------------------------------- */

Test(disk_rejoin, R5_who_missed_a_deadline_is_not_asked_again)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_state(&s, 1, REPLICA_HUNG);
    g_autofree char *record = disk_rig_only_record(s.rig, "replica-state", "read");
    cr_assert_str_eq(record, "0+0 |b!110 errno 110, in-sync -> hung");
    cr_assert_str_eq(disk_state_name(s.rig->disk), "degraded");
    unsigned hits = fault_hits();
    disk_rig_check_read(s.rig, 0, 4096);
    write_model(&s, 0, 4096, 1);
    cr_assert_eq(disk_flush(s.rig->disk), 0);
    cr_assert_eq(fault_hits(), hits);
}

Test(disk_rejoin, R5_a_write_that_misses_its_deadline_is_missed)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 2);
    write_model(&s, MIB, 4096, 1);
    expect_state(&s, 2, REPLICA_HUNG);
    must_return(&s, 2);
    expect_state(&s, 2, REPLICA_STALE);
    disk_rig_check_read(s.rig, 0, MIB);
    disk_rig_check_read(s.rig, MIB, MIB);
    expect_healthy(&s);
}

Test(disk_rejoin, R5_no_connection_is_no_answer)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    disk_rig_fail(s.rig, 0, FAULT_READ, ENOTCONN, 0);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_state(&s, 0, REPLICA_HUNG);
}

Test(disk_rejoin, R5_too_few_are_left_is_EIO_at_once)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 1);
    hang(&s, 2);
    cr_assert_eq(disk_rig_read(s.rig, 0, 4096), -EIO);
    cr_assert_str_eq(disk_state_name(s.rig->disk), "failed");
    unsigned hits = fault_hits();
    cr_assert_eq(disk_rig_read(s.rig, 0, 4096), -EIO);
    cr_assert_eq(write_byte(&s, 0, 512, 1), -EIO);
    cr_assert_eq(disk_flush(s.rig->disk), -EIO);
    cr_assert_eq(fault_hits(), hits);
    must_return(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    must_return(&s, 2);
    expect_healthy(&s);
}

/* ---- What is missed -------------------------------------------------------------------- */

/* It took the write, and lost it before it was flushed. */
Test(disk_rejoin, W4_what_it_took_and_never_flushed_is_not_trusted)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 1);
    disk_rig_fail(s.rig, 0, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(s.rig->disk), 0);
    expect_state(&s, 0, REPLICA_FAILED);
    disk_rig_corrupt(s.rig, 0, 0, 4096, 0xff);
    disk_rig_corrupt(s.rig, 1, 8192, 512, 0xff); /* b alone would not be outvoted by c */
    must_return(&s, 0);
    expect_state(&s, 0, REPLICA_STALE);
    cr_assert_eq(disk_rig_read(s.rig, 8192, 512), -EIO);
    support_poke(s.rig->paths[1], 8192, s.rig->model + 8192, 512);
    expect_healthy(&s);
}

Test(disk_rejoin, W5_what_was_flushed_long_ago_is_trusted)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 1);
    disk_state_tidy(s.rig->disk);
    hang(&s, 0);
    disk_rig_check_read(s.rig, 0, 4096);
    must_return(&s, 0);
    expect_state(&s, 0, REPLICA_IN_SYNC);
    expect_healthy(&s);
}

/* A write that a took and nobody acknowledged; b is back, c is not. */
static void outage_init(set *s)
{
    set_init(s, 3, 2);
    write_model(s, 2 * MIB, 4096, 3);
    hang(s, 1);
    hang(s, 2);
    cr_assert_eq(write_byte(s, 0, 512, 9), -EIO);
    cr_assert_str_eq(disk_state_name(s->rig->disk), "failed");
    must_return(s, 1);
    expect_state(s, 1, REPLICA_IN_SYNC);
}

Test(disk_rejoin, W6_after_an_outage_all_are_waited_for)
{
    g_auto(set) s;
    outage_init(&s);
    cr_assert_eq(disk_rig_read(s.rig, 0, 4096), -EIO);
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", "reconcile"), 0);
    must_return(&s, 2);
    expect_state(&s, 2, REPLICA_IN_SYNC);
    disk_rig_check_read(s.rig, 0, 4096); /* two hold the old bytes */
    cr_assert_eq(disk_rig_count(s.rig, "reconcile", "reconcile"), 1);
    expect_healthy(&s);
}

Test(disk_rejoin, W6_after_an_outage_nobody_is_waited_for_for_ever)
{
    g_auto(set) s;
    outage_init(&s);
    atomic_store(&s.rig->disk->decide_after_us, 0);
    memset(s.rig->model, 9, 512); /* a is listed first */
    disk_rig_check_read(s.rig, 0, 4096);
    must_return(&s, 2);
    expect_state(&s, 2, REPLICA_STALE);
    expect_healthy(&s);
}

/* a rotted, and is among the first two who are back: c has what was flushed, too. */
Test(disk_rejoin, W6_what_was_flushed_outlives_an_outage_and_rot)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 3);
    cr_assert_eq(disk_flush(s.rig->disk), 0);
    disk_rig_corrupt(s.rig, 0, 0, 512, 0xff);
    for (unsigned i = 0; i < 3; i++)
        hang(&s, i);
    cr_assert_eq(disk_rig_read(s.rig, MIB, 4096), -EIO);
    must_return(&s, 0);
    must_return(&s, 1);
    cr_assert_eq(disk_rig_read(s.rig, 0, 512), -EIO);
    must_return(&s, 2);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_healthy(&s);
}

/* c went out while the others went on, and lost what it had not flushed. */
Test(disk_rejoin, W4_who_went_out_before_an_outage_is_stale_after_it)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 3);
    hang(&s, 2);
    disk_rig_check_read(s.rig, MIB, 4096);
    cr_assert_eq(disk_flush(s.rig->disk), 0);
    disk_rig_corrupt(s.rig, 2, 0, 4096, 0xff);
    hang(&s, 1);
    cr_assert_eq(disk_rig_read(s.rig, 0, 4096), -EIO);
    must_return(&s, 2);
    expect_state(&s, 2, REPLICA_STALE);
    cr_assert_eq(disk_rig_read(s.rig, 0, 4096), -EIO);
    must_return(&s, 1);
    expect_state(&s, 1, REPLICA_IN_SYNC);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_healthy(&s);
}

Test(disk_rejoin, another_file_in_its_place_is_filled_as_a_whole)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    g_autofree uint8_t *empty = g_malloc0(SIZE);
    g_autofree char *aside = g_strconcat(s.rig->paths[1], ".old", NULL);
    cr_assert_eq(rename(s.rig->paths[1], aside), 0);
    support_save(s.rig->paths[1], empty, SIZE);
    must_return(&s, 1);
    replica_status status;
    disk_replica_status(s.rig->disk, 1, &status);
    cr_assert_eq(status.stale_bytes, SIZE);
    expect_healthy(&s);
}

Test(disk_rejoin, a_resize_that_it_missed_is_made_up_for)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    cr_assert_eq(disk_resize(s.rig->disk, SIZE + MIB), 0);
    disk_rig_model_resize(s.rig, SIZE + MIB);
    write_model(&s, SIZE, 4096, 5);
    must_return(&s, 1);
    expect_healthy(&s);
}

Test(disk_rejoin, W2_who_is_out_at_the_end_is_stale_the_next_time)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    hang(&s, 1);
    write_model(&s, 0, 4096, 7);
    write_model(&s, 3 * MIB, 4096, 8);
    set_close(&s);
    must_open(&s);
    expect_was_behind(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    disk_rig_check_read(s.rig, 3 * MIB, 4096);
    expect_healthy(&s);
}

Test(disk_rejoin, R5_on_a_disk_that_is_only_read)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    s.read_only = true;
    must_open(&s);
    hang(&s, 1);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_state(&s, 1, REPLICA_HUNG);
    must_return(&s, 1);
    expect_state(&s, 1, REPLICA_IN_SYNC);
    disk_rig_corrupt(s.rig, 0, 0, 512, 1);
    disk_rig_check_read(s.rig, 0, 4096); /* b votes */
}

/* ---- Not there when the disk is opened -------------------------------------------------- */

Test(disk_rejoin, O5_a_replica_that_is_not_there_is_refused_or_left_out)
{
    g_auto(set) s;
    g_autoptr(GError) error = NULL;
    set_init(&s, 3, 2);
    set_close(&s);
    g_autofree char *aside = g_strconcat(s.rig->paths[2], ".away", NULL);
    cr_assert_eq(rename(s.rig->paths[2], aside), 0);
    cr_assert_null(open_disk(&s, &error));
    cr_assert(g_str_has_prefix(error->message, "replica 'c': "), "%s", error->message);
    s.warn = true;
    must_open(&s);
    expect_state(&s, 2, REPLICA_FAILED);
    cr_assert(strstr(disk_degraded_reason(s.rig->disk), "replica 'c': "));
    write_model(&s, 0, 4096, 7);

    g_clear_error(&error);
    cr_assert_eq(disk_rejoin_try(s.rig->disk, 2, &error), REJOIN_FAILED);
    cr_assert_eq(rename(aside, s.rig->paths[2]), 0);
    must_return(&s, 2);
    replica_status status;
    disk_replica_status(s.rig->disk, 2, &status);
    cr_assert_eq(status.stale_bytes, SIZE); /* the region that was written to */
    expect_healthy(&s);
}

Test(disk_rejoin, O5_left_out_and_never_seen_it_is_filled_as_a_whole)
{
    g_auto(set) s = {.rig = disk_rig_new(3, 2, SIZE), .threshold = 2, .warn = true};
    set_close(&s);
    cr_assert_eq(unlink(s.rig->paths[0]), 0);
    must_open(&s);
    g_autofree uint8_t *other = g_malloc0(SIZE);
    support_save(s.rig->paths[0], other, SIZE);
    must_return(&s, 0);
    expect_state(&s, 0, REPLICA_STALE);
    expect_healthy(&s);
}

Test(disk_rejoin, O5_too_few_that_are_there_are_refused)
{
    g_auto(set) s = {.rig = disk_rig_new(3, 2, SIZE), .threshold = 2, .warn = true};
    g_autoptr(GError) error = NULL;
    set_close(&s);
    cr_assert_eq(unlink(s.rig->paths[0]), 0);
    cr_assert_eq(unlink(s.rig->paths[2]), 0);
    cr_assert_null(open_disk(&s, &error));
    cr_assert(g_str_has_prefix(error->message, "replica 'a': "), "%s", error->message);
}

/* ---- Taken out and put in ---------------------------------------------------------------- */

static replica_options *new_replica(set *s, uint64_t size)
{
    replica_options *options = replica_options_new();
    options->name = g_strdup("new");
    options->path = support_path("new.raw");
    options->source = g_strdup(options->path);
    options->format = g_strdup("raw");
    g_autofree uint8_t *empty = g_malloc0(size);
    support_save(options->path, empty, size);
    g_free(s->rig->paths[1]);
    s->rig->paths[1] = g_strdup(options->path);
    return options;
}

Test(disk_rejoin, W2_a_replica_is_exchanged_while_the_disk_is_written_to)
{
    g_auto(set) s;
    g_autoptr(GError) error = NULL;
    set_init(&s, 3, 2);
    write_model(&s, 0, 4096, 1);
    cr_assert(disk_remove_replica(s.rig->disk, 1, &error));
    expect_state(&s, 1, REPLICA_REMOVED);
    cr_assert_str_eq(disk_state_name(s.rig->disk), "healthy");
    write_model(&s, MIB, 4096, 2);
    cr_assert_eq(disk_flush(s.rig->disk), 0);

    replica_options *options = new_replica(&s, SIZE);
    cr_assert(disk_put_replica(s.rig->disk, 1, options, &error), "%s",
              error ? error->message : "");
    replica_options_free(options);
    expect_state(&s, 1, REPLICA_STALE);
    disk_rig_check_read(s.rig, 0, MIB);
    expect_healthy(&s);
    set_close(&s);
    must_open(&s);
    cr_assert_str_eq(disk_state_name(s.rig->disk), "healthy");
    disk_rig_check_read(s.rig, MIB, MIB);
}

Test(disk_rejoin, W2_who_was_removed_is_filled_as_a_whole_by_the_next_open)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    cr_assert(disk_remove_replica(s.rig->disk, 1, NULL));
    write_model(&s, MIB, 4096, 2);
    disk_state_tidy(s.rig->disk);
    set_close(&s);
    must_open(&s);
    expect_was_behind(&s, 1);
    expect_healthy(&s);
}

Test(disk_rejoin, as_many_as_the_threshold_remain)
{
    g_auto(set) s;
    g_autoptr(GError) error = NULL;
    set_init(&s, 3, 2);
    cr_assert(disk_remove_replica(s.rig->disk, 0, NULL));
    cr_assert(!disk_remove_replica(s.rig->disk, 0, NULL));
    cr_assert(!disk_remove_replica(s.rig->disk, 1, &error));
    cr_assert_str_eq(error->message,
                     "The number of children cannot be lower than the vote threshold 2");
    expect_state(&s, 1, REPLICA_IN_SYNC);
}

Test(disk_rejoin, who_has_another_size_or_is_there_already_is_not_put_in)
{
    g_auto(set) s;
    g_autoptr(GError) error = NULL;
    set_init(&s, 3, 2);
    replica_options *options = new_replica(&s, MIB);
    cr_assert(!disk_put_replica(s.rig->disk, 1, options, NULL));
    expect_state(&s, 1, REPLICA_IN_SYNC);
    cr_assert(disk_remove_replica(s.rig->disk, 1, NULL));
    cr_assert(!disk_put_replica(s.rig->disk, 1, options, &error));
    cr_assert(strstr(error->message, "has 1048576 bytes"), "%s", error->message);
    expect_state(&s, 1, REPLICA_REMOVED);
    g_clear_error(&error);
    g_free(options->path);
    options->path = g_strdup(s.rig->paths[0]);
    cr_assert(!disk_put_replica(s.rig->disk, 1, options, &error));
    expect_state(&s, 1, REPLICA_REMOVED);
    replica_options_free(options);
    write_model(&s, 0, 4096, 1);
    disk_rig_check_read(s.rig, 0, MIB);
    disk_rig_check_replicas(s.rig, 5);
}

/* ---- By itself ----------------------------------------------------------------------------- */

Test(disk_rejoin, who_hung_comes_back_by_himself)
{
    g_auto(set) s = {.rig = disk_rig_new(3, 2, SIZE), .threshold = 2};
    g_autoptr(GError) error = NULL;
    set_close(&s);
    cr_assert_not_null(open_disk(&s, &error));
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ETIMEDOUT, 0);
    write_model(&s, 0, 4096, 7);
    while (g_strcmp0(disk_state_name(s.rig->disk), "healthy") != 0)
        g_usleep(1000);
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_rejoin, a_disk_is_closed_while_somebody_tries_to_come_back)
{
    g_auto(set) s = {.rig = disk_rig_new(3, 2, SIZE), .threshold = 2};
    g_autoptr(GError) error = NULL;
    set_close(&s);
    cr_assert_not_null(open_disk(&s, &error));
    disk_rig_fail(s.rig, 1, FAULT_WRITE, ETIMEDOUT, 0);
    write_model(&s, 0, 4096, 7);
    set_close(&s);
    must_open(&s);
    disk_rig_check_read(s.rig, 0, 4096);
    expect_healthy(&s);
}
