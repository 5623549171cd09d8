/*
 * test-disk-noted.c: on-divergence=repair: what a read finds differing is repaired soon
 * after (quorum/repair-noted.c).
 */
#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SECTOR 512u
#define MIB    (1024u * 1024u)

static disk_pattern pattern = DISK_PATTERN_QUORUM; /* of what is opened */

/* The rig's disk, opened anew with on-divergence=repair. */
static disk *open_repairing(disk_rig *rig, unsigned threshold, GError **error)
{
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->threshold = threshold;
    options->read_pattern = pattern;
    options->on_divergence_repair = true;
    disk_close(g_steal_pointer(&rig->disk));
    rig->disk = disk_open(options, rig->journal, error);
    disk_options_free(options);
    return rig->disk;
}

/* Without the worker's thread: the test takes its steps. */
static disk_rig *new_repairing(unsigned n)
{
    disk_rig *rig = disk_rig_new(n, 0, MIB);
    g_autoptr(GError) error = NULL;
    cr_assert_not_null(open_repairing(rig, 0, &error), "%s",
                       error ? error->message : "no error");
    disk_worker_stop(rig->disk);
    return rig;
}

Test(disk_noted, a_read_that_agrees_notes_nothing)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert(!disk_worker_step(rig->disk));
}

Test(disk_noted, what_a_read_found_differing_is_repaired)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_corrupt(rig, 1, 3 * SECTOR, SECTOR, 0x01);
    disk_rig_corrupt(rig, 2, 9 * SECTOR, SECTOR, 0x01);
    disk_rig_check_read(rig, 0, 16 * SECTOR);
    cr_assert_eq(disk_rig_count(rig, "repair", ""), 0);
    cr_assert(disk_worker_step(rig->disk));
    cr_assert(disk_worker_step(rig->disk));
    cr_assert(!disk_worker_step(rig->disk));
    disk_rig_check_replicas(rig, 7);
    cr_assert_eq(disk_rig_count(rig, "divergence", "read"), 2);
    cr_assert_eq(disk_rig_count(rig, "divergence", ""), 2);
    cr_assert_eq(disk_rig_count(rig, "repair", "read"), 2);
}

Test(disk_noted, what_no_read_has_seen_is_left_alone)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_corrupt(rig, 1, 3 * SECTOR, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, 64 * SECTOR, SECTOR, 0x01);
    disk_rig_check_read(rig, 0, 16 * SECTOR);
    while (disk_worker_step(rig->disk))
        ;
    size_t length;
    g_autofree uint8_t *bytes = support_load(rig->paths[1], &length);
    cr_assert_eq(bytes[3 * SECTOR], rig->model[3 * SECTOR]);
    cr_assert_eq(bytes[64 * SECTOR], rig->model[64 * SECTOR] ^ 0x01);
}

Test(disk_noted, R3_what_a_read_could_not_read_is_rewritten)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_corrupt(rig, 0, SECTOR, SECTOR, 0x01);
    fault_add(
        (fault){.chain = disk_chain(rig->disk, 0),
                .kind = FAULT_READ,
                .offset = SECTOR,
                .length = SECTOR,
                .error = EIO,
                .times = 4}); /* 64 KiB, 4 KiB, the sector; then the repair's read */
    disk_rig_check_read(rig, 0, 64 * 1024);
    cr_assert(disk_worker_step(rig->disk));
    disk_rig_check_replicas(rig, 7);
    cr_assert_eq(disk_rig_count(rig, "repair", "read"), 1);
}

/* Without a vote only failures are seen; what is written to them was voted on. */
Test(disk_noted, R3_so_it_is_with_fifo)
{
    pattern = DISK_PATTERN_FIFO;
    g_autoptr(disk_rig) rig = new_repairing(3);
    pattern = DISK_PATTERN_QUORUM;
    disk_rig_corrupt(rig, 0, SECTOR, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, SECTOR, SECTOR, 0x02);
    disk_rig_fail(rig, 0, FAULT_READ, EIO, 0);
    cr_assert_eq(disk_rig_read(rig, 5 * SECTOR, SECTOR), 0);
    cr_assert(!disk_worker_step(rig->disk)); /* it could be read the second time */
    fault_add((fault){.chain = disk_chain(rig->disk, 0),
                      .kind = FAULT_READ,
                      .offset = 9 * SECTOR,
                      .length = SECTOR,
                      .error = EIO,
                      .times = 2});
    disk_rig_corrupt(rig, 0, 9 * SECTOR, SECTOR, 0x01);
    cr_assert_eq(disk_rig_read(rig, 9 * SECTOR, SECTOR), 0);
    cr_assert(disk_worker_step(rig->disk));
    size_t length;
    g_autofree uint8_t *bytes = support_load(rig->paths[0], &length);
    cr_assert_eq(bytes[9 * SECTOR], rig->model[9 * SECTOR]);
    cr_assert_eq(bytes[SECTOR], rig->model[SECTOR] ^ 0x01);
}

