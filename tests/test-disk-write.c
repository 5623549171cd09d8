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
        disk_rig_model_resize(rig, length);
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

Test(disk_write, W2_replica_that_missed_a_write_is_stale_there)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[4096];
    support_pattern(data, sizeof(data), 8192, 77);
    disk_rig_fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 8192, sizeof(data), data), 0);
    cr_assert_eq(fault_unsynced_records(), 0); /* durable before it is acknowledged */
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    cr_assert_str_eq(disk_state_name(rig->disk), "degraded");

    memcpy(rig->model + 8192, data, sizeof(data));
    g_autofree char *digest = disk_rig_digest(rig, 8192, sizeof(data), 0);
    g_autofree char *wanted =
        g_strdup_printf("8192+4096 a,c=%s|b!28 errno 28, served", digest);
    g_autofree char *error = disk_rig_only_record(rig, "replica-error", "write");
    g_autofree char *state = disk_rig_only_record(rig, "replica-state", "write");
    cr_assert_str_eq(error, wanted);
    cr_assert_str_eq(state, "8192+4096 |b!28 errno 28, in-sync -> stale");

    disk_rig_check_read(rig, 0, MIB); /* the stale replica has no vote */
    cr_assert_eq(disk_rig_count(rig, "divergence", ""), 0);
    cr_assert_eq(disk_write(rig->disk, 100, 3, "xyz"), 0); /* but takes what follows */
    memcpy(rig->model + 100, "xyz", 3);
    disk_rig_check_replicas(rig, 5);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 1); /* and votes elsewhere */
    disk_rig_check_read(rig, 0, SECTOR);
    disk_rig_corrupt(rig, 0, 0, SECTOR, 1);
    disk_rig_corrupt(rig, 0, 8192, SECTOR, 1);
    cr_assert_eq(disk_rig_read(rig, 8192, SECTOR), -EIO);
    disk_rig_corrupt(rig, 0, 8192, SECTOR, 1);
    replica_status status;
    disk_replica_status(rig->disk, 1, &status);
    cr_assert_eq(status.write_errors, 1);
    cr_assert_eq(status.stale_bytes, 4096);
}

Test(disk_write, W2_missed_range_is_a_bad_range)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[4096] = {1};
    disk_rig_fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 8192, sizeof(data), data), 0);
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
    disk_rig_fail(rig, 0, FAULT_WRITE, EIO, 0);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), 0);
    support_poke(rig->paths[1], 0, old, 4096); /* b falls back to the old bytes */
    cr_assert_eq(disk_rig_read(rig, 0, 4096), -EIO);
}

Test(disk_write, W2_write_zeroes_discard_and_unaligned_ranges)
{
    g_autoptr(disk_rig) rig = disk_rig_new(5, 3, MIB);
    disk_rig_fail(rig, 0, FAULT_CLEAR, EIO, 0);
    cr_assert_eq(disk_write_zeroes(rig->disk, 4096, 4096), 0);
    memset(rig->model + 4096, 0, 4096);
    g_autofree char *zeroes = disk_rig_only_record(rig, "replica-error", "write-zeroes");
    cr_assert_str_eq(zeroes, "4096+4096 b,c,d,e|a!5 errno 5, served");
    disk_rig_fail(rig, 1, FAULT_CLEAR, EPERM, 0);
    cr_assert_eq(disk_discard(rig->disk, 700, 100), 0);
    memset(rig->model + 700, 0, 100);
    g_autofree char *discard = disk_rig_only_record(rig, "replica-error", "discard");
    cr_assert_str_eq(discard, "512+512 a,c,d,e|b!1 errno 1, served");
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
                    disk_rig_fail(rig, i, FAULT_WRITE, EIO, 0);
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

static disk_rig *other_rig;

static void *write_elsewhere(void *opaque)
{
    cr_assert_eq(disk_write(other_rig->disk, 512 * KIB, 3, "abc"), 0);
    return opaque;
}

static void other_write(void)
{
    g_thread_join(g_thread_new("other", write_elsewhere, NULL));
}

/* While one write loses b, another loses c elsewhere: each range has two that are current,
 * and nobody votes where he is not. */
Test(disk_write, W2_two_writes_that_lose_different_replicas)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    other_rig = rig;
    fault_add((fault){.chain = disk_chain(rig->disk, 0),
                      .kind = FAULT_WRITE,
                      .length = 4096,
                      .times = 1,
                      .hook = other_write});
    fault_add((fault){.chain = disk_chain(rig->disk, 1),
                      .kind = FAULT_WRITE,
                      .offset = 512 * KIB,
                      .length = 4096,
                      .error = EIO});
    fault_add((fault){.chain = disk_chain(rig->disk, 2),
                      .kind = FAULT_WRITE,
                      .length = 4096,
                      .error = EIO});
    cr_assert_eq(disk_write(rig->disk, 0, 3, "xyz"), 0);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
    disk_rig_expect_state(rig, 2, REPLICA_STALE);
    memcpy(rig->model + 512 * KIB, "abc", 3);
    memcpy(rig->model, "xyz", 3);
    disk_rig_check_read(rig, 0, MIB);
}

/* ---- W3: too few took it ---- */

