/*
 * test-disk-repair.c: replicas that differ or cannot be read are given what the majority
 * holds, and nothing else is touched (repair.h).
 */
#include "quorum/repair.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SECTOR 512u
#define KIB    1024u
#define MIB    (1024u * 1024u)

static const repair_options by_vote = {.from = -1, .op = "scrub"};
static const repair_options look_only = {.from = -1, .op = "scrub", .dry_run = true};

static repair_stats repair_all(disk_rig *rig, const repair_options *options)
{
    repair_stats stats = {0};
    cr_assert_eq(disk_repair_range(rig->disk, 0, rig->size, options, &stats), 0);
    cr_assert_eq(stats.checked, rig->size);
    return stats;
}

static void expect(repair_stats stats, uint64_t differing, uint64_t unreadable,
                   uint64_t repaired, uint64_t failed, uint64_t no_quorum)
{
    cr_assert_eq(stats.differing, differing, "%llu", (unsigned long long)stats.differing);
    cr_assert_eq(stats.unreadable, unreadable, "%llu",
                 (unsigned long long)stats.unreadable);
    cr_assert_eq(stats.repaired, repaired, "%llu", (unsigned long long)stats.repaired);
    cr_assert_eq(stats.failed, failed, "%llu", (unsigned long long)stats.failed);
    cr_assert_eq(stats.no_quorum, no_quorum, "%llu", (unsigned long long)stats.no_quorum);
}

/* The only such record of a repair: "OFFSET+LENGTH PARTIES, ACTION". */
static char *only_record(disk_rig *rig, const char *event)
{
    json_t *records = disk_rig_records(rig, event, "scrub");
    cr_assert_eq(json_array_size(records), 1, "%zu of %s", json_array_size(records),
                 event);
    const json_t *record = json_array_get(records, 0);
    g_autofree char *parties = record_parties(record);
    char *text = g_strdup_printf(
        "%lld+%lld %s, %s", (long long)record_int(record, "offset"),
        (long long)record_int(record, "length"), parties, record_str(record, "action"));
    json_decref(records);
    return text;
}

/* ---- What is found and written ---- */

Test(disk_repair, R2_a_minority_is_overwritten_and_nothing_else)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 3 * MIB + 700);
    disk_rig_corrupt(rig, 1, 2 * MIB + 5 * SECTOR + 17, 1, 0x40);
    fault_track_changes();
    repair_stats stats = repair_all(rig, &by_vote);
    expect(stats, SECTOR, 0, SECTOR, 0, 0);
    cr_assert_eq(repair_exit_code(&stats), 1);
    disk_rig_check_replicas(rig, 7);
    for (unsigned i = 0; i < 3; i++)
        disk_rig_expect_state(rig, i, REPLICA_IN_SYNC);
    stats = repair_all(rig, &by_vote);
    expect(stats, 0, 0, 0, 0, 0);
    cr_assert_eq(repair_exit_code(&stats), 0);
}

/* R4: exactly what differed, who won, and what the loser held. */
Test(disk_repair, R4_what_was_found_and_what_was_done_are_in_the_journal)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 2, 8 * SECTOR, 2 * SECTOR, 0x01);
    repair_all(rig, &by_vote);
    g_autofree char *found = only_record(rig, "divergence");
    g_autofree char *done = only_record(rig, "repair");
    g_autofree char *good = disk_rig_digest(rig, 8 * SECTOR, 2 * SECTOR, 0);
    g_autofree char *bad = disk_rig_digest(rig, 8 * SECTOR, 2 * SECTOR, 0x01);
    g_autofree char *expected_found =
        g_strdup_printf("4096+1024 a,b=%s|c=%s, logged", good, bad);
    g_autofree char *expected_done =
        g_strdup_printf("4096+1024 a,b=%s|c=%s, repaired", good, bad);
    cr_assert_str_eq(found, expected_found);
    cr_assert_str_eq(done, expected_done);
}

