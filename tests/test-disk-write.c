/*
 * test-disk-write.c: what changes a disk, and replicas that do not take the change.
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

/* ---- Against a model ---- */

static void model_resize(disk_rig *rig, uint64_t size)
{
    rig->model = g_realloc(rig->model, size);
    if (size > rig->size)
        memset(rig->model + rig->size, 0, size - rig->size);
    rig->size = size;
}

/* A range of any alignment; half of them aligned to sectors. */
static size_t random_range(disk_rig *rig, uint64_t *state, uint64_t *ret_offset)
{
    uint64_t length =
        1 + support_random(state) % (support_random(state) % 4 ? 9000 : MIB);
    uint64_t offset = support_random(state) % rig->size;
    length = MIN(length, rig->size - offset);
    if (support_random(state) % 2 && length >= SECTOR) {
        offset -= offset % SECTOR;
        length -= length % SECTOR;
    }
    *ret_offset = offset;
    return length;
}

static void random_step(disk_rig *rig, uint64_t *state, unsigned step)
{
    static uint8_t data[MIB];
    uint64_t offset;
    size_t length = random_range(rig, state, &offset);
    switch (support_random(state) % 20) {
    case 0 ... 7:
        disk_rig_check_read(rig, offset, length);
        break;
    case 8 ... 14:
        support_pattern(data, length, offset, step + 1000);
        cr_assert_eq(disk_write(rig->disk, offset, length, data), 0);
        memcpy(rig->model + offset, data, length);
        break;
    case 15 ... 16:
        cr_assert_eq(disk_write_zeroes(rig->disk, offset, length), 0);
        memset(rig->model + offset, 0, length);
        break;
    case 17:
        cr_assert_eq(disk_discard(rig->disk, offset, length), 0);
        memset(rig->model + offset, 0, length);
        break;
    case 18:
        cr_assert_eq(disk_flush(rig->disk), 0);
        break;
    case 19:
        length = 1 + support_random(state) % (3 * MIB);
        cr_assert_eq(disk_resize(rig->disk, length), 0);
        model_resize(rig, length);
        cr_assert_eq(disk_size(rig->disk), length);
        break;
    }
}

Test(disk_write, W1_random_requests_against_a_model)
{
    uint64_t state = support_seed();
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 2 * MIB + 333);
    for (unsigned step = 0; step < 1500; step++)
        random_step(rig, &state, step);
    disk_rig_check_replicas(rig, 7);
    disk_rig_reopen(rig, 0);
    for (uint64_t at = 0; at < rig->size; at += MIB)
        disk_rig_check_read(rig, at, MIN(MIB, rig->size - at));
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
}

/* A replica drops out on the way; the disk goes on as if nothing had happened. */
Test(disk_write, W2_random_requests_with_a_replica_lost)
{
    uint64_t state = support_seed();
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 2 * MIB);
    for (unsigned step = 0; step < 600; step++) {
        if (step == 200)
            fault_add((fault){.chain = disk_chain(rig->disk, 0),
                              .kind = FAULT_WRITE,
                              .error = EIO,
                              .torn = 700,
                              .times = 1});
        random_step(rig, &state, step);
    }
    disk_rig_check_replicas(rig, 6);
    cr_assert_str_eq(disk_state_name(rig->disk), "degraded");
    cr_assert_eq(disk_rig_count(rig, "divergence", ""), 0);
    cr_assert_eq(disk_rig_count(rig, "replica-state", ""), 1);
}

Test(disk_write, requests_keep_to_the_disk)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 8000);
    static uint8_t data[DISK_REQUEST_MAX + 1];
    cr_assert_eq(disk_write(rig->disk, 7999, 2, data), -EINVAL);
    cr_assert_eq(disk_write(rig->disk, 8000, 0, data), 0);
    cr_assert_eq(disk_write(rig->disk, 8001, 0, data), -EINVAL);
    cr_assert_eq(disk_write(rig->disk, 0, DISK_REQUEST_MAX + 1, data), -EINVAL);
    cr_assert_eq(disk_write(rig->disk, UINT64_MAX - 511, 1024, data), -EINVAL);
    cr_assert_eq(disk_write_zeroes(rig->disk, 1, 8000), -EINVAL);
    cr_assert_eq(disk_discard(rig->disk, UINT64_MAX, UINT64_MAX), -EINVAL);
    cr_assert_eq(disk_resize(rig->disk, UINT64_MAX), -EFBIG);
    disk_rig_check_replicas(rig, 7);
}

