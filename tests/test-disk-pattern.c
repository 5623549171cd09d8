/*
 * test-disk-pattern.c: read-pattern=rotate and fifo, and blkverify, on a disk of raw files.
 */
#include "quorum/disk-internal.h"
#include "quorum/pattern.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define MIB    (1u << 20)
#define KIB    (1u << 10)
#define SECTOR 512u

static disk_rig *rig_with(disk_pattern pattern, unsigned n, unsigned threshold,
                          uint64_t size)
{
    disk_rig *rig = disk_rig_new(n, threshold, size);
    rig->read_pattern = pattern;
    disk_rig_reopen(rig, threshold);
    return rig;
}

/* How often each replica was asked since count_reads. */
static atomic_uint asked[5];
static void count_a(void)
{
    asked[0]++;
}
static void count_b(void)
{
    asked[1]++;
}
static void count_c(void)
{
    asked[2]++;
}
static void count_d(void)
{
    asked[3]++;
}
static void count_e(void)
{
    asked[4]++;
}

static void count_reads(disk_rig *rig)
{
    static void (*const hooks[])(void) = {count_a, count_b, count_c, count_d, count_e};
    fault_clear();
    for (unsigned i = 0; i < rig->n; i++) {
        asked[i] = 0;
        fault_add((fault){
            .chain = disk_chain(rig->disk, i), .kind = FAULT_READ, .hook = hooks[i]});
    }
}

/* "2,2,2" */
static void expect_asked(disk_rig *rig, const char *wanted)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < rig->n; i++)
        g_string_append_printf(text, "%s%u", i ? "," : "", atomic_load(&asked[i]));
    cr_assert_str_eq(text->str, wanted);
    g_string_free(text, TRUE);
}

static void fail_read(disk_rig *rig, unsigned i, uint64_t offset, uint64_t length,
                      int error, unsigned times)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = FAULT_READ,
                      .offset = offset,
                      .length = length,
                      .error = error,
                      .times = times});
}

static void miss_write(disk_rig *rig, unsigned i, uint64_t offset, size_t length)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, 7, length);
    disk_rig_fail(rig, i, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, offset, length, data), 0);
    memcpy(rig->model + offset, data, length);
}

/* ---- rotate ---- */

Test(disk_pattern, R1_rotate_asks_as_many_as_the_threshold_in_turn)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    count_reads(rig);
    for (unsigned k = 0; k < 16; k++) /* one stripe: the same two */
        disk_rig_check_read(rig, k * 64 * KIB, 64 * KIB);
    expect_asked(rig, "16,16,0");
    disk_rig_check_read(rig, MIB + 5, 100);
    expect_asked(rig, "16,17,1");
    disk_rig_check_read(rig, 2 * MIB, MIB);
    expect_asked(rig, "17,17,2");
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
}

Test(disk_pattern, R1_rotate_spreads_a_busy_stripe_too)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, MIB);
    count_reads(rig);
    for (unsigned k = 0; k < 3 * PATTERN_EPOCH; k++)
        cr_assert_eq(disk_rig_read(rig, 4096, SECTOR), 0);
    expect_asked(rig, "8192,8192,8192");
}

Test(disk_pattern, R1_a_difference_makes_all_vote)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    disk_rig_corrupt(rig, 1, 8 * KIB, SECTOR, 1);
    count_reads(rig);
    disk_rig_check_read(rig, 4 * KIB, 16 * KIB);
    expect_asked(rig, "1,1,1");
    g_autofree char *good = disk_rig_digest(rig, 8 * KIB, SECTOR, 0);
    g_autofree char *bad = disk_rig_digest(rig, 8 * KIB, SECTOR, 1);
    g_autofree char *wanted = g_strdup_printf("a,c=%s|b=%s", good, bad);
    json_t *records = disk_rig_records(rig, "", "");
    cr_assert_eq(json_array_size(records), 1);
    g_autofree char *parties = record_parties(json_array_get(records, 0));
    cr_assert_str_eq(parties, wanted);
    cr_assert_eq(record_int(json_array_get(records, 0), "offset"), 8 * KIB);
    json_decref(records);
}

