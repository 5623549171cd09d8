/*
 * test-disk-stress.c: threads on a disk that remembers, whose replicas fail, and that ends in
 * the middle of it, over and over (W1 to W6, O5). Whatever happens, a sector reads as what
 * was last acknowledged there, and in the end all replicas are equal.
 *
 * Replicas also hang, until what they were asked happens late or never, come back while the
 * disk is used, and rot.
 *
 * A round is a process: it opens the disk, reads everything, and lets threads loose, each on
 * blocks of its own that share regions with those of the others. It closes the disk or just
 * ends. The model is in memory that rounds share. One replica fails writes, clears, reads or
 * flushes in a round; what one holds whose flush failed is spoilt afterwards, as it may have
 * lost anything. Sometimes more fail than the threshold allows, so that writes fail as a whole.
 */
#include "quorum/disk-internal.h"
#include "quorum/repair.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR  512u
#define BLOCK   8u /* sectors; a thread owns every THREADS-th */
#define SECTORS (5u * 1024 + 3)
#define SIZE    ((uint64_t)SECTORS * SECTOR)
#define THREADS 3u
#define ROUNDS  24u
#define STEPS   120u
#define REFUSED 2 /* exit status: nobody may copy (O4), and too few are left */

typedef struct model {
    uint32_t value[SECTORS]; /* in each word of the sector, if not loose */
    uint8_t loose[SECTORS];  /* a change of it failed, or is under way */
    uint32_t stamps;
    uint8_t failed; /* replicas that were out at the end */
} model;

typedef struct stress {
    model *m;
    disk *disk;
    char *paths[VOTE_REPLICAS_MAX];
    unsigned n, threshold;
    uint64_t seed;
    bool faulty;         /* faults are set */
    unsigned dies_after; /* steps of all threads; 0: closes */
    atomic_uint steps;
} stress;

typedef struct runner {
    stress *s;
    unsigned index;
    uint64_t random;
} runner;

static void complain(const char *what, unsigned sector, int result, uint32_t seen,
                     uint32_t expected)
{
    fprintf(stderr, "# %s: sector %u, result %d, %u where %u was written\n", what, sector,
            result, seen, expected);
    _exit(1);
}

static bool is_filled(const uint32_t *words, uint32_t value)
{
    for (unsigned k = 0; k < SECTOR / 4; k++)
        if (words[k] != value)
            return false;
    return true;
}

/* Loose sectors may hold anything, or have no quorum, but two reads agree (W3). While
 * replicas fail, reads may have too few (R3). */
static void check(stress *s, unsigned first, unsigned count)
{
    uint32_t seen[SECTOR / 4];
    for (unsigned k = first; k < first + count; k++) {
        const void *data;
        int r = disk_read(s->disk, (uint64_t)k * SECTOR, SECTOR, &data);
        if (r == -EIO && s->faulty)
            continue;
        if (!s->m->loose[k] && (r != 0 || !is_filled(data, s->m->value[k])))
            complain("read", k, r, r ? 0 : *(const uint32_t *)data, s->m->value[k]);
        if (!s->m->loose[k] || r != 0)
            continue;
        memcpy(seen, data, SECTOR);
        r = disk_read(s->disk, (uint64_t)k * SECTOR, SECTOR, &data);
        if (r == 0 && memcmp(seen, data, SECTOR) != 0)
            complain("two reads differ", k, 0, *(const uint32_t *)data, seen[0]);
    }
}

static void change(runner *run, unsigned first, unsigned count)
{
    model *m = run->s->m;
    uint32_t data[BLOCK * SECTOR / 4];
    unsigned kind = support_random(&run->random) % 8;
    uint32_t stamp = kind < 2 ? 0 : __atomic_add_fetch(&m->stamps, 1, __ATOMIC_RELAXED);
    uint64_t offset = (uint64_t)first * SECTOR;
    for (unsigned k = 0; k < G_N_ELEMENTS(data); k++)
        data[k] = stamp;
    memset(m->loose + first, 1, count);
    int r = kind == 0   ? disk_write_zeroes(run->s->disk, offset, count * SECTOR)
            : kind == 1 ? disk_discard(run->s->disk, offset, count * SECTOR)
                        : disk_write(run->s->disk, offset, count * SECTOR, data);
    for (unsigned k = first; k < first + count && r == 0; k++)
        m->value[k] = stamp;
    if (r == 0)
        memset(m->loose + first, 0, count);
}