/* ---- W2: some did not take it ---- */

static void fail(disk_rig *rig, unsigned i, fault_kind kind, int error, uint64_t torn)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = kind,
                      .error = error,
                      .torn = torn,
                      .times = 1});
}

static void expect_state(disk_rig *rig, unsigned i, replica_state state)
{
    replica_status status;
    disk_replica_status(rig->disk, i, &status);
    cr_assert_eq(status.state, state, "replica %u is %s", i,
                 replica_state_name(status.state));
}

/* The one record with this event and operation, as text. */
static char *only_record(disk_rig *rig, const char *event, const char *op)
{
    json_t *records = disk_rig_records(rig, event, op);
    cr_assert_eq(json_array_size(records), 1, "%zu records of %s %s",
                 json_array_size(records), event, op);
    const json_t *record = json_array_get(records, 0);
    g_autofree char *parties = record_parties(record);
    char *text = g_strdup_printf(
        "%lld+%lld %s errno %lld, %s", (long long)record_int(record, "offset"),
        (long long)record_int(record, "length"), parties,
        (long long)record_int(record, "errno"), record_str(record, "action"));
    json_decref(records);
    return text;
}

Test(disk_write, W2_replica_that_missed_a_write_is_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[4096];
    support_pattern(data, sizeof(data), 8192, 77);
    fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 8192, sizeof(data), data), 0);
    cr_assert_eq(fault_unsynced_records(), 0); /* durable before it is acknowledged */
    expect_state(rig, 1, REPLICA_FAILED);
    cr_assert_str_eq(disk_state_name(rig->disk), "degraded");

    memcpy(rig->model + 8192, data, sizeof(data));
    g_autofree char *digest = disk_rig_digest(rig, 8192, sizeof(data), 0);
    g_autofree char *wanted =
        g_strdup_printf("8192+4096 a,c=%s|b!28 errno 28, served", digest);
    g_autofree char *error = only_record(rig, "replica-error", "write");
    g_autofree char *state = only_record(rig, "replica-state", "write");
    cr_assert_str_eq(error, wanted);
    cr_assert_str_eq(state, "8192+4096 |b!28 errno 28, in-sync -> failed");

    disk_rig_check_read(rig, 0, MIB); /* the stale replica has no vote */
    cr_assert_eq(disk_rig_count(rig, "divergence", ""), 0);
    cr_assert_eq(disk_write(rig->disk, 100, 3, "xyz"), 0); /* and gets nothing more */
    memcpy(rig->model + 100, "xyz", 3);
    disk_rig_check_replicas(rig, 5);
    replica_status status;
    disk_replica_status(rig->disk, 1, &status);
    cr_assert_eq(status.write_errors, 1);
    cr_assert_eq(status.stale_bytes, 4096 + SECTOR);
    g_autoptr(GArray) bad = disk_bad_ranges(rig->disk);
    cr_assert_eq(bad->len, 1);
    cr_assert_eq(g_array_index(bad, disk_bad_range, 0).offset, 8192);
    cr_assert(!g_array_index(bad, disk_bad_range, 0).no_quorum);
}

/* The copy that missed the write and another that is damaged must not win together. */
Test(disk_write, W2_stale_replica_cannot_win)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    g_autofree uint8_t *old = g_memdup2(rig->model, 4096);
    uint8_t data[4096];
    memset(data, 0x11, sizeof(data));
    fail(rig, 0, FAULT_WRITE, EIO, 0);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), 0);
    support_poke(rig->paths[1], 0, old, 4096); /* b falls back to the old bytes */
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
}

Test(disk_write, W2_write_zeroes_discard_and_unaligned_ranges)
{
    g_autoptr(disk_rig) rig = disk_rig_new(5, 3, MIB);
    fail(rig, 0, FAULT_CLEAR, EIO, 0);
    cr_assert_eq(disk_write_zeroes(rig->disk, 4096, 4096), 0);
    memset(rig->model + 4096, 0, 4096);
    g_autofree char *zeroes = only_record(rig, "replica-error", "write-zeroes");
    cr_assert_str_eq(zeroes, "4096+4096 b,c,d,e|a!5 errno 5, served");
    fail(rig, 1, FAULT_CLEAR, EPERM, 0);
    cr_assert_eq(disk_discard(rig->disk, 700, 100), 0);
    memset(rig->model + 700, 0, 100);
    g_autofree char *discard = only_record(rig, "replica-error", "discard");
    cr_assert_str_eq(discard, "512+512 c,d,e|b!1 errno 1, served");
    disk_rig_check_replicas(rig, 0x1c);
    disk_rig_check_read(rig, 0, MIB);
}