/* What rotate gives up: rot in a replica is found when it is its turn. */
Test(disk_pattern, R4_a_replica_that_is_not_asked_is_not_seen)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    disk_rig_corrupt(rig, 2, 0, 3 * MIB, 1);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
    disk_rig_check_read(rig, MIB, MIB);
    cr_assert_eq(disk_rig_count(rig, "divergence", "read"), 1);
}

Test(disk_pattern, R3_a_failed_read_makes_all_vote)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    fail_read(rig, 0, 0, SECTOR, EIO, 0);
    disk_rig_check_read(rig, 0, 4096);
    g_autofree char *record = disk_rig_only_record(rig, "replica-error", "read");
    cr_assert_str_eq(record, "0+512 |a!5 errno 5, served");
    fail_read(rig, 1, 0, SECTOR, EIO, 0);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
    disk_rig_check_read(rig, SECTOR, 4096);
    replica_status status;
    disk_replica_status(rig->disk, 0, &status);
    cr_assert_geq(status.read_errors, 2);
}

Test(disk_pattern, R3_too_few_replies_are_the_errno_of_most)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 5, 3, MIB);
    fail_read(rig, 0, 0, SECTOR, ENODEV, 0);
    fail_read(rig, 3, 0, SECTOR, ENXIO, 0);
    fail_read(rig, 4, 0, SECTOR, ENXIO, 0);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -ENXIO);
}

/* With a tie the group of the replica listed first wins, whoever was asked first. */
Test(disk_pattern, R2_rotate_knows_of_ties)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 4, 2, 8 * MIB);
    disk_rig_corrupt(rig, 2, 0, 8 * MIB, 1);
    disk_rig_corrupt(rig, 3, 0, 8 * MIB, 1);
    for (unsigned k = 0; k < 8; k++)
        disk_rig_check_read(rig, k * MIB, 64 * KIB);
}

Test(disk_pattern, W2_a_stale_replica_has_no_turn_where_it_is_stale)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 5, 3, 5 * MIB);
    for (unsigned k = 0; k < 5; k++)
        miss_write(rig, 1, k * MIB + 64 * KIB, 64 * KIB);
    count_reads(rig);
    for (unsigned k = 0; k < 5; k++)
        disk_rig_check_read(rig, k * MIB + 64 * KIB, 64 * KIB);
    cr_assert_eq(asked[1], 0);
    cr_assert_eq(asked[0] + asked[2] + asked[3] + asked[4], 15);
    count_reads(rig);
    for (unsigned k = 0; k < 5; k++)
        disk_rig_check_read(rig, k * MIB, 64 * KIB);
    expect_asked(rig, "3,3,3,3,3");
    for (unsigned k = 0; k < 5; k++) /* runs with different voters in one request */
        disk_rig_check_read(rig, k * MIB + KIB, 256 * KIB + 77);
}

Test(disk_pattern, R5_who_is_slow_is_asked_once_a_second)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    atomic_store(&rig->disk->replicas[0].pace_ns, UINT64_C(1) << 60);
    atomic_store(&rig->disk->probed_us, g_get_monotonic_time() + 60 * G_USEC_PER_SEC);
    count_reads(rig);
    for (unsigned k = 0; k < 3; k++)
        disk_rig_check_read(rig, k * MIB, 4096);
    expect_asked(rig, "0,3,3");
    atomic_store(&rig->disk->probed_us, 0);
    disk_rig_check_read(rig, 0, 4096);
    cr_assert_eq(asked[0], 1);
    cr_assert_eq(asked[1] + asked[2], 7);
    cr_assert_lt(atomic_load(&rig->disk->replicas[0].pace_ns), UINT64_C(1) << 60);
    cr_assert_gt(atomic_load(&rig->disk->probed_us), 0);
}

