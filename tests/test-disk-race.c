/*
 * test-disk-race.c: threads that read and write the same ranges at the same time.
 *
 * Rule W1, and what QEMU's quorum loses without it: no two overlapping writes ever run
 * together, so replicas never diverge without a fault, and no reader sees half a write.
 *
 * Every write fills its range with one stamp that no other write has. A read that lies
 * within a block sees one stamp in each sector, and if the blocks are all that is ever
 * written, one stamp in all of a block.
 */
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define SECTOR 512u
#define BLOCK  8192u
#define BLOCKS 16u

typedef struct race {
    disk_rig *rig;
    atomic_uint stamps;
    atomic_uint failures; /* requests that did not return 0 */
    atomic_uint mixed;    /* reads that saw two writes where one was whole */
    unsigned steps;
    uint64_t seed;
    bool whole_blocks; /* writers write whole blocks only */
} race;

typedef struct runner {
    race *race;
    uint64_t state;
} runner;

static void fill(uint32_t *words, size_t length, uint32_t stamp)
{
    for (size_t k = 0; k < length / 4; k++)
        words[k] = stamp;
}

/* Sectors only where writers start and end at any sector. */
static bool is_mixed(const uint32_t *words, size_t length, size_t unit)
{
    for (size_t at = 0; at < length / 4; at += unit / 4)
        for (size_t k = 1; k < unit / 4; k++)
            if (words[at + k] != words[at])
                return true;
    return false;
}

static void random_range(runner *run, uint64_t *offset, size_t *length)
{
    uint64_t unit = run->race->whole_blocks ? BLOCK : SECTOR;
    uint64_t units = BLOCKS * BLOCK / unit;
    uint64_t first = support_random(&run->state) % units;
    uint64_t count = 1 + support_random(&run->state) % MIN(units - first, 24);
    *offset = first * unit;
    *length = (size_t)(count * unit);
}

static void *write_loop(void *opaque)
{
    runner *run = opaque;
    g_autofree uint32_t *data = g_malloc(BLOCKS * BLOCK);
    for (unsigned k = 0; k < run->race->steps; k++) {
        uint64_t offset;
        size_t length;
        random_range(run, &offset, &length);
        fill(data, length, atomic_fetch_add(&run->race->stamps, 1));
        int r = support_random(&run->state) % 16
                    ? disk_write(run->race->rig->disk, offset, length, data)
                    : disk_write_zeroes(run->race->rig->disk, offset, length);
        if (r != 0)
            atomic_fetch_add(&run->race->failures, 1);
    }
    return NULL;
}

static void *read_loop(void *opaque)
{
    runner *run = opaque;
    for (unsigned k = 0; k < run->race->steps; k++) {
        uint64_t offset;
        size_t length;
        const void *data;
        random_range(run, &offset, &length);
        size_t unit = run->race->whole_blocks ? BLOCK : SECTOR;
        if (disk_read(run->race->rig->disk, offset, length, &data) != 0)
            atomic_fetch_add(&run->race->failures, 1);
        else if (is_mixed(data, length, unit))
            atomic_fetch_add(&run->race->mixed, 1);
    }
    return NULL;
}

static void *flush_loop(void *opaque)
{
    runner *run = opaque;
    for (unsigned k = 0; k < run->race->steps / 16; k++) {
        bool zero;
        uint64_t length;
        if (disk_flush(run->race->rig->disk) != 0 ||
            disk_map(run->race->rig->disk, 0, BLOCK, &zero, &length) != 0)
            atomic_fetch_add(&run->race->failures, 1);
    }
    return NULL;
}

static void run_race(unsigned n, unsigned threshold, bool whole_blocks, unsigned steps)
{
    static void *(*const loops[])(void *) = {write_loop, write_loop, read_loop,
                                             write_loop, read_loop,  flush_loop};
    g_autoptr(disk_rig) rig = disk_rig_new(n, threshold, BLOCKS * BLOCK);
    race r = {.rig = rig, .steps = steps, .whole_blocks = whole_blocks};
    runner runners[G_N_ELEMENTS(loops)];
    GThread *threads[G_N_ELEMENTS(loops)];
    uint64_t seed = support_seed();
    atomic_init(&r.stamps, 1);
    cr_assert_eq(disk_write_zeroes(rig->disk, 0, BLOCKS * BLOCK), 0);
    for (unsigned k = 0; k < G_N_ELEMENTS(loops); k++) {
        runners[k] = (runner){.race = &r, .state = seed + k * 7919 + 1};
        threads[k] = g_thread_new("race", loops[k], &runners[k]);
    }
    for (unsigned k = 0; k < G_N_ELEMENTS(loops); k++)
        g_thread_join(threads[k]);

    cr_assert_eq(atomic_load(&r.failures), 0);
    cr_assert_eq(atomic_load(&r.mixed), 0);
    cr_assert_eq(disk_rig_count(rig, "", ""), 0); /* nothing diverged, not for a moment */
    size_t length;
    g_autofree uint8_t *first = support_load(rig->paths[0], &length);
    for (unsigned i = 1; i < n; i++) {
        g_autofree uint8_t *other = support_load(rig->paths[i], &length);
        cr_assert(memcmp(first, other, length) == 0, "replicas 0 and %u differ", i);
    }
}

Test(disk_race, W1_overlapping_sectors)
{
    run_race(3, 2, false, 4000);
}

Test(disk_race, W1_no_read_sees_half_a_write)
{
    run_race(3, 2, true, 4000);
}

/* With all replicas needed, a read that raced a write would fail. */
Test(disk_race, W1_threshold_of_all)
{
    run_race(3, 3, false, 2000);
}