Test(disk_write, W2_every_threshold)
{
    for (unsigned n = 1; n <= 4; n++) {
        for (unsigned threshold = 1; threshold <= n; threshold++) {
            for (unsigned failing = 0; failing <= n; failing++) {
                g_autoptr(disk_rig) rig = disk_rig_new(n, threshold, 64 * KIB);
                for (unsigned i = 0; i < failing; i++)
                    fail(rig, i, FAULT_WRITE, EIO, 0);
                int r = disk_write(rig->disk, 1000, 3, "abc");
                cr_assert_eq(r, n - failing >= threshold ? 0 : -EIO);
                fault_clear();
                if (r == 0)
                    memcpy(rig->model + 1000, "abc", 3);
                if (r == 0 || failing >= threshold)
                    disk_rig_check_read(rig, 0, 4096);
            }
        }
    }
}

/* ---- W3: too few took it ---- */

Test(disk_write, W3_failed_write_takes_nobody_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[4096];
    memset(data, 0x22, sizeof(data));
    fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    fail(rig, 2, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    g_autofree char *refused = only_record(rig, "quorum-failure", "write");
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    journal_digest(data, sizeof(data), digest);
    g_autofree char *wanted =
        g_strdup_printf("0+4096 |a=%02x%02x%02x%02x,b!28,c!28 errno 28, refused",
                        digest[0], digest[1], digest[2], digest[3]);
    cr_assert_str_eq(refused, wanted);
    cr_assert_eq(disk_rig_count(rig, "replica-error", "write"), 2);
    disk_rig_check_read(rig, 0, MIB); /* the old bytes have the majority */

    /* Space was made, the guest repeats it: all replicas are equal again. */
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), 0);
    memcpy(rig->model, data, sizeof(data));
    disk_rig_check_replicas(rig, 7);
}

/* Each replica tears at another place: every sector reads as old or new, and whatever
 * drops out later, never as the other one. */
Test(disk_write, W3_torn_sectors_never_change_their_mind)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[8 * SECTOR];
    memset(data, 0x33, sizeof(data));
    for (unsigned i = 0; i < 3; i++)
        fail(rig, i, FAULT_WRITE, ENOSPC, (i + 1) * 2 * SECTOR);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    memcpy(rig->model, data, 4 * SECTOR); /* b and c took so much */
    disk_rig_check_read(rig, 0, 16 * SECTOR);

    fail(rig, 2, FAULT_WRITE, EIO, 0);
    cr_assert_eq(disk_write(rig->disk, 512 * KIB, 1, "x"), 0); /* c drops out */
    disk_rig_check_read(rig, 0, 2 * SECTOR);
    cr_assert_eq(disk_rig_read(rig, 2 * SECTOR, 2 * SECTOR),
                 -EIO); /* not the old bytes */
    disk_rig_check_read(rig, 4 * SECTOR, 12 * SECTOR);
}

/* With a threshold of half, old and new could both win: one side is out. */
Test(disk_write, W3_two_versions_that_could_win_are_settled)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    uint8_t data[4 * SECTOR];
    memset(data, 0x44, sizeof(data));
    for (unsigned i = 0; i < 4; i++)
        fail(rig, i, FAULT_WRITE, ENOSPC, i < 2 ? 0 : 2 * SECTOR);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    expect_state(rig, 0, REPLICA_IN_SYNC);
    expect_state(rig, 1, REPLICA_IN_SYNC);
    expect_state(rig, 2, REPLICA_FAILED);
    expect_state(rig, 3, REPLICA_FAILED);
    cr_assert_eq(disk_rig_count(rig, "replica-state", "write"), 2);
    disk_rig_check_read(rig, 0, 8 * SECTOR); /* the tie went to the first */

    fail(rig, 0, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), -EIO); /* a is out: EIO, but never other bytes */
    cr_assert_eq(disk_rig_read(rig, 0, SECTOR), -EIO);
}

Test(disk_write, W3_half_that_did_not_tear_stays_whole)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    for (unsigned i = 0; i < 4; i++)
        fail(rig, i, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 0, 2, "no"), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_read(rig, 0, SECTOR);
}