Test(disk_pattern, R3_who_fails_at_once_does_not_pass_for_fast)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
    fail_read(rig, 1, 0, 3 * MIB, EIO, 0);
    for (unsigned k = 0; k < 3; k++)
        disk_rig_check_read(rig, k * MIB, 4096);
    cr_assert_geq(atomic_load(&rig->disk->replicas[1].pace_ns), 10u * 1000 * 1000);
    cr_assert_lt(atomic_load(&rig->disk->replicas[0].pace_ns),
                 atomic_load(&rig->disk->replicas[1].pace_ns));
}

/* Who does not answer is out before the others are asked, and asked for nothing more. */
static disk *watched;
static bool out_by_then;
static void look_at_a(void)
{
    replica_status status;
    disk_replica_status(watched, 0, &status);
    out_by_then = status.state == REPLICA_HUNG;
}

static void leave_behind(disk_pattern pattern, unsigned next)
{
    g_autoptr(disk_rig) rig = rig_with(pattern, 3, 0, 3 * MIB);
    watched = rig->disk;
    out_by_then = false;
    fault_add((fault){.chain = disk_chain(rig->disk, 0),
                      .kind = FAULT_READ,
                      .error = ETIMEDOUT,
                      .times = 1});
    fault_add((fault){.chain = disk_chain(rig->disk, next),
                      .kind = FAULT_READ,
                      .hook = look_at_a,
                      .times = 1});
    disk_rig_check_read(rig, 0, 4096);
    cr_assert(out_by_then);
    disk_rig_expect_state(rig, 0, REPLICA_HUNG);
    cr_assert_eq(disk_rig_count(rig, "replica-error", "read"), 1);
    count_reads(rig);
    for (unsigned k = 0; k < 3; k++)
        disk_rig_check_read(rig, k * MIB, MIB);
    cr_assert_eq(asked[0], 0);
    cr_assert_eq(asked[1], 3);
}

Test(disk_pattern, R5_rotate_leaves_behind_who_does_not_answer)
{
    leave_behind(DISK_PATTERN_ROTATE, 2);
}

Test(disk_pattern, R5_fifo_leaves_behind_who_does_not_answer)
{
    leave_behind(DISK_PATTERN_FIFO, 1);
}

Test(disk_pattern, R5_too_few_answers_are_EIO)
{
    for (unsigned k = 0; k < 2; k++) {
        g_autoptr(disk_rig) rig =
            rig_with(k ? DISK_PATTERN_FIFO : DISK_PATTERN_ROTATE, 3, 0, 3 * MIB);
        for (unsigned i = 0; i < 3; i++)
            fail_read(rig, i, 0, 4096, ETIMEDOUT, 0);
        cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
        cr_assert_eq(disk_rig_read(rig, MIB, 4096), -EIO); /* nobody is left */
        for (unsigned i = 0; i < 3; i++)
            disk_rig_expect_state(rig, i, REPLICA_HUNG);
    }
}