/* What hangs answers, and whoever is out is tried at once. */
static void come_back(stress *s)
{
    fault_land(NULL);
    disk_resync(s->disk);
}

static void *work(void *opaque)
{
    runner *run = opaque;
    stress *s = run->s;
    for (unsigned step = 0; step < STEPS; step++) {
        unsigned blocks = SECTORS / BLOCK / THREADS;
        unsigned block = (unsigned)(support_random(&run->random) % blocks);
        unsigned skip = (unsigned)(support_random(&run->random) % BLOCK);
        unsigned first = (block * THREADS + run->index) * BLOCK + skip;
        unsigned what = support_random(&run->random) % 16;
        if (what == 0 && step % 4 == 0)
            come_back(s);
        else if (what == 0)
            disk_flush(s->disk);
        else if (what < 6)
            check(s, first, BLOCK - skip);
        else
            change(run, first, BLOCK - skip);
        if (atomic_fetch_add(&s->steps, 1) + 1 == s->dies_after)
            _exit(0);
    }
    return NULL;
}

static void open_disk(stress *s)
{
    GError *error = NULL;
    disk_options *options = disk_rig_options(s->paths, s->n, "raw");
    options->threshold = s->threshold;
    options->state_dir = support_path("state");
    s->disk = disk_open(options, NULL, &error);
    disk_options_free(options);
    if (s->disk)
        return;
    if (2 * s->threshold <= s->n && g_error_matches(error, DISK_ERROR, DISK_ERROR_STALE))
        _exit(REFUSED);
    fprintf(stderr, "# %s\n", error->message);
    _exit(1);
}

/* Where a majority can put it right. */
static void rot(stress *s, unsigned victim, uint64_t *random)
{
    uint8_t rubbish[8 * SECTOR];
    memset(rubbish, 0xdd, sizeof rubbish);
    for (unsigned k = support_random(random) % 4; k > 0 && 2 * s->threshold > s->n; k--)
        support_poke(s->paths[victim], support_random(random) % (SECTORS - 8) * SECTOR,
                     rubbish, sizeof rubbish);
}

static void add_faults(stress *s, unsigned victim, uint64_t *random)
{
    for (unsigned k = support_random(random) % 3; k > 0; k--) {
        fault f = fault_pick(random, disk_chain(s->disk, victim), SIZE);
        f.error = support_random(random) % 4 ? ETIMEDOUT : ENOTCONN;
        f.late = support_random(random) % 2;
        f.after *= 8;
        fault_add(f);
    }
    rot(s, victim, random);
    static const fault_kind kinds[] = {FAULT_WRITE, FAULT_WRITE, FAULT_WRITE, FAULT_CLEAR,
                                       FAULT_READ,  FAULT_READ,  FAULT_FLUSH};
    for (unsigned k = support_random(random) % 4; k > 0; k--)
        fault_add((fault){.chain = disk_chain(s->disk, victim),
                          .kind = kinds[support_random(random) % G_N_ELEMENTS(kinds)],
                          .error = EIO,
                          .torn = support_random(random) % 3 * SECTOR,
                          .after = (unsigned)(support_random(random) % 100),
                          .times = 1 + (unsigned)(support_random(random) % 4)});
    uint64_t offset = support_random(random) % (SIZE - SECTOR) / SECTOR * SECTOR;
    for (unsigned i = 0; i < s->n && support_random(random) % 3; i++)
        fault_add((fault){.chain = i % 2 ? disk_chain(s->disk, i) : NULL,
                          .kind = FAULT_WRITE,
                          .offset = offset,
                          .length = 64 * SECTOR,
                          .torn = SECTOR,
                          .error = ENOSPC,
                          .times = 0});
}