/* Real file systems that are full: a lazily unmounted tmpfs. */
static bool make_small_disk(disk_rig *rig, unsigned first)
{
    if (support_try("mkdir -p small && mount -t tmpfs -o size=1M none small 2>/dev/null"))
        return false;
    for (unsigned i = first; i < rig->n; i++) {
        g_free(rig->paths[i]);
        rig->paths[i] = support_path("small/%u.raw", i);
    }
    for (unsigned i = 0; i < rig->n; i++)
        support_run("rm -f %s; truncate -s 4M %s", rig->paths[i], rig->paths[i]);
    model_resize(rig, 4 * MIB);
    memset(rig->model, 0, 4 * MIB);
    disk_rig_reopen(rig, 0);
    support_run("umount -l small");
    return true;
}

Test(disk_write, W2_one_file_system_is_full)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 4096);
    if (!make_small_disk(rig, 2))
        cr_skip_test("no tmpfs may be mounted here");
    g_autofree uint8_t *data = g_malloc(MIB);
    for (unsigned k = 0; k < 3; k++) {
        support_pattern(data, MIB, k * MIB, 3);
        cr_assert_eq(disk_write(rig->disk, k * MIB, MIB, data), 0);
        memcpy(rig->model + k * MIB, data, MIB);
    }
    cr_assert_str_eq(disk_state_name(rig->disk), "degraded");
    g_autofree char *state = only_record(rig, "replica-state", "write");
    cr_assert(strstr(state, "|c!28 errno 28, in-sync -> failed"), "%s", state);
    for (unsigned k = 0; k < 4; k++)
        disk_rig_check_read(rig, k * MIB, MIB);
}

Test(disk_write, W3_all_file_systems_are_full)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 4096);
    if (!make_small_disk(rig, 0))
        cr_skip_test("no tmpfs may be mounted here");
    g_autofree uint8_t *data = g_malloc(MIB), *first = g_malloc(MIB);
    memset(data, 0x77, MIB);
    cr_assert_eq(disk_write(rig->disk, 0, MIB, data), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    for (unsigned k = 0; k < MIB; k += 4096) { /* old, new or EIO, always the same */
        const void *bytes;
        int r = disk_read(rig->disk, k, 4096, &bytes);
        if (r == 0)
            memcpy(first, bytes, 4096);
        cr_assert(r == -EIO || (r == 0 && (first[0] == 0 || first[0] == 0x77)));
        cr_assert_eq(disk_read(rig->disk, k, 4096, &bytes), r);
        cr_assert(r != 0 || memcmp(first, bytes, 4096) == 0);
    }
    cr_assert_eq(disk_discard(rig->disk, 0, MIB), 0); /* space is made: it goes on */
    cr_assert_eq(disk_write(rig->disk, 0, 4096, data), 0);
    memset(rig->model, 0x77, 4096);
    disk_rig_check_read(rig, 0, MIB);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
}

/* ---- W4: flush ---- */

Test(disk_write, W4_failed_flush_takes_the_replica_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail(rig, 2, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_eq(fault_unsynced_records(), 0);
    expect_state(rig, 2, REPLICA_FAILED);
    g_autofree char *error = only_record(rig, "replica-error", "flush");
    g_autofree char *state = only_record(rig, "replica-state", "flush");
    cr_assert_str_eq(error, "0+0 a,b|c!5 errno 5, served");
    cr_assert_str_eq(state, "0+0 |c!5 errno 5, in-sync -> failed");
    cr_assert_eq(disk_flush(rig->disk), 0);
    fail(rig, 2, FAULT_FLUSH, EIO, 0); /* not asked any more, its fsync is not retried */
    fail(rig, 2, FAULT_READ, EIO, 0);
    fail(rig, 2, FAULT_WRITE, EIO, 0);
    unsigned before = fault_hits();
    cr_assert_eq(disk_flush(rig->disk), 0);
    disk_rig_check_read(rig, 0, 4096);
    cr_assert_eq(disk_write(rig->disk, 0, 1, rig->model), 0);
    cr_assert_eq(fault_hits(), before);
}

Test(disk_write, W4_too_few_replicas_left_fail_at_once)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    bool zero;
    uint64_t length;
    for (unsigned i = 0; i < 2; i++)
        fail(rig, i, FAULT_FLUSH, i ? EIO : ENOSPC, 0);
    cr_assert_eq(disk_flush(rig->disk), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "failed");
    cr_assert_eq(disk_rig_count(rig, "quorum-failure", "flush"), 1);
    cr_assert_eq(disk_rig_read(rig, 0, 512), -EIO);
    cr_assert_eq(disk_write(rig->disk, 0, 1, "x"), -EIO);
    cr_assert_eq(disk_write_zeroes(rig->disk, 0, 512), -EIO);
    cr_assert_eq(disk_discard(rig->disk, 0, 512), -EIO);
    cr_assert_eq(disk_resize(rig->disk, 512), -EIO);
    cr_assert_eq(disk_flush(rig->disk), -EIO);
    cr_assert_eq(disk_map(rig->disk, 0, 512, &zero, &length), -EIO);
    disk_rig_check_replicas(rig, 7);
    disk_rig_reopen(rig, 0); /* until the disk is opened again */
    disk_rig_check_read(rig, 0, MIB);
}