Test(disk_repair, R4_what_a_read_has_told_is_not_told_again)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    repair_options options = by_vote;
    options.op = "read";
    options.reported = true;
    repair_all(rig, &options);
    cr_assert_eq(disk_rig_count(rig, "divergence", ""), 0);
    cr_assert_eq(disk_rig_count(rig, "repair", "read"), 1);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_repair, R2_three_replicas_with_three_bad_sectors_side_by_side)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    for (unsigned i = 0; i < 3; i++)
        disk_rig_corrupt(rig, i, (10 + i) * SECTOR, SECTOR, 0x80);
    expect(repair_all(rig, &by_vote), 3 * SECTOR, 0, 3 * SECTOR, 0, 0);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_repair, R1_without_a_majority_nothing_is_touched)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x02);
    disk_rig_corrupt(rig, 1, 4 * SECTOR, SECTOR, 0x04);
    repair_stats stats = repair_all(rig, &by_vote);
    expect(stats, 2 * SECTOR, 0, SECTOR, 0, SECTOR);
    cr_assert_eq(repair_exit_code(&stats), 5);
    size_t length;
    g_autofree uint8_t *a = support_load(rig->paths[0], &length);
    g_autofree uint8_t *b = support_load(rig->paths[1], &length);
    cr_assert_eq(a[0], rig->model[0] ^ 0x01);
    cr_assert_eq(b[0], rig->model[0] ^ 0x02);
    cr_assert_eq(b[4 * SECTOR], rig->model[4 * SECTOR]);
    cr_assert_eq(disk_rig_count(rig, "quorum-failure", "scrub"), 1);
}

Test(disk_repair, a_dry_run_writes_nothing)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 1, SECTOR, SECTOR, 0x01);
    size_t length;
    g_autofree uint8_t *before = support_load(rig->paths[1], &length);
    expect(repair_all(rig, &look_only), SECTOR, 0, 0, 0, 0);
    g_autofree uint8_t *after = support_load(rig->paths[1], &length);
    cr_assert(memcmp(before, after, length) == 0);
    cr_assert_eq(disk_rig_count(rig, "divergence", "scrub"), 1);
    cr_assert_eq(disk_rig_count(rig, "repair", ""), 0);
    cr_assert_eq(fault_runs(), 0);
}

Test(disk_repair, the_odd_tail_of_a_disk_is_repaired_too)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB + 100);
    disk_rig_corrupt(rig, 2, MIB, 100, 0x10);
    repair_stats stats = {0};
    cr_assert_eq(disk_repair_range(rig->disk, MIB + 40, 9 * MIB, &by_vote, &stats), 0);
    cr_assert_eq(stats.checked, 100);
    expect(stats, 100, 0, 100, 0, 0);
    disk_rig_check_replicas(rig, 7);
    cr_assert_eq(disk_repair_range(rig->disk, 5 * MIB, MIB, &by_vote, &stats), 0);
    cr_assert_eq(stats.checked, 100);
}

/* ---- O4 ---- */

Test(disk_repair, O4_a_vote_without_a_real_majority_repairs_nothing)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    repair_stats stats = {0};
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    cr_assert_eq(disk_repair_range(rig->disk, 0, MIB, &by_vote, &stats), -EPERM);
    cr_assert_eq(stats.checked, 0);
    expect(repair_all(rig, &look_only), SECTOR, 0, 0, 0, 0);
}

Test(disk_repair, O4_a_read_only_disk_is_not_written_to)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    repair_stats stats = {0};
    g_autoptr(GError) error = NULL;
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    disk_close(rig->disk);
    disk_options *options = disk_rig_options(rig->paths, 3, "raw");
    options->read_only = true;
    rig->disk = disk_open(options, rig->journal, &error);
    cr_assert_not_null(rig->disk);
    disk_options_free(options);
    cr_assert_eq(disk_repair_range(rig->disk, 0, MIB, &by_vote, &stats), -EROFS);
    expect(repair_all(rig, &look_only), SECTOR, 0, 0, 0, 0);
}

/* ---- From one replica ---- */

Test(disk_repair, from_a_replica_overrules_the_vote)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x01);
    disk_rig_corrupt(rig, 1, 3 * SECTOR, SECTOR, 0x01);
    const repair_options from_c = {.from = 2, .op = "repair"};
    expect(repair_all(rig, &from_c), 2 * SECTOR, 0, 2 * SECTOR, 0, 0);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_repair, from_a_replica_needs_no_majority)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 0, MIB);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 0x01);
    expect(repair_all(rig, &by_vote), SECTOR, 0, 0, 0, SECTOR);
    const repair_options from_b = {.from = 1, .op = "repair"};
    expect(repair_all(rig, &from_b), SECTOR, 0, SECTOR, 0, 0);
    disk_rig_check_replicas(rig, 3);
    repair_stats stats = {0};
    const repair_options from_nobody = {.from = 2, .op = "repair"};
    cr_assert_eq(disk_repair_range(rig->disk, 0, MIB, &from_nobody, &stats), -EINVAL);
}

