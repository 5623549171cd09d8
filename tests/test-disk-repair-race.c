/*
 * test-disk-repair-race.c: guests that read and write while replicas are repaired (W1, W7).
 */
#include "quorum/disk-internal.h"
#include "quorum/repair.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <string.h>

#define SECTOR 512u
#define MIB    (1024u * 1024u)

static const repair_options by_vote = {.from = -1, .op = "scrub"};
static disk_rig *hook_rig;

/* All that differed is repaired. */
static void repair_all(disk_rig *rig, uint64_t differing)
{
    repair_stats stats = {0};
    cr_assert_eq(disk_repair_range(rig->disk, 0, rig->size, &by_vote, &stats), 0);
    cr_assert_eq(stats.checked, rig->size);
    cr_assert_eq(stats.differing, differing);
    cr_assert_eq(stats.repaired, differing);
    cr_assert_eq(stats.unreadable + stats.failed + stats.no_quorum, 0);
}

static GThread *guest_thread;
static atomic_bool guest_done;

static void *write_newer(void *opaque)
{
    (void)opaque;
    uint8_t data[4 * SECTOR];
    memset(data, 0x5a, sizeof data);
    cr_assert_eq(disk_write(hook_rig->disk, 0, sizeof data, data), 0);
    atomic_store(&guest_done, true);
    return NULL;
}

static void *read_voted(void *opaque)
{
    (void)opaque;
    disk_rig_check_read(hook_rig, 0, 4 * SECTOR);
    atomic_store(&guest_done, true);
    return NULL;
}

/* Goes on when the guest waits for its range, or, where it need not, is done. */
static void begin_guest(GThreadFunc run)
{
    guest_thread = g_thread_new("guest", run, NULL);
    while (rangelock_waiting(hook_rig->disk->range_lock) == 0 &&
           !atomic_load(&guest_done))
        g_thread_yield();
}

static void write_meanwhile(void)
{
    begin_guest(write_newer);
}

static void read_meanwhile(void)
{
    begin_guest(read_voted);
}

/* Between the vote and the write. */
static void repair_with_guest(disk_rig *rig, void (*guest)(void))
{
    disk_rig_corrupt(rig, 1, SECTOR, SECTOR, 0x01);
    hook_rig = rig;
    fault_add((fault){.chain = disk_chain(rig->disk, 1),
                      .kind = FAULT_WRITE,
                      .times = 1,
                      .hook = guest});
    repair_all(rig, SECTOR);
    g_thread_join(guest_thread);
}

Test(disk_repair, W7_a_write_between_vote_and_repair_is_never_overwritten)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    repair_with_guest(rig, write_meanwhile);
    memset(rig->model, 0x5a, 4 * SECTOR);
    disk_rig_check_replicas(rig, 7);
    disk_rig_check_read(rig, 0, MIB);
}

/* It would find replicas differing that are being made equal. */
Test(disk_repair, W1_a_read_waits_for_a_repair)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    repair_with_guest(rig, read_meanwhile);
    cr_assert_eq(disk_rig_count(rig, "divergence", "read"), 0);
}

/* Random corruption of minorities, guests that write all the while, repairs over all of the
 * disk: every write that was acknowledged stays, and all replicas are equal in the end. */
#define BLOCKS 64u
#define BLOCK  (4 * SECTOR)

typedef struct guest {
    disk_rig *rig;
    unsigned half; /* each guest has blocks of its own, so that the model is known */
    uint64_t state;
} guest;

static void *write_blocks(void *opaque)
{
    guest *g = opaque;
    for (unsigned k = 0; k < 400; k++) {
        uint64_t offset =
            (support_random(&g->state) % (BLOCKS / 2) * 2 + g->half) * BLOCK;
        uint8_t data[BLOCK];
        support_pattern(data, BLOCK, offset, support_random(&g->state));
        cr_assert_eq(disk_write(g->rig->disk, offset, BLOCK, data), 0);
        memcpy(g->rig->model + offset, data, BLOCK);
    }
    return NULL;
}

Test(disk_repair, W7_guests_write_while_everything_is_repaired)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, BLOCKS * BLOCK);
    uint64_t seed = support_seed();
    guest guests[2] = {{rig, 0, seed | 1}, {rig, 1, seed * 3 | 1}};
    GThread *threads[2];
    for (unsigned b = 0; b < BLOCKS; b++)
        disk_rig_corrupt(rig, b % 3, b * BLOCK + b % 4 * SECTOR, SECTOR, 0x99);
    for (unsigned k = 0; k < 2; k++)
        threads[k] = g_thread_new("guest", write_blocks, &guests[k]);
    repair_stats stats = {0};
    for (unsigned k = 0; k < 50; k++)
        cr_assert_eq(disk_repair_range(rig->disk, (k % 8) * 8 * BLOCK + k * SECTOR,
                                       16 * BLOCK, &by_vote, &stats),
                     0);
    for (unsigned k = 0; k < 2; k++)
        g_thread_join(threads[k]);
    repair_all(rig, 0);
    cr_assert_eq(stats.differing, stats.repaired);
    disk_rig_check_replicas(rig, 7);
}