Test(disk_write, W3_failed_write_takes_nobody_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[4096];
    memset(data, 0x22, sizeof(data));
    disk_rig_fail(rig, 1, FAULT_WRITE, ENOSPC, 0);
    disk_rig_fail(rig, 2, FAULT_WRITE, ENOSPC, 0);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    g_autofree char *refused = disk_rig_only_record(rig, "quorum-failure", "write");
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
        disk_rig_fail(rig, i, FAULT_WRITE, ENOSPC, (i + 1) * 2 * SECTOR);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    memcpy(rig->model, data, 4 * SECTOR); /* b and c took so much */
    disk_rig_check_read(rig, 0, 16 * SECTOR);

    disk_rig_fail(rig, 2, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), 0); /* c drops out */
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
        disk_rig_fail(rig, i, FAULT_WRITE, ENOSPC, i < 2 ? 0 : 2 * SECTOR);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -ENOSPC);
    disk_rig_expect_state(rig, 0, REPLICA_IN_SYNC);
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    disk_rig_expect_state(rig, 2, REPLICA_STALE);
    disk_rig_expect_state(rig, 3, REPLICA_STALE);
    cr_assert_eq(disk_rig_count(rig, "replica-state", "write"), 2);
    disk_rig_check_read(rig, 0, 8 * SECTOR); /* the tie went to the first */

    disk_rig_fail(rig, 0, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), -EIO); /* a is out: EIO, but never other bytes */
    cr_assert_eq(disk_rig_read(rig, 0, SECTOR), -EIO);
}

/* Nobody can be read back, so nobody can be told from the others. */
Test(disk_write, W3_what_cannot_be_read_back_takes_nobody_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 1, MIB);
    uint8_t data[4096] = {1};
    for (unsigned i = 0; i < 2; i++) {
        disk_rig_fail(rig, i, FAULT_WRITE, EIO, 0);
        fault_add(
            (fault){.chain = disk_chain(rig->disk, i), .kind = FAULT_READ, .error = EIO});
    }
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), -EIO);
    fault_clear();
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_read(rig, 0, 4096);
}

Test(disk_write, W3_half_that_did_not_tear_stays_whole)
{
    g_autoptr(disk_rig) rig = disk_rig_new(4, 2, MIB);
    for (unsigned i = 0; i < 4; i++)
        disk_rig_fail(rig, i, FAULT_WRITE, ENOSPC, 0);
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
    disk_rig_model_resize(rig, 4 * MIB);
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
    g_autofree char *state = disk_rig_only_record(rig, "replica-state", "write");
    cr_assert(strstr(state, "|c!28 errno 28, in-sync -> stale"), "%s", state);
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

/* One that was not asked of the replica at all, while the journal is still being synced. */
static struct {
    disk *disk;
    GThread *thread;
    GMutex lock;
    GCond done;
    unsigned unsynced; /* when the other write returned */
    bool returned;
} other;

static void *write_beside(void *unused)
{
    uint8_t data[SECTOR] = {7};
    int r = disk_write(other.disk, 64 * KIB, sizeof(data), data);
    g_mutex_lock(&other.lock);
    other.unsynced = fault_unsynced_records();
    other.returned = true;
    g_cond_signal(&other.done);
    g_mutex_unlock(&other.lock);
    return r == 0 ? NULL : unused;
}

/* A write that does not wait returns long before the time is over. */
static void start_other(void)
{
    other.thread = g_thread_new("other", write_beside, &other);
    g_mutex_lock(&other.lock);
    gint64 deadline = g_get_monotonic_time() + G_USEC_PER_SEC / 2;
    while (!other.returned && g_cond_wait_until(&other.done, &other.lock, deadline))
        ;
    g_mutex_unlock(&other.lock);
}

Test(disk_write, W2_no_write_is_acknowledged_before_the_journal_knows_who_is_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    uint8_t data[SECTOR] = {1};
    other.disk = rig->disk;
    disk_rig_fail(rig, 1, FAULT_WRITE, EIO, 0);
    fault_on_sync(start_other);
    cr_assert_eq(disk_write(rig->disk, 0, sizeof(data), data), 0);
    cr_assert_null(g_thread_join(other.thread));
    cr_assert_eq(other.unsynced, 0);
    disk_rig_expect_state(rig, 1, REPLICA_STALE);
}

/* ---- W4: flush ---- */

Test(disk_write, W4_no_room_for_a_flush_anywhere_takes_nobody_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 1, FAULT_FLUSH, ENOSPC, 0);
    disk_rig_fail(rig, 2, FAULT_FLUSH, ENOSPC, 0);
    cr_assert_eq(disk_flush(rig->disk), -ENOSPC);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    cr_assert_eq(disk_flush(rig->disk), 0); /* there is room again */
    disk_rig_fail(rig, 1, FAULT_FLUSH, ENOSPC, 0);
    cr_assert_eq(disk_flush(rig->disk), 0); /* the others did: this one is behind them */
    disk_rig_expect_state(rig, 1, REPLICA_FAILED);
}

Test(disk_write, W4_failed_flush_takes_the_replica_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 2, FAULT_FLUSH, EIO, 0);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_eq(fault_unsynced_records(), 0);
    disk_rig_expect_state(rig, 2, REPLICA_FAILED);
    g_autofree char *error = disk_rig_only_record(rig, "replica-error", "flush");
    g_autofree char *state = disk_rig_only_record(rig, "replica-state", "flush");
    cr_assert_str_eq(error, "0+0 a,b|c!5 errno 5, served");
    cr_assert_str_eq(state, "0+0 |c!5 errno 5, in-sync -> failed");
    cr_assert_eq(disk_flush(rig->disk), 0);
    disk_rig_fail(rig, 2, FAULT_FLUSH, EIO,
                  0); /* not asked any more, its fsync is not retried */
    disk_rig_fail(rig, 2, FAULT_READ, EIO, 0);
    disk_rig_fail(rig, 2, FAULT_WRITE, EIO, 0);
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
        disk_rig_fail(rig, i, FAULT_FLUSH, i ? EIO : ETIMEDOUT, 0);
    cr_assert_eq(disk_flush(rig->disk), -EIO); /* R5, whatever they said */
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