/* What a disk that always asks everybody says of the same bytes, is said by rotate. */
Test(disk_pattern, R1_rotate_serves_what_a_whole_vote_serves)
{
    enum { READS = 400, SIZE = 4 * MIB };
    uint64_t seed = support_seed();
    for (unsigned n = 2; n <= 5; n++) {
        unsigned threshold = 1 + (unsigned)(support_random(&seed) % n);
        g_autoptr(disk_rig) rig = disk_rig_new(n, threshold, SIZE);
        for (unsigned k = 0; k < 200; k++)
            disk_rig_corrupt(rig, (unsigned)(support_random(&seed) % n),
                             support_random(&seed) % (SIZE - 8 * KIB),
                             1 + (size_t)(support_random(&seed) % (8 * KIB)),
                             1 + (uint8_t)(support_random(&seed) % 2));
        struct {
            uint64_t offset;
            size_t length;
            int result;
            uint8_t digest[JOURNAL_DIGEST_SIZE];
        } *reads = g_malloc0(READS * sizeof *reads);
        for (unsigned pass = 0; pass < 2; pass++) {
            for (unsigned k = 0; k < READS; k++) {
                const void *data = NULL;
                uint8_t digest[JOURNAL_DIGEST_SIZE] = {0};
                if (pass == 0) {
                    reads[k].offset = support_random(&seed) % (SIZE - 64 * KIB);
                    reads[k].length = 1 + (size_t)(support_random(&seed) % (64 * KIB));
                }
                int r = disk_read(rig->disk, reads[k].offset, reads[k].length, &data);
                if (r == 0)
                    journal_digest(data, reads[k].length, digest);
                if (pass == 0) {
                    reads[k].result = r;
                    memcpy(reads[k].digest, digest, sizeof digest);
                }
                cr_assert_eq(r, reads[k].result, "read %u: %d", k, r);
                cr_assert(memcmp(digest, reads[k].digest, sizeof digest) == 0,
                          "%u replicas, threshold %u: read %u differs", n, threshold, k);
            }
            rig->read_pattern = DISK_PATTERN_ROTATE;
            disk_rig_reopen(rig, threshold);
        }
        g_free(reads);
    }
}

/* ---- several threads ---- */

typedef struct worker {
    disk *disk;
    unsigned number;
    bool failed;
} worker;

static void *write_and_read(void *opaque)
{
    worker *w = opaque;
    g_autofree uint8_t *mine = g_malloc(16 * KIB);
    for (unsigned k = 0; k < 300; k++) {
        uint64_t offset = (k % 4) * MIB + w->number * 16 * KIB;
        const void *data;
        support_pattern(mine, 16 * KIB, offset, k);
        w->failed |= disk_write(w->disk, offset, 16 * KIB, mine) != 0;
        w->failed |= disk_read(w->disk, offset, 16 * KIB, &data) != 0 ||
                     memcmp(data, mine, 16 * KIB) != 0;
    }
    return NULL;
}

static void run_threads(disk_rig *rig)
{
    worker workers[4];
    GThread *threads[4];
    for (unsigned i = 0; i < 4; i++) {
        workers[i] = (worker){rig->disk, i, false};
        threads[i] = g_thread_new("guest", write_and_read, &workers[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        g_thread_join(threads[i]);
        cr_assert(!workers[i].failed, "thread %u", i);
    }
}

Test(disk_pattern, R1_threads_that_rotate_see_their_own_writes)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_ROTATE, 3, 0, 4 * MIB);
    disk_rig_corrupt(rig, 0, 2 * MIB, 64 * KIB, 1);
    fail_read(rig, 1, 0, 4 * MIB, EIO, 50);
    run_threads(rig);
}

Test(disk_pattern, R1_threads_see_their_own_writes_first_in_first_out)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, 4 * MIB);
    fail_read(rig, 0, 0, 4 * MIB, EIO, 50);
    run_threads(rig);
}

/* ---- fifo ---- */

Test(disk_pattern, fifo_asks_the_first_alone_and_believes_it)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, 2 * MIB);
    disk_rig_corrupt(rig, 0, MIB, SECTOR, 1);
    rig->model[MIB] ^= 1;
    count_reads(rig);
    disk_rig_check_read(rig, MIB, 1);
    disk_rig_check_read(rig, 0, MIB);
    disk_rig_check_read(rig, 77, 1000);
    expect_asked(rig, "3,0,0");
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
}

