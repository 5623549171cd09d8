/*
 * test-disk.c: opening a disk, and what a read returns and records.
 *
 * Parties of a journal record are written as text, see record_parties: "b,c|a" is won by
 * b and c and lost by a.
 */
#include "tests/disk-rig.h"
#include "tests/fault.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512u
#define KIB    1024u
#define MIB    (1024u * 1024u)

/* ---- Opening ---- */

static void expect_refused(disk_options *options, GQuark domain, const char *text)
{
    g_autoptr(GError) error = NULL;
    disk *d = disk_open(options, NULL, &error);
    cr_assert_null(d, "opened, but should say: %s", text);
    cr_assert(error->domain == domain && strstr(error->message, text),
              "says '%s', should say '%s'", error->message, text);
    disk_options_free(options);
}

static disk_options *three_files(uint64_t size)
{
    char *paths[3];
    g_autofree uint8_t *zeroes = g_malloc0(size);
    for (unsigned i = 0; i < 3; i++) {
        paths[i] = support_path("file%u.raw", i);
        support_save(paths[i], zeroes, size);
    }
    disk_options *options = disk_rig_options(paths, 3, "raw");
    for (unsigned i = 0; i < 3; i++)
        g_free(paths[i]);
    return options;
}

static replica_options *nth(disk_options *options, unsigned i)
{
    return g_ptr_array_index(options->replicas, i);
}

Test(disk, open_checks_threshold)
{
    disk_options *options = three_files(4096);
    options->threshold = 4;
    expect_refused(options, DISK_ERROR, "threshold may not exceed children count");
    options = three_files(4096);
    options->threshold = (unsigned)-1;
    expect_refused(options, DISK_ERROR,
                   "Parameter 'vote-threshold' expects a value >= 1");
    for (unsigned threshold = 0; threshold <= 3; threshold++) {
        options = three_files(4096);
        options->threshold = threshold;
        disk *d = disk_open(options, NULL, NULL);
        cr_assert_not_null(d);
        cr_assert_eq(disk_threshold(d), threshold ? threshold : 2);
        cr_assert_eq(disk_replica_count(d), 3);
        cr_assert_eq(disk_size(d), 4096);
        cr_assert(disk_writable(d));
        cr_assert_str_eq(disk_state_name(d), "healthy");
        cr_assert_str_eq(disk_name(d), "disk");
        cr_assert_str_eq(disk_file(d), "disk.img");
        cr_assert_eq(disk_close(d), 0);
        disk_options_free(options);
    }
}

Test(disk, open_checks_names_and_counts)
{
    disk_options *options = three_files(4096);
    g_free(nth(options, 2)->name);
    nth(options, 2)->name = g_strdup("a");
    expect_refused(options, DISK_ERROR, "two replicas are named 'a'");
    options = three_files(4096);
    g_ptr_array_set_size(options->replicas, 0);
    expect_refused(options, DISK_ERROR, "0 replicas (a disk has between 1 and 64)");
    options = three_files(4096);
    while (options->replicas->len < 65)
        g_ptr_array_add(options->replicas, replica_options_new());
    expect_refused(options, DISK_ERROR, "65 replicas");
}

Test(disk, open_compares_sizes)
{
    disk_options *options = three_files(4096);
    cr_assert_eq(truncate(nth(options, 1)->path, 8192), 0);
    expect_refused(options, DISK_ERROR,
                   "replica 'b': has 8192 bytes where replica 'a' has 4096");
}

Test(disk, open_names_the_replica)
{
    disk_options *options = three_files(4096);
    cr_assert_eq(unlink(nth(options, 1)->path), 0);
    expect_refused(options, IMAGE_ERROR, "replica 'b': ");
}

Test(disk, O2_one_file_twice_is_no_vote)
{
    disk_options *options = three_files(4096);
    options->read_only = true;
    cr_assert_eq(unlink(nth(options, 2)->path), 0);
    cr_assert_eq(link(nth(options, 0)->path, nth(options, 2)->path), 0);
    g_autoptr(GError) error = NULL;
    cr_assert_null(disk_open(options, NULL, &error));
    cr_assert_eq(error->domain, IMAGE_ERROR);
    disk_options_free(options);
}

Test(disk, one_replica_is_a_disk)
{
    g_autoptr(disk_rig) rig = disk_rig_new(1, 0, 10000);
    disk_rig_check_read(rig, 9000, 1000);
    cr_assert_eq(disk_threshold(rig->disk), 1);
}

/* ---- Reads that agree ---- */

