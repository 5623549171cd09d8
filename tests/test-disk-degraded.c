/*
 * test-disk-degraded.c: which disks are opened though replicas are not in sync (O5):
 * min_replicas, degraded_warn, force.
 */
#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define MIB    (1u << 20)
#define SECTOR 512u
#define SIZE   (4u * MIB)

typedef struct set {
    disk_rig *rig; /* its disk is the one that is open, if one is */
    unsigned threshold, min_replicas;
    bool warn, force, read_only;
} set;

static disk *open_disk(set *s, GError **error)
{
    disk_options *options = disk_rig_options(s->rig->paths, s->rig->n, "raw");
    options->threshold = s->threshold;
    options->min_replicas = s->min_replicas;
    options->degraded_warn = s->warn;
    options->force = s->force;
    options->read_only = s->read_only;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    s->rig->disk = disk_open(options, s->rig->journal, error);
    disk_options_free(options);
    return s->rig->disk;
}

static void must_open(set *s)
{
    GError *error = NULL;
    cr_assert_not_null(open_disk(s, &error), "%s", error ? error->message : "no error");
}

static void set_close(set *s)
{
    cr_assert_eq(disk_close(g_steal_pointer(&s->rig->disk)), 0);
    fault_clear();
}

/* A set that was mounted once. */
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

static void write_model(set *s, uint64_t offset, size_t length, uint8_t byte)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, byte, length);
    cr_assert_eq(disk_write(s->rig->disk, offset, length, data), 0);
    memcpy(s->rig->model + offset, data, length);
}

static void miss_write(set *s, unsigned i, uint64_t offset)
{
    disk_rig_fail(s->rig, i, FAULT_WRITE, ENOSPC, 0);
    write_model(s, offset, 4096, 7);
}

static void expect_refused(set *s, const char *part)
{
    GError *error = NULL;
    cr_assert_null(open_disk(s, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_STALE));
    cr_assert(strstr(error->message, part), "'%s' lacks '%s'", error->message, part);
    cr_assert_null(strchr(error->message, '\n'));
    g_error_free(error);
}

static void expect_degraded(set *s, const char *part)
{
    const char *why = disk_degraded_reason(s->rig->disk);
    cr_assert(why && strstr(why, part), "'%s' lacks '%s'", why ? why : "", part);
}

static void await_in_sync(set *s)
{
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    while (strcmp(disk_state_name(s->rig->disk), "healthy") != 0) {
        cr_assert_lt(g_get_monotonic_time(), deadline);
        g_usleep(1000);
    }
}

/* ---- min_replicas ---- */

Test(disk_degraded, O5_fewer_than_min_replicas_are_refused_until_somebody_warns)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    miss_write(&s, 1, MIB);
    set_close(&s);
    s.min_replicas = 3;
    expect_refused(&s, "2 of 3 replicas are in sync, min-replicas is 3: 'b' missed");
    expect_refused(&s, "degraded=warn"); /* it stays so */
    s.warn = true;
    must_open(&s);
    expect_degraded(&s, "2 of 3 replicas");
    cr_assert(disk_writable(s.rig->disk));
    await_in_sync(&s);
    set_close(&s);
    s.warn = false;
    must_open(&s); /* it has caught up */
    cr_assert_null(disk_degraded_reason(s.rig->disk));
    disk_rig_check_replicas(s.rig, 7);
}

Test(disk_degraded, O5_enough_replicas_need_no_permission)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    miss_write(&s, 1, MIB);
    set_close(&s);
    s.min_replicas = 2;
    must_open(&s);
    cr_assert_null(disk_degraded_reason(s.rig->disk));
    cr_assert(disk_writable(s.rig->disk));
}

/* A quorum everywhere, but only one replica is good on all of the disk. */
Test(disk_degraded, O5_a_replica_that_is_stale_somewhere_does_not_count)
{
    g_auto(set) s;
    set_init(&s, 4, 2); /* half: nobody may copy (O4) */
    miss_write(&s, 1, 0);
    miss_write(&s, 2, 2 * MIB);
    set_close(&s);
    s.min_replicas = 3;
    expect_refused(&s, "2 of 4 replicas are in sync, min-replicas is 3: 'b', 'c' missed");
    s.min_replicas = 0;
    must_open(&s);
    cr_assert_null(disk_degraded_reason(s.rig->disk));
    disk_rig_check_read(s.rig, 0, MIB);
}

Test(disk_degraded, O5_force_includes_what_degraded_warn_permits)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    miss_write(&s, 1, MIB);
    set_close(&s);
    s.min_replicas = 3;
    s.force = true;
    must_open(&s);
    expect_degraded(&s, "2 of 3 replicas");
    cr_assert(disk_writable(s.rig->disk));
    await_in_sync(&s);
    disk_rig_check_replicas(s.rig, 7);
}

/* ---- force ---- */