Test(disk_pattern, R4_fifo_goes_to_the_next_on_an_error_and_tells)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, MIB);
    count_reads(rig);
    fail_read(rig, 0, 8 * KIB, SECTOR, EIO, 0);
    disk_rig_check_read(rig, 0, 64 * KIB);
    cr_assert_eq(asked[1], 1);
    cr_assert_eq(asked[2], 0);
    g_autofree char *record = disk_rig_only_record(rig, "replica-error", "read");
    cr_assert_str_eq(record, "8192+512 |a!5 errno 5, served");
    replica_status status;
    disk_replica_status(rig->disk, 0, &status);
    cr_assert_eq(status.read_errors, 1);
}

/* An error that goes away when it is looked at is an error (R4). */
Test(disk_pattern, R4_fifo_tells_of_errors_that_went_away)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 2, 0, MIB);
    fail_read(rig, 0, 0, SECTOR, EIO, 1);
    disk_rig_check_read(rig, 0, 4096);
    g_autofree char *record = disk_rig_only_record(rig, "replica-error", "read");
    cr_assert_str_eq(record, "0+4096 |a!5 errno 5, served");
}

Test(disk_pattern, R2_fifo_serves_what_no_replica_has_whole)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, MIB + 100);
    fail_read(rig, 0, 0, SECTOR, EIO, 0);
    fail_read(rig, 1, 8 * SECTOR, SECTOR, EIO, 0);
    fail_read(rig, 2, MIB, SECTOR, EIO, 0);
    disk_rig_check_read(rig, 0, MIB);
    disk_rig_check_read(rig, MIB - 4096, 4196);
    disk_rig_check_read(rig, 100, MIB - 100);
    cr_assert_geq(disk_rig_count(rig, "replica-error", "read"), 2);
    cr_assert_eq(disk_rig_count(rig, "quorum-failure", "read"), 0);
}

Test(disk_pattern, R3_fifo_fails_where_nobody_can_be_read)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, MIB);
    fail_read(rig, 0, 0, SECTOR, ENXIO, 0);
    fail_read(rig, 1, 0, SECTOR, ENODEV, 0);
    fail_read(rig, 2, 0, SECTOR, ENXIO, 0);
    cr_assert_eq(disk_rig_read(rig, 0, SECTOR), -ENXIO);
    cr_assert_eq(disk_rig_count(rig, "quorum-failure", "read"), 1);
    cr_assert_eq(disk_rig_count(rig, "replica-error", "read"), 3);
    disk_rig_check_read(rig, SECTOR, 4096);
}

Test(disk_pattern, W2_fifo_passes_over_who_is_stale_there)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, MIB);
    miss_write(rig, 0, 64 * KIB, 4096);
    count_reads(rig);
    disk_rig_check_read(rig, 64 * KIB, 4096);
    expect_asked(rig, "0,1,0");
    disk_rig_check_read(rig, 0, 4096);
    expect_asked(rig, "1,1,0");
    disk_rig_check_read(rig, 60 * KIB, 12 * KIB);
    expect_asked(rig, "3,2,0");
}

/* What one replica alone holds may yet be decided otherwise. */
Test(disk_pattern, R5_fifo_needs_as_many_voters_as_ever)
{
    g_autoptr(disk_rig) rig = rig_with(DISK_PATTERN_FIFO, 3, 0, MIB);
    miss_write(rig, 1, 0, 4096);
    disk_rig_check_read(rig, 0, 4096);
    disk_rig_fail(rig, 2, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), -EIO);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
    disk_rig_check_read(rig, 4096, 4096);
}

/* ---- Copies always vote ---- */

static void open_with_state(disk_rig *rig)
{
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->read_pattern = rig->read_pattern;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    disk_close(g_steal_pointer(&rig->disk));
    rig->disk = disk_open(options, rig->journal, &error);
    cr_assert_not_null(rig->disk, "%s", error ? error->message : "no error");
    disk_options_free(options);
}