Test(disk, R1_any_range_reads_as_the_replicas)
{
    const uint64_t size = 2 * MIB + 777;
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, size);
    uint64_t state = support_seed();
    const size_t lengths[] = {1, 511, 512, 513, 4096, 65536 + 1, MIB - 1, MIB};
    for (unsigned k = 0; k < G_N_ELEMENTS(lengths); k++) {
        disk_rig_check_read(rig, 0, lengths[k]);
        disk_rig_check_read(rig, 1, lengths[k]);
        disk_rig_check_read(rig, 512, lengths[k]);
        disk_rig_check_read(rig, size - lengths[k], lengths[k]);
        for (unsigned j = 0; j < 20; j++)
            disk_rig_check_read(rig, support_random(&state) % (size - lengths[k]),
                                lengths[k]);
    }
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
    disk_counters counters;
    disk_get_counters(rig->disk, &counters);
    cr_assert_eq(counters.reads, 24 * G_N_ELEMENTS(lengths));
    cr_assert_eq(counters.divergences + counters.quorum_failures, 0);
}

Test(disk, read_keeps_to_the_disk)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 8000);
    cr_assert_eq(disk_rig_read(rig, 7999, 1), 0);
    cr_assert_eq(disk_rig_read(rig, 8000, 0), 0);
    cr_assert_eq(disk_rig_read(rig, 8000, 1), -EINVAL);
    cr_assert_eq(disk_rig_read(rig, 8001, 0), -EINVAL);
    cr_assert_eq(disk_rig_read(rig, 7000, 1001), -EINVAL);
    cr_assert_eq(disk_rig_read(rig, UINT64_MAX, 1), -EINVAL);
    cr_assert_eq(disk_rig_read(rig, UINT64_MAX - 511, 1024), -EINVAL);
    cr_assert_eq(disk_rig_read(rig, 0, DISK_REQUEST_MAX + 1), -EINVAL);
}

/* ---- Divergence ---- */

static void expect_record(disk_rig *rig, const char *event, const char *op,
                          uint64_t offset, uint64_t length, const char *parties,
                          const char *action)
{
    json_t *records = disk_rig_records(rig, event, op), *record;
    size_t k;
    bool found = false;
    GString *seen = g_string_new(NULL);
    json_array_foreach(records, k, record)
    {
        g_autofree char *text = record_parties(record);
        g_string_append_printf(
            seen, "\n%lld+%lld %s %s", (long long)record_int(record, "offset"),
            (long long)record_int(record, "length"), text, record_str(record, "action"));
        found |= (uint64_t)record_int(record, "offset") == offset &&
                 (uint64_t)record_int(record, "length") == length &&
                 strcmp(text, parties) == 0 &&
                 strcmp(record_str(record, "action"), action) == 0;
    }
    cr_assert(found, "no %s %s %llu+%llu %s %s in:%s", event, op,
              (unsigned long long)offset, (unsigned long long)length, parties, action,
              seen->str);
    g_string_free(seen, TRUE);
    json_decref(records);
}

static const char *const winners_but[] = {"b,c", "a,c", "a,b"};

Test(disk, R2_R4_each_replica_outvoted_exactly)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    for (unsigned bad = 0; bad < 3; bad++) {
        uint64_t offset = 64 * KIB * (bad + 1) + SECTOR * bad;
        disk_rig_corrupt(rig, bad, offset + 3, 1, 0x80); /* one byte of one sector */
        disk_rig_check_read(rig, offset - 700, 3 * SECTOR);
        g_autofree char *right = disk_rig_digest(rig, offset, SECTOR, 0);
        uint8_t wrong_bytes[SECTOR], digest[JOURNAL_DIGEST_SIZE];
        memcpy(wrong_bytes, rig->model + offset, SECTOR);
        wrong_bytes[3] ^= 0x80;
        journal_digest(wrong_bytes, SECTOR, digest);
        g_autofree char *parties =
            g_strdup_printf("%s=%s|%c=%02x%02x%02x%02x", winners_but[bad], right,
                            'a' + bad, digest[0], digest[1], digest[2], digest[3]);
        expect_record(rig, "divergence", "read", offset, SECTOR, parties, "served");
    }
    cr_assert_eq(disk_rig_count(rig, "", ""), 3);
}

Test(disk, R4_runs_are_cut_where_the_grouping_changes)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 4096, 8 * SECTOR, 1);
    disk_rig_corrupt(rig, 1, 4096 + 8 * SECTOR, 4 * SECTOR, 2);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert_eq(disk_rig_count(rig, "divergence", "read"), 2);
    g_autofree char *right = disk_rig_digest(rig, 4096, 8 * SECTOR, 0);
    g_autofree char *wrong = disk_rig_digest(rig, 4096, 8 * SECTOR, 1);
    g_autofree char *parties = g_strdup_printf("b,c=%s|a=%s", right, wrong);
    expect_record(rig, "divergence", "read", 4096, 8 * SECTOR, parties, "served");
}