/* ---- Resize ---- */

Test(disk_write, W2_resize_grows_with_zeroes_and_shrinks)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(disk_resize(rig->disk, 3 * MIB + 1), 0);
    model_resize(rig, 3 * MIB + 1);
    disk_rig_check_read(rig, 2 * MIB + 1, MIB);
    cr_assert_eq(disk_resize(rig->disk, 1000), 0);
    model_resize(rig, 1000);
    cr_assert_eq(disk_rig_read(rig, 999, 2), -EINVAL);
    disk_rig_check_read(rig, 0, 1000);
    cr_assert_eq(disk_resize(rig->disk, 2000), 0);
    model_resize(rig, 2000);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_write, W2_replica_that_cannot_resize_is_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail(rig, 1, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(rig->disk, 2 * MIB), 0);
    model_resize(rig, 2 * MIB);
    expect_state(rig, 1, REPLICA_FAILED);
    disk_rig_check_replicas(rig, 5);
    disk_rig_check_read(rig, MIB, MIB);
    g_autofree char *error = only_record(rig, "replica-error", "resize");
    cr_assert_str_eq(error, "1048576+1048576 a,c|b!28 errno 28, served");
}

Test(disk_write, W3_resize_by_too_few_is_put_back)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fail(rig, 1, FAULT_RESIZE, ENOSPC, 0);
    fail(rig, 2, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(rig->disk, 2 * MIB), -ENOSPC);
    cr_assert_eq(disk_size(rig->disk), MIB);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_replicas(rig, 7);
    fault_clear();
    fail(rig, 0, FAULT_RESIZE, EIO, 0);
    fail(rig, 1, FAULT_RESIZE, EIO, 0);
    cr_assert_eq(disk_resize(rig->disk, 4096), -EIO);
    cr_assert_eq(disk_size(rig->disk), MIB);
    disk_rig_check_read(rig, 0, MIB); /* c lost its tail, the others hold it */
    disk_rig_check_replicas(rig, 3);
}

/* ---- Read-only ---- */

static disk *open_mixed(const char *second, bool read_only)
{
    support_run("qemu-img create -q -f raw a.img 1M && "
                "qemu-img create -q -f %s b.img 1M",
                second);
    char *paths[] = {support_path("a.img"), support_path("b.img")};
    disk_options *options = disk_rig_options(paths, 2, NULL);
    g_autoptr(GError) error = NULL;
    for (unsigned i = 0; i < 2; i++) {
        replica_options *replica = g_ptr_array_index(options->replicas, i);
        replica->format = g_strdup(i ? second : "raw");
        g_free(paths[i]);
    }
    options->read_only = read_only;
    disk *d = disk_open(options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "no error");
    disk_options_free(options);
    return d;
}

static void expect_read_only(disk *d)
{
    cr_assert(!disk_writable(d));
    cr_assert_eq(disk_write(d, 0, 1, "x"), -EROFS);
    cr_assert_eq(disk_write_zeroes(d, 0, 512), -EROFS);
    cr_assert_eq(disk_discard(d, 0, 512), -EROFS);
    cr_assert_eq(disk_resize(d, 512), -EROFS);
    cr_assert_eq(disk_flush(d), 0);
    cr_assert_eq(disk_close(d), 0);
}

Test(disk_write, read_only_was_asked_for)
{
    disk *d = open_mixed("raw", true);
    cr_assert_null(disk_read_only_reason(d));
    expect_read_only(d);
}

Test(disk_write, read_only_because_of_one_replica)
{
    disk *d = open_mixed("qcow2", false);
    const char *reason = disk_read_only_reason(d);
    cr_assert(reason && g_str_has_prefix(reason, "replica 'b': "), "%s", reason);
    cr_assert(!chain_writable(disk_chain(d, 0))); /* nor a writer's lock on the other */
    expect_read_only(d);
}