/* b cannot be read in one sector, also when it is tried again by the sector. */
static void make_unreadable(disk_rig *rig, unsigned i, uint64_t offset, unsigned times)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_READ,
                      .offset = offset,
                      .length = SECTOR,
                      .error = EIO,
                      .times = times});
}

Test(disk_repair, from_a_replica_that_cannot_be_read_there_the_vote_decides)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, SECTOR, SECTOR, 0x01);
    make_unreadable(rig, 0, SECTOR, 4);
    const repair_options from_a = {.from = 0, .op = "repair"};
    expect(repair_all(rig, &from_a), 0, SECTOR, SECTOR, 0, 0);
    disk_rig_check_replicas(rig, 7);
}

/* A change that fails as a whole looks at its range again; the runs after it are not
 * repaired from what that has left in memory. */
Test(disk_repair, W3_after_a_change_that_failed_the_rest_is_read_again)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, 8 * SECTOR);
    for (unsigned i = 1; i < 4; i++) {
        disk_rig_corrupt(rig, i, SECTOR, SECTOR, 0x01);
        disk_rig_corrupt(rig, i, 5 * SECTOR, SECTOR, (uint8_t)(1u << i));
        disk_rig_fail(rig, i, FAULT_WRITE, EIO, 0);
    }
    const repair_options from_a = {.from = 0, .op = "repair"};
    expect(repair_all(rig, &from_a), 2 * SECTOR, 0, SECTOR, SECTOR, 0);
    for (unsigned i = 0; i < 4; i++) {
        size_t length;
        g_autofree uint8_t *bytes = support_load(rig->paths[i], &length);
        cr_assert(memcmp(bytes + 5 * SECTOR, rig->model + 5 * SECTOR, SECTOR) == 0);
        cr_assert_eq(bytes[SECTOR], rig->model[SECTOR] ^ (i ? 0x01 : 0));
    }
}

/* ---- R3 ---- */

Test(disk_repair, R3_a_sector_that_cannot_be_read_is_rewritten)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 1, 40 * SECTOR, SECTOR, 0xff);
    make_unreadable(rig, 1, 40 * SECTOR, 4);
    repair_stats stats = repair_all(rig, &by_vote);
    expect(stats, 0, SECTOR, SECTOR, 0, 0);
    cr_assert_eq(repair_exit_code(&stats), 4);
    disk_rig_check_replicas(rig, 7);
    g_autofree char *failed = only_record(rig, "replica-error");
    g_autofree char *done = only_record(rig, "repair");
    g_autofree char *good = disk_rig_digest(rig, 40 * SECTOR, SECTOR, 0);
    g_autofree char *expected =
        g_strdup_printf("20480+512 a,c=%s|b!%d, repaired", good, EIO);
    cr_assert_str_eq(failed, "20480+512 |b!5, logged");
    cr_assert_str_eq(done, expected);
}

Test(disk_repair, R5_who_does_not_answer_in_time_is_not_written_to)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_add((fault){.chain = disk_chain(rig->disk, 1),
                      .kind = FAULT_READ,
                      .error = ETIMEDOUT,
                      .times = 1});
    expect(repair_all(rig, &by_vote), 0, MIB, 0, MIB, 0);
    cr_assert_eq(disk_rig_count(rig, "repair", ""), 0);
    disk_rig_check_replicas(rig, 7);
}

/* ---- W2: who cannot be repaired ---- */

Test(disk_repair, W2_who_does_not_take_it_is_stale_there_and_nowhere_else)
{
    g_autoptr(disk_rig) rig = disk_rig_new(5, 0, MIB);
    for (unsigned i = 1; i < 3; i++) {
        disk_rig_corrupt(rig, i, 0, SECTOR, 0x01);
        disk_rig_corrupt(rig, i, 9 * SECTOR, SECTOR, 0x01);
    }
    disk_rig_fail(rig, 1, FAULT_WRITE, EIO, 0);
    repair_stats stats = repair_all(rig, &by_vote);
    expect(stats, 2 * SECTOR, 0, SECTOR, SECTOR, 0);
    cr_assert_eq(repair_exit_code(&stats), 4);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    replica_status status;
    disk_replica_status(rig->disk, 1, &status);
    cr_assert_eq(status.stale_bytes, SECTOR);
    disk_rig_check_replicas(rig, 1u << 0 | 1u << 2 | 1u << 3 | 1u << 4);

    json_t *records = disk_rig_records(rig, "repair", "scrub");
    cr_assert_eq(json_array_size(records), 3);
    const json_t *done = json_array_get(records, 0),
                 *not_done = json_array_get(records, 1);
    g_autofree char *good = disk_rig_digest(rig, 0, SECTOR, 0);
    g_autofree char *bad = disk_rig_digest(rig, 0, SECTOR, 0x01);
    g_autofree char *who = record_parties(done), *who_not = record_parties(not_done);
    g_autofree char *expected = g_strdup_printf("a,d,e=%s|c=%s", good, bad);
    g_autofree char *expected_not = g_strdup_printf("a,d,e=%s|b=%s", good, bad);
    cr_assert_str_eq(record_str(done, "action"), "repaired");
    cr_assert_str_eq(who, expected);
    cr_assert_str_eq(record_str(not_done, "action"), "not repaired");
    cr_assert_str_eq(who_not, expected_not);
    json_decref(records);
    expect(repair_all(rig, &by_vote), 0, 0, 0, 0, 0);
}