Test(disk, R4_a_repeat_is_counted)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 2, 8192, SECTOR, 0xff);
    for (unsigned k = 0; k < 5; k++)
        disk_rig_check_read(rig, 8192, 4096);
    json_t *records = disk_rig_records(rig, "divergence", "read");
    int64_t count = 0;
    for (size_t k = 0; k < json_array_size(records); k++)
        count += record_int(json_array_get(records, k), "count");
    json_decref(records);
    cr_assert_eq(count, 5);
    disk_counters counters;
    replica_status status;
    disk_get_counters(rig->disk, &counters);
    disk_replica_status(rig->disk, 2, &status);
    cr_assert_eq(counters.divergences, 5);
    cr_assert_eq(status.divergent_bytes, SECTOR); /* each byte once */
    cr_assert_str_eq(replica_state_name(status.state), "in-sync");
}

static void expect_divergent(disk_rig *rig, uint64_t a, uint64_t b, uint64_t c)
{
    replica_status status[3];
    for (unsigned i = 0; i < 3; i++)
        disk_replica_status(rig->disk, i, &status[i]);
    cr_assert_eq(status[0].divergent_bytes, a);
    cr_assert_eq(status[1].divergent_bytes, b);
    cr_assert_eq(status[2].divergent_bytes, c);
}

Test(disk, R1_no_majority_is_EIO_and_recorded)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 10 * SECTOR, SECTOR, 1);
    disk_rig_corrupt(rig, 1, 10 * SECTOR, SECTOR, 2);
    cr_assert_eq(disk_rig_read(rig, 0, 64 * KIB), -EIO);
    g_autofree char *a = disk_rig_digest(rig, 10 * SECTOR, SECTOR, 1);
    g_autofree char *b = disk_rig_digest(rig, 10 * SECTOR, SECTOR, 2);
    g_autofree char *c = disk_rig_digest(rig, 10 * SECTOR, SECTOR, 0);
    g_autofree char *parties = g_strdup_printf("|a=%s,b=%s,c=%s", a, b, c);
    expect_record(rig, "quorum-failure", "read", 10 * SECTOR, SECTOR, parties, "refused");
    json_t *records = disk_rig_records(rig, "quorum-failure", "");
    cr_assert_eq(json_array_size(records), 1);
    cr_assert_eq(record_int(json_array_get(records, 0), "errno"), EIO);
    cr_assert_null(json_object_get(json_array_get(records, 0), "winner"));
    json_decref(records);

    expect_divergent(rig, SECTOR, SECTOR, SECTOR); /* nobody knows who is right */
    disk_rig_check_read(rig, 0, 10 * SECTOR);      /* its neighbours are served */
    disk_rig_check_read(rig, 11 * SECTOR, 64 * KIB);
    cr_assert_eq(disk_rig_read(rig, 10 * SECTOR + 100, 1), -EIO);
}

Test(disk, R1_divergence_beside_a_refused_sector_is_recorded)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 1);
    disk_rig_corrupt(rig, 1, 0, SECTOR, 2);
    disk_rig_corrupt(rig, 2, 4096, SECTOR, 4);
    cr_assert_eq(disk_rig_read(rig, 0, 64 * KIB), -EIO);
    g_autofree char *right = disk_rig_digest(rig, 4096, SECTOR, 0);
    g_autofree char *wrong = disk_rig_digest(rig, 4096, SECTOR, 4);
    g_autofree char *parties = g_strdup_printf("a,b=%s|c=%s", right, wrong);
    expect_record(rig, "divergence", "read", 4096, SECTOR, parties, "refused");
}

Test(disk, R2_three_bad_sectors_in_one_request)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    for (unsigned i = 0; i < 3; i++)
        disk_rig_corrupt(rig, i, 16 * KIB * (i + 1), 4 * KIB, 0x55);
    disk_rig_check_read(rig, 0, 64 * KIB);
    disk_rig_check_read(rig, 5, MIB - 5);
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *right = disk_rig_digest(rig, 16 * KIB * (i + 1), 4 * KIB, 0);
        g_autofree char *wrong = disk_rig_digest(rig, 16 * KIB * (i + 1), 4 * KIB, 0x55);
        g_autofree char *parties =
            g_strdup_printf("%s=%s|%c=%s", winners_but[i], right, 'a' + i, wrong);
        expect_record(rig, "divergence", "read", 16 * KIB * (i + 1), 4 * KIB, parties,
                      "served");
    }
}