/* b and c missed the write to the first sectors: equal there, and old. */
static void make_quorum_missing(set *s)
{
    set_init(s, 3, 1);
    disk_rig_fail(s->rig, 1, FAULT_WRITE, ENOSPC, 0);
    disk_rig_fail(s->rig, 2, FAULT_WRITE, ENOSPC, 0);
    write_model(s, 0, 4096, 9);
    set_close(s);
    s->threshold = 2;
}

Test(disk_degraded, O5_warn_does_not_open_a_disk_without_a_quorum)
{
    g_auto(set) s;
    make_quorum_missing(&s);
    expect_refused(&s, "threshold of 2: 'b', 'c' missed");
    s.warn = true;
    expect_refused(&s, "--force");
}

Test(disk_degraded, R1_what_lacks_a_quorum_is_an_error_on_a_forced_disk)
{
    g_auto(set) s;
    make_quorum_missing(&s);
    s.force = true;
    must_open(&s);
    expect_degraded(&s, "'b', 'c'");
    cr_assert_str_eq(disk_state_name(s.rig->disk), "failed");
    cr_assert_eq(disk_rig_read(s.rig, 0, SECTOR), -EIO); /* two agree on old bytes */
    cr_assert_eq(disk_rig_read(s.rig, MIB - SECTOR, 2 * SECTOR), -EIO);
    disk_rig_check_read(s.rig, MIB, MIB); /* past the region that they missed */
}

Test(disk_degraded, O5_a_forced_disk_changes_no_file)
{
    g_auto(set) s;
    make_quorum_missing(&s);
    expect_refused(&s, "--force"); /* the record has the new threshold now */
    g_autofree char *record = support_path("state/disk.state");
    uint8_t *before[4], *after;
    size_t length[4], now;
    const char *files[4] = {s.rig->paths[0], s.rig->paths[1], s.rig->paths[2], record};
    for (unsigned i = 0; i < 4; i++)
        before[i] = support_load(files[i], &length[i]);
    s.force = true;
    must_open(&s);
    cr_assert(!disk_writable(s.rig->disk));
    cr_assert_not_null(disk_read_only_reason(s.rig->disk));
    cr_assert_eq(disk_write(s.rig->disk, 2 * MIB, SECTOR, s.rig->model), -EROFS);
    cr_assert_eq(disk_resize(s.rig->disk, 2 * SIZE), -EROFS);
    set_close(&s);
    for (unsigned i = 0; i < 4; i++) {
        after = support_load(files[i], &now);
        cr_assert_eq(now, length[i]);
        cr_assert(memcmp(after, before[i], now) == 0, "%s", files[i]);
        g_free(after);
        g_free(before[i]);
    }
    s.force = false;
    expect_refused(&s, "'b', 'c'"); /* and nobody is trusted who was not */
}

Test(disk_degraded, O5_a_forced_disk_leaves_a_changed_replica_without_a_vote)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    disk_rig_corrupt(s.rig, 1, 0, SECTOR, 1);
    disk_rig_corrupt(s.rig, 2, 0, SECTOR, 1); /* the same: it would win */
    s.force = true;
    must_open(&s);
    cr_assert_eq(disk_rig_read(s.rig, 0, SECTOR), -EIO);
    cr_assert_eq(disk_rig_read(s.rig, MIB, SECTOR), -EIO);
    set_close(&s);
    s.force = false;
    expect_refused(&s, "'b', 'c'");
}

Test(disk_degraded, O5_read_only_and_forced_says_what_is_missing)
{
    g_auto(set) s;
    make_quorum_missing(&s);
    s.force = s.read_only = true;
    must_open(&s);
    expect_degraded(&s, "'b', 'c'");
    cr_assert_null(disk_read_only_reason(s.rig->disk)); /* it was asked for */
    disk_rig_check_read(s.rig, 2 * MIB, MIB);
}

Test(disk_degraded, O5_force_is_of_no_effect_on_a_disk_in_sync)
{
    g_auto(set) s;
    set_init(&s, 3, 2);
    set_close(&s);
    s.force = s.warn = true;
    s.min_replicas = 3;
    must_open(&s);
    cr_assert_null(disk_degraded_reason(s.rig->disk));
    cr_assert_null(disk_read_only_reason(s.rig->disk));
    cr_assert(disk_writable(s.rig->disk));
}

/* The way out that the message names. */
Test(disk_degraded, O5_a_new_record_trusts_copies_of_the_good_replica)
{
    g_auto(set) s;
    make_quorum_missing(&s);
    expect_refused(&s, "quorumfs repair --from REPLICA");
    g_autofree char *dir = support_path("state");
    support_run("cp %s %s; cp %s %s; rm -r %s", s.rig->paths[0], s.rig->paths[1],
                s.rig->paths[0], s.rig->paths[2], dir);
    must_open(&s);
    cr_assert_str_eq(disk_state_name(s.rig->disk), "healthy");
    disk_rig_check_read(s.rig, 0, MIB);
}