Test(disk_noted, R1_what_nobody_wins_is_not_tried)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x02);
    cr_assert_eq(disk_rig_read(rig, 0, SECTOR), -EIO);
    cr_assert(!disk_worker_step(rig->disk));
}

Test(disk_noted, R5_who_does_not_answer_is_no_case_for_repair)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_fail(rig, 1, FAULT_READ, ETIMEDOUT, 0);
    disk_rig_check_read(rig, 0, SECTOR);
    cr_assert(!disk_worker_step(rig->disk));
}

/* The guest writes after the read and before the repair. */
Test(disk_noted, W7_a_newer_write_is_not_overwritten)
{
    g_autoptr(disk_rig) rig = new_repairing(3);
    disk_rig_corrupt(rig, 1, 0, 4 * SECTOR, 0x01);
    disk_rig_check_read(rig, 0, 4 * SECTOR);
    memset(rig->model + SECTOR, 0x77, 2 * SECTOR);
    cr_assert_eq(disk_write(rig->disk, SECTOR, 2 * SECTOR, rig->model + SECTOR), 0);
    while (disk_worker_step(rig->disk))
        ;
    disk_rig_check_replicas(rig, 7);
    cr_assert_eq(disk_rig_count(rig, "repair", "read"), 2);
}

/* With the thread: nobody has to ask. Left to itself it looks every five seconds. */
Test(disk_noted, the_worker_is_woken)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    gint64 began = g_get_monotonic_time();
    cr_assert_not_null(open_repairing(rig, 0, NULL));
    for (unsigned k = 0; k < 20; k++) {
        disk_rig_corrupt(rig, k % 3, k * 3 * SECTOR, SECTOR, 0x01);
        disk_rig_check_read(rig, k * 3 * SECTOR, SECTOR);
        while (disk_rig_count(rig, "repair", "read") <= k)
            g_thread_yield();
    }
    cr_assert_lt(g_get_monotonic_time() - began, 60 * G_USEC_PER_SEC);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_noted, on_divergence_log_writes_nothing)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x01);
    disk_rig_check_read(rig, 0, SECTOR);
    cr_assert(!disk_worker_step(rig->disk));
    size_t length;
    g_autofree uint8_t *bytes = support_load(rig->paths[1], &length);
    cr_assert_eq(bytes[0], rig->model[0] ^ 0x01);
}

Test(disk_noted, O4_it_is_refused_without_a_majority)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 0, MIB);
    g_autoptr(GError) error = NULL;
    cr_assert_null(open_repairing(rig, 2, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS));
    cr_assert_str_eq(error->message,
                     "on-divergence=repair needs a majority, and 2 of 4 is none (give a "
                     "threshold of 3 or more)");
}

Test(disk_noted, O4_it_is_refused_where_nothing_can_be_written)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->read_only = options->on_divergence_repair = true;
    cr_assert_null(disk_open(options, NULL, &error));
    cr_assert_str_eq(error->message, "on-divergence=repair needs a disk that can be "
                                     "written to (mount it with on-divergence=log)");
    disk_options_free(options);
}

/* The decoder that checks one reader by another does not write. */
Test(disk_noted, O4_it_is_refused_where_a_replica_cannot_be_written)
{
    g_autoptr(GError) error = NULL;
    for (unsigned i = 0; i < 3; i++)
        support_run("qemu-img create -q -f qcow2 both%u.qcow2 1M", i);
    char *paths[] = {support_path("both0.qcow2"), support_path("both1.qcow2"),
                     support_path("both2.qcow2")};
    disk_options *options = disk_rig_options(paths, 3, "qcow2");
    options->decoder = CHAIN_DECODER_BOTH;
    options->on_divergence_repair = true;
    cr_assert_null(disk_open(options, NULL, &error));
    cr_assert(g_str_has_prefix(error->message,
                               "on-divergence=repair needs a disk that can "
                               "be written to: replica 'a': "),
              "%s", error->message);
    disk_options_free(options);
    for (unsigned i = 0; i < 3; i++)
        g_free(paths[i]);
}