Test(disk, R2_tie_goes_to_the_first)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    disk_rig_corrupt(rig, 1, 4096, SECTOR, 7);
    disk_rig_corrupt(rig, 2, 4096, SECTOR, 7);
    disk_rig_check_read(rig, 4096, SECTOR); /* a and d hold the model */
    g_autoptr(disk_rig) two = disk_rig_new(2, 1, MIB);
    disk_rig_corrupt(two, 1, 4096, SECTOR, 7);
    disk_rig_check_read(two, 0, 8192);
    disk_rig_corrupt(two, 0, 0, SECTOR, 9);
    const void *data;
    cr_assert_eq(disk_read(two->disk, 0, SECTOR, &data), 0);
    cr_assert_eq(((const uint8_t *)data)[0], two->model[0] ^ 9);
}

Test(disk, R1_every_threshold)
{
    for (unsigned n = 1; n <= 5; n++) {
        for (unsigned threshold = 1; threshold <= n; threshold++) {
            g_autoptr(disk_rig) rig = disk_rig_new(n, threshold, 64 * KIB);
            for (unsigned bad = 0; bad < n; bad++) {
                /* The last `bad` + 1 replicas each hold a version of their own. */
                disk_rig_corrupt(rig, n - 1 - bad, 0, 4096, (uint8_t)(bad + 1));
                unsigned good = n - 1 - bad;
                if (good >= threshold)
                    disk_rig_check_read(rig, 0, 8192);
                else
                    cr_assert_eq(disk_rig_read(rig, 0, 8192), threshold > 1 ? -EIO : 0);
            }
        }
    }
}

Test(disk, R1_the_odd_tail_is_a_sector)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 4096 + 100);
    disk_rig_corrupt(rig, 1, 4096 + 99, 1, 1);
    disk_rig_check_read(rig, 4096, 50);
    json_t *records = disk_rig_records(rig, "divergence", "read");
    cr_assert_eq(json_array_size(records), 1);
    cr_assert_eq(record_int(json_array_get(records, 0), "offset"), 4096);
    cr_assert_eq(record_int(json_array_get(records, 0), "length"), 100);
    json_decref(records);
}

Test(disk, bad_ranges_are_merged_and_cut)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_corrupt(rig, 0, 4096, 4096, 1);
    disk_rig_corrupt(rig, 1, 5120, SECTOR, 2);
    disk_rig_corrupt(rig, 2, 65536, SECTOR, 2);
    cr_assert_eq(disk_rig_read(rig, 0, 128 * KIB), -EIO);
    g_autoptr(GArray) bad = disk_bad_ranges(rig->disk);
    const disk_bad_range expected[] = {
        {4096, 1024, false}, {5120, 512, true}, {5632, 2560, false}, {65536, 512, false}};
    cr_assert_eq(bad->len, G_N_ELEMENTS(expected));
    for (unsigned k = 0; k < bad->len; k++) {
        const disk_bad_range *range = &g_array_index(bad, disk_bad_range, k);
        cr_assert_eq(range->offset, expected[k].offset);
        cr_assert_eq(range->length, expected[k].length);
        cr_assert_eq(range->no_quorum, expected[k].no_quorum);
    }
}

/* ---- Replicas that fail to read ---- */

static void fail_read(disk_rig *rig, unsigned i, uint64_t offset, uint64_t length,
                      int error)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_READ,
                      .offset = offset,
                      .length = length,
                      .error = error});
}

Test(disk, R3_read_errors_at_three_sectors_still_serve)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    for (unsigned i = 0; i < 3; i++)
        fail_read(rig, i, 100 * KIB * (i + 1), SECTOR, EIO);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert_eq(disk_rig_count(rig, "", ""), 3);
    expect_record(rig, "replica-error", "read", 100 * KIB, SECTOR, "|a!5", "served");
    expect_record(rig, "replica-error", "read", 200 * KIB, SECTOR, "|b!5", "served");
    expect_record(rig, "replica-error", "read", 300 * KIB, SECTOR, "|c!5", "served");
    replica_status status;
    disk_replica_status(rig->disk, 1, &status);
    cr_assert_eq(status.read_errors, 1);
    cr_assert_eq(status.state, REPLICA_IN_SYNC); /* a read error takes nobody out */
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
}