/* In the end: no faults, and time. */
static void settle(stress *s)
{
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    while (strcmp(disk_state_name(s->disk), "healthy") != 0 ||
           state_unreconciled_bytes(s->disk->store) > 0) {
        if (g_get_monotonic_time() > deadline)
            complain("never in sync", 0, 0, 0, 0);
        g_usleep(1000);
    }
    repair_stats stats = {0};
    repair_options options = {.from = -1, .op = "scrub"};
    int r = disk_repair_range(s->disk, 0, SIZE, &options, &stats);
    if (r != 0 || stats.failed > 0 || stats.no_quorum > 0)
        complain("not repaired", 0, r, (uint32_t)stats.failed, (uint32_t)stats.no_quorum);
    check(s, 0, SECTORS);
    _exit(disk_close(s->disk) != 0);
}

static void run_round(stress *s, unsigned round)
{
    uint64_t random = s->seed + round * 7919 + 1;
    runner runners[THREADS];
    GThread *threads[THREADS];
    open_disk(s);
    check(s, 0, SECTORS);
    if (round % 4 == 3 && 2 * s->threshold > s->n)
        settle(s);
    add_faults(s, (unsigned)(s->seed + round / 4) % s->n, &random);
    s->faulty = true;
    s->dies_after = support_random(&random) % 3 ? 1 + support_random(&random) % 300 : 0;
    for (unsigned k = 0; k < THREADS; k++) {
        runners[k] = (runner){s, k, support_random(&random) | 1};
        threads[k] = g_thread_new("stress", work, &runners[k]);
    }
    for (unsigned k = 0; k < THREADS; k++)
        g_thread_join(threads[k]);
    fault_land(NULL);
    fault_clear();
    for (unsigned i = 0; i < s->n; i++)
        s->m->failed |= (uint8_t)((s->disk->replicas[i].state == REPLICA_FAILED) << i);
    disk_close(s->disk);
    _exit(0);
}

static void spoil(stress *s)
{
    uint8_t rubbish[4 * SECTOR];
    memset(rubbish, 0xee, sizeof rubbish);
    for (unsigned i = 0; i < s->n; i++)
        for (unsigned k = 0; s->m->failed >> i & 1 && k < 16; k++)
            support_poke(s->paths[i], k * 317 * SECTOR, rubbish, sizeof rubbish);
    s->m->failed = 0;
}

static void check_equal(stress *s)
{
    size_t length;
    g_autofree uint8_t *first = support_load(s->paths[0], &length);
    for (unsigned i = 1; i < s->n; i++) {
        g_autofree uint8_t *other = support_load(s->paths[i], &length);
        cr_assert(memcmp(first, other, SIZE) == 0, "replicas 0 and %u differ", i);
    }
}

static void run_stress(unsigned n, unsigned threshold)
{
    stress s = {.n = n, .threshold = threshold, .seed = support_seed()};
    g_autofree char *dir = support_path("state");
    g_mkdir_with_parents(dir, 0700);
    s.m = mmap(NULL, sizeof *s.m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
               0);
    cr_assert(s.m != MAP_FAILED);
    for (unsigned i = 0; i < n; i++) {
        s.paths[i] = support_path("%c.raw", 'a' + i);
        support_run("truncate -s %llu %s", (unsigned long long)SIZE, s.paths[i]);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            run_round(&s, round);
        cr_assert_eq(waitpid(child, &status, 0), child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == REFUSED)
            break;
        cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "round %u: %d", round,
                  status);
        spoil(&s);
        if (round % 4 == 3 && 2 * threshold > n)
            check_equal(&s);
    }
    for (unsigned i = 0; i < n; i++)
        g_free(s.paths[i]);
    munmap(s.m, sizeof *s.m);
}

Test(disk_stress, W2_three_replicas_two_of_which_must_agree)
{
    run_stress(3, 2);
}

Test(disk_stress, W2_five_replicas_three_of_which_must_agree)
{
    run_stress(5, 3);
}

Test(disk_stress, W3_four_replicas_any_two_of_which_win)
{
    run_stress(4, 2);
}