Test(disk_pattern, W7_a_resync_of_a_fifo_disk_votes)
{
    g_autoptr(disk_rig) rig = disk_rig_new(5, 0, 4 * MIB);
    rig->read_pattern = DISK_PATTERN_FIFO;
    open_with_state(rig);
    miss_write(rig, 4, MIB, MIB);
    disk_rig_corrupt(rig, 0, MIB + 64 * KIB, 4096, 1);
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    while (strcmp(disk_state_name(rig->disk), "healthy") != 0) {
        cr_assert_lt(g_get_monotonic_time(), deadline);
        g_usleep(1000);
    }
    disk_close(g_steal_pointer(&rig->disk));
    disk_rig_check_replicas(rig, 0x1e);
}

/* ---- blkverify ---- */

static void expect_refused(disk_rig *rig, unsigned threshold, disk_pattern pattern,
                           const char *part)
{
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->threshold = threshold;
    options->read_pattern = pattern;
    options->blkverify = true;
    options->on_divergence_repair = pattern == DISK_PATTERN_QUORUM && rig->n == 2;
    cr_assert_null(disk_open(options, NULL, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS));
    cr_assert_not_null(strstr(error->message, part), "%s", error->message);
    disk_options_free(options);
}

Test(disk_pattern, blkverify_is_for_two_replicas_that_are_always_compared)
{
    g_autoptr(disk_rig) three = disk_rig_new(3, 0, MIB), two = disk_rig_new(2, 0, MIB);
    disk_close(g_steal_pointer(&three->disk));
    disk_close(g_steal_pointer(&two->disk));
    expect_refused(three, 0, DISK_PATTERN_QUORUM, "exactly two replicas");
    expect_refused(three, 2, DISK_PATTERN_QUORUM, "exactly two replicas");
    expect_refused(two, 1, DISK_PATTERN_FIFO, "a threshold of 2");
    expect_refused(two, 2, DISK_PATTERN_ROTATE, "read-pattern=quorum");
    expect_refused(two, 0, DISK_PATTERN_FIFO, "read-pattern=quorum");
    expect_refused(two, 0, DISK_PATTERN_QUORUM, "on-divergence=repair");
}

Test(disk_pattern, blkverify_tells_the_first_byte_that_differs)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 2, MIB);
    rig->blkverify = true;
    disk_rig_reopen(rig, 0);
    disk_rig_check_read(rig, 0, MIB);
    disk_rig_corrupt(rig, 1, 5000, 9, 0x81);
    disk_rig_corrupt(rig, 0, 70000, 1, 0x10);
    for (unsigned k = 0; k < 2; k++)
        cr_assert_eq(disk_rig_read(rig, 1, 100000), -EIO);
    disk_rig_check_read(rig, 0, 4608);

    json_t *records = disk_rig_records(rig, "quorum-failure", "read");
    cr_assert_eq(json_array_size(records), 2);
    const json_t *first = json_array_get(records, 0), *other = json_array_get(records, 1);
    g_autofree char *wanted =
        g_strdup_printf("refused: byte 5000 is 0x%02x in 'a' and 0x%02x in 'b'",
                        rig->model[5000], rig->model[5000] ^ 0x81);
    cr_assert_str_eq(record_str(first, "action"), wanted);
    cr_assert_eq(record_int(first, "count"), 2);
    g_autofree char *also =
        g_strdup_printf("refused: byte 70000 is 0x%02x in 'a' and 0x%02x in 'b'",
                        rig->model[70000] ^ 0x10, rig->model[70000]);
    cr_assert_str_eq(record_str(other, "action"), also);
    json_decref(records);
}

/* Not two versions but one: that is no difference. */
Test(disk_pattern, blkverify_does_not_compare_what_cannot_be_read)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 2, MIB);
    rig->blkverify = true;
    disk_rig_reopen(rig, 0);
    fail_read(rig, 1, 0, SECTOR, EIO, 0);
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
    g_autofree char *record = disk_rig_only_record(rig, "quorum-failure", "read");
    cr_assert_not_null(strstr(record, ", refused"), "%s", record);
    cr_assert_null(strstr(record, "byte"));
}