Test(disk, R3_failed_replica_does_not_vote_where_it_failed)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 0, 8192, SECTOR, EIO);
    disk_rig_corrupt(rig, 1, 8192, 2 * SECTOR, 3);
    cr_assert_eq(disk_rig_read(rig, 4096, 16 * KIB), -EIO);
    g_autofree char *b = disk_rig_digest(rig, 8192, SECTOR, 3);
    g_autofree char *c = disk_rig_digest(rig, 8192, SECTOR, 0);
    g_autofree char *refused = g_strdup_printf("|a!5,b=%s,c=%s", b, c);
    expect_record(rig, "quorum-failure", "read", 8192, SECTOR, refused, "refused");
    g_autofree char *bad = disk_rig_digest(rig, 8192 + SECTOR, SECTOR, 3);
    g_autofree char *good = disk_rig_digest(rig, 8192 + SECTOR, SECTOR, 0);
    g_autofree char *outvoted = g_strdup_printf("a,c=%s|b=%s", good, bad);
    expect_record(rig, "divergence", "read", 8192 + SECTOR, SECTOR, outvoted, "refused");
}

Test(disk, R3_too_few_replies_return_the_voted_errno)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 0, 0, 0, ENXIO);
    fail_read(rig, 1, 0, 0, ENOMEM);
    fail_read(rig, 2, 0, 0, ENOMEM);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -ENOMEM);
    expect_record(rig, "quorum-failure", "read", 0, 4096, "|a!6,b!12,c!12", "refused");
    fault_clear();
    disk_rig_check_read(rig, 0, 4096);
}

Test(disk, R3_truncated_replica_is_an_error_not_zeroes)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(truncate(rig->paths[1], 512 * KIB + 1000), 0);
    disk_rig_check_read(rig, 0, MIB);
    expect_record(rig, "replica-error", "read", 512 * KIB + SECTOR, 512 * KIB - SECTOR,
                  "|b!5", "served");
    cr_assert_eq(disk_rig_count(rig, "", ""), 1);
    disk_rig_corrupt(rig, 0, 768 * KIB, SECTOR, 1);
    cr_assert_eq(disk_rig_read(rig, 512 * KIB, 512 * KIB), -EIO);
    disk_rig_check_read(rig, 0, 512 * KIB);
}

Test(disk, R3_time_out_is_not_asked_again)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 0, 0, 0, ETIMEDOUT);
    disk_rig_check_read(rig, 0, 256 * KIB);
    cr_assert_eq(fault_hits(), 1);
    expect_record(rig, "replica-error", "read", 0, 256 * KIB, "|a!110", "served");
}

Test(disk, R3_dead_replica_is_asked_a_bounded_number_of_times)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 2 * MIB);
    fail_read(rig, 0, 0, 0, EIO);
    disk_rig_check_read(rig, 1, MIB);
    cr_assert_leq(fault_hits(), 2401);
    expect_record(rig, "replica-error", "read", 0, MIB + SECTOR, "|a!5", "served");
    fault_clear();
    fail_read(rig, 0, 0, 0, EIO);
    disk_rig_check_read(rig, 4096, 4096);
    cr_assert_eq(fault_hits(), 9);
}

/* Two cannot be read; the third agrees with everybody who could. */
Test(disk, R4_who_alone_replies_does_not_differ)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 0, 0, 4096, EIO);
    fail_read(rig, 1, 0, 4096, EIO);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
    expect_divergent(rig, 0, 0, 0);
    cr_assert_eq(disk_rig_count(rig, "quorum-failure", "read"), 1);
}

Test(disk, R4_an_error_that_went_away_is_told)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_add((fault){
        .chain = disk_chain(rig->disk, 2), .kind = FAULT_READ, .error = EIO, .times = 1});
    disk_rig_check_read(rig, 0, 8192);
    expect_record(rig, "replica-error", "read", 0, 8192, "|c!5", "served");
}

Test(disk, decoders_that_differ_are_a_divergence)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail_read(rig, 1, 64 * KIB, 2 * SECTOR, EBADMSG);
    disk_rig_check_read(rig, 0, 128 * KIB);
    expect_record(rig, "divergence", "decode", 64 * KIB, 2 * SECTOR, "|b!74", "served");
    cr_assert_eq(disk_rig_count(rig, "", ""), 1);
    replica_status status;
    disk_replica_status(rig->disk, 1, &status);
    cr_assert_eq(status.divergent_bytes, 2 * SECTOR);
    cr_assert_eq(status.read_errors, 0);
}

Test(disk, no_journal_is_allowed)
{
    disk_options *options = three_files(64 * KIB);
    disk *d = disk_open(options, NULL, NULL);
    cr_assert_not_null(d);
    support_poke(nth(options, 0)->path, 100, "x", 1);
    const void *data;
    cr_assert_eq(disk_read(d, 0, 4096, &data), 0);
    cr_assert_eq(((const char *)data)[100], 0);
    disk_close(d);
    disk_options_free(options);
}