static disk_rig *hook_rig;

static void spoil_what_was_written(void)
{
    uint8_t wrong = hook_rig->model[0] ^ 0x22;
    support_poke(hook_rig->paths[1], 0, &wrong, 1);
}

Test(disk_repair, what_was_written_is_read_back)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x01);
    hook_rig = rig;
    fault_add((fault){.chain = disk_chain(rig->disk, 1),
                      .kind = FAULT_READ,
                      .times = 1,
                      .after = 1,
                      .hook = spoil_what_was_written});
    expect(repair_all(rig, &by_vote), SECTOR, 0, 0, SECTOR, 0);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    disk_rig_check_read(rig, 0, MIB);
    g_autofree char *record = only_record(rig, "repair");
    cr_assert(g_str_has_suffix(record, "not repaired"), "%s", record);
}

/* What it missed is resync's. */
Test(disk_repair, W2_where_a_replica_is_stale_it_is_left_alone)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 2, FAULT_WRITE, EIO, 0);
    uint8_t data[SECTOR];
    memset(data, 0x77, sizeof data);
    cr_assert_eq(disk_write(rig->disk, SECTOR, SECTOR, data), 0);
    disk_rig_corrupt(rig, 2, 3 * SECTOR, SECTOR, 0x01);
    expect(repair_all(rig, &by_vote), SECTOR, 0, SECTOR, 0, 0);
    disk_rig_check_replicas(rig, 1u << 2); /* all but what it missed */
    disk_rig_expect_state(rig, 2, REPLICA_STALE);
}

/* ---- Saving ---- */

typedef struct saved {
    unsigned calls, replica;
    uint64_t offset;
    size_t length;
    bool has_old;
    uint8_t first, new_first;
    int answer;
} saved;

static int save(void *opaque, unsigned replica, uint64_t offset, const void *old,
                const void *new, size_t length)
{
    saved *s = opaque;
    s->new_first = *(const uint8_t *)new;
    s->calls++;
    s->replica = replica;
    s->offset = offset;
    s->length = length;
    s->has_old = old != NULL;
    s->first = old ? *(const uint8_t *)old : 0;
    return s->answer;
}

Test(disk_repair, what_is_overwritten_is_saved_first)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    saved s = {0};
    repair_options options = {.from = -1, .op = "repair"};
    disk_set_saver(rig->disk, (repair_saver){.save = save, .opaque = &s});
    disk_rig_corrupt(rig, 1, 6 * SECTOR, 3 * SECTOR, 0x0f);
    repair_all(rig, &options);
    cr_assert_eq(s.calls, 1);
    cr_assert_eq(s.replica, 1);
    cr_assert_eq(s.offset, 6 * SECTOR);
    cr_assert_eq(s.length, 3 * SECTOR);
    cr_assert(s.has_old && s.first == (rig->model[6 * SECTOR] ^ 0x0f));
    cr_assert_eq(s.new_first, rig->model[6 * SECTOR]);
    make_unreadable(rig, 0, 0, 4);
    repair_all(rig, &options);
    cr_assert_eq(s.calls, 2);
    cr_assert_eq(s.replica, 0);
    cr_assert(!s.has_old);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_repair, what_cannot_be_saved_is_not_overwritten)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    saved s = {.answer = -ENOSPC};
    const repair_options options = {.from = -1, .op = "repair"};
    disk_set_saver(rig->disk, (repair_saver){.save = save, .opaque = &s});
    disk_rig_corrupt(rig, 1, 0, SECTOR, 0x0f);
    expect(repair_all(rig, &options), SECTOR, 0, 0, SECTOR, 0);
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    size_t length;
    g_autofree uint8_t *bytes = support_load(rig->paths[1], &length);
    cr_assert_eq(bytes[0], rig->model[0] ^ 0x0f);
}
