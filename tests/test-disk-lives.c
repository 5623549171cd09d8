/*
 * test-disk-lives.c: many short lives of a disk whose replicas fail, hang, come back, rot and
 * are killed with the daemon (W1 to W7, R5, O5). Everything follows from the seed of the life: there
 * is one thread, which takes the worker's steps and has replicas rejoin.
 *
 * In a life some replicas, never more than the disk can do without, are its victims: whatever
 * happens to them, every request succeeds, and reads return what was last acknowledged. Others
 * become victims only when all are in sync again and hold what the others hold. Sometimes all
 * replicas fail or hang in one write: that may fail, and nothing else is lost by it. In the end
 * everybody comes back, and all replicas are equal.
 *
 * A round of a life is a process, which closes the disk or just ends. What a hung replica was
 * asked may still happen, as a whole, in part or never, until it rejoins or the process ends.
 *
 * QUORUMFS_TEST_THOROUGH=1: many more. QUORUMFS_TEST_TRACE=1 prints the requests.
 */
#include "quorum/disk-internal.h"
#include "quorum/repair.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR    512u
#define SECTORS   131u
#define SIZE      ((uint64_t)SECTORS * SECTOR)
#define WRITE_MAX 24u /* sectors */
#define INTENT    (16u << 10)
#define STALE     4096u
#define ROUNDS    5u
#define STEPS     30u
#define FAULTS    10u /* armed at a time */
#define WORK_MAX  2000u
#define SEEDS     450u

typedef struct model {
    uint32_t value[SECTORS]; /* in each word of the sector, if not loose */
    bool loose[SECTORS];     /* a change of it failed, or is under way */
    uint32_t stamps;
    uint64_t victims;
    bool rotten; /* a victim may hold what nobody wrote */
    unsigned rejoined, hung, crashed;
    char wrong[400];
} model;

typedef struct life {
    model *m;
    disk *disk;
    const char *dir;
    char *paths[VOTE_REPLICAS_MAX];
    unsigned n, threshold, n_victims;
    uint64_t seed, random;
    unsigned round, step, armed;
    bool outage; /* all replicas were struck: requests may fail */
} life;

/* ---- What is wrapped -------------------------------------------------------------------- */

void __wrap_disk_worker_start(disk *d);
void __wrap_disk_worker_start(disk *d)
{
    (void)d;
}

void __wrap_disk_rejoin_start(disk *d, unsigned i);
void __wrap_disk_rejoin_start(disk *d, unsigned i)
{
    (void)d;
    (void)i;
}

unsigned __wrap_io_get_timeout(void);
unsigned __wrap_io_get_timeout(void)
{
    return 0;
}

state *__real_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error);
state *__wrap_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error);
state *__wrap_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error)
{
    state_shape small = *shape;
    small.intent_region = INTENT;
    small.stale_region = STALE;
    return __real_state_open(dir, name, &small, error);
}

/* ---- What is wrong ----------------------------------------------------------------------- */

static void fail(life *l, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void fail(life *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_snprintf(l->m->wrong, sizeof l->m->wrong,
               "QUORUMFS_TEST_SEED=%" PRIu64 ", round %u, step %u: %s", l->seed, l->round,
               l->step, text);
    _exit(1);
}

static void trace(const life *l, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void trace(const life *l, const char *format, ...)
{
    va_list args;
    if (!g_getenv("QUORUMFS_TEST_TRACE"))
        return;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "# %u.%u: %s\n", l->round, l->step, text);
}

static unsigned below(life *l, unsigned limit)
{
    return (unsigned)((support_random(&l->random) >> 16) % limit);
}

/* ---- Requests ---------------------------------------------------------------------------- */

static bool is_filled(const uint8_t *sector, uint32_t value)
{
    uint32_t words[SECTOR / 4];
    memcpy(words, sector, SECTOR);
    for (unsigned k = 0; k < SECTOR / 4; k++)
        if (words[k] != value)
            return false;
    return true;
}

/* Loose sectors may hold anything, or have no quorum, but two reads agree (W3). */
static void check_loose(life *l, unsigned k)
{
    uint8_t seen[SECTOR];
    const void *data;
    if (disk_read(l->disk, (uint64_t)k * SECTOR, SECTOR, &data) != 0)
        return;
    memcpy(seen, data, SECTOR);
    if (disk_read(l->disk, (uint64_t)k * SECTOR, SECTOR, &data) == 0 &&
        memcmp(seen, data, SECTOR) != 0)
        fail(l, "W3: sector %u: two reads differ", k);
}

static void check(life *l, unsigned first, unsigned count)
{
    const void *data;
    for (unsigned k = first, end; k < first + count; k = end) {
        for (end = k; end < first + count && !l->m->loose[end]; end++)
            ;
        if (end == k) {
            check_loose(l, end++);
            continue;
        }
        int r = disk_read(l->disk, (uint64_t)k * SECTOR, (end - k) * SECTOR, &data);
        if (r != 0 && !l->outage)
            fail(l, "read of sectors %u to %u: %s", k, end - 1, g_strerror(-r));
        for (unsigned at = k; at < end && r == 0; at++)
            if (!is_filled((const uint8_t *)data + (at - k) * SECTOR, l->m->value[at]))
                fail(l, "sector %u reads %u where %u was written", at,
                     ((const uint32_t *)data)[(at - k) * SECTOR / 4], l->m->value[at]);
    }
}

static void pick(life *l, unsigned *ret_first, unsigned *ret_count)
{
    *ret_first = below(l, below(l, 2) ? SECTORS : 24);
    *ret_count = 1 + below(l, MIN(WRITE_MAX, SECTORS - *ret_first));
}

/* `doomed`: it may fail, though no more than the victims should. */
static void change(life *l, bool doomed)
{
    static const char *const names[] = {"zeroes", "discard", "write"};
    model *m = l->m;
    unsigned first, count, kind = doomed ? 2 : below(l, 8);
    kind = MIN(kind, 2);
    uint32_t data[WRITE_MAX * SECTOR / 4];
    uint32_t stamp = kind < 2 ? 0 : ++m->stamps;
    pick(l, &first, &count);
    trace(l, "%s %u +%u: %u", names[kind], first, count, stamp);
    uint64_t offset = (uint64_t)first * SECTOR, length = (uint64_t)count * SECTOR;
    for (unsigned k = 0; k < G_N_ELEMENTS(data); k++)
        data[k] = stamp;
    memset(m->loose + first, true, count);
    int r = kind == 0   ? disk_write_zeroes(l->disk, offset, length)
            : kind == 1 ? disk_discard(l->disk, offset, length)
                        : disk_write(l->disk, offset, length, data);
    if (r != 0 && !doomed && !l->outage)
        fail(l, "W2: %s of sectors %u +%u: %s", names[kind], first, count,
             g_strerror(-r));
    for (unsigned k = first; k < first + count && r == 0; k++) {
        m->value[k] = stamp;
        m->loose[k] = false;
    }
}

static void flush(life *l)
{
    trace(l, "flush");
    int r = disk_flush(l->disk);
    if (r != 0 && !l->outage)
        fail(l, "W4: flush: %s", g_strerror(-r));
}

/* ---- Troubles ---------------------------------------------------------------------------- */

static bool is_out(const life *l, unsigned i)
{
    replica_state now = l->disk->replicas[i].state;
    return now == REPLICA_HUNG || now == REPLICA_FAILED;
}

static bool is_healthy(const life *l)
{
    return strcmp(disk_state_name(l->disk), "healthy") == 0 &&
           state_unreconciled_bytes(l->disk->store) == 0;
}

static void choose_victims(life *l)
{
    if (!is_healthy(l) || l->m->rotten)
        return;
    fault_clear();
    l->armed = 0;
    for (l->m->victims = 0; disk_set_size(l->m->victims) < l->n_victims;)
        l->m->victims |= UINT64_C(1) << below(l, l->n);
}

static unsigned a_victim(life *l)
{
    unsigned i;
    do
        i = below(l, l->n);
    while (!disk_has_bit(l->m->victims, i));
    return i;
}

static void arm(life *l)
{
    if (below(l, 3) == 0)
        choose_victims(l);
    unsigned i = a_victim(l), what = below(l, 4);
    if (l->armed >= FAULTS || is_out(l, i))
        return;
    fault f = fault_pick(&l->random, disk_chain(l->disk, i), SIZE);
    if (what == 0) { /* it hangs, or its server is gone */
        f.error = below(l, 3) ? ETIMEDOUT : ENOTCONN;
        f.late = below(l, 2);
        f.times = 0;
    } else if (what == 1 && (f.kind == FAULT_READ || f.kind == FAULT_WRITE)) {
        f.rot = (uint8_t)(1 + i); /* no two alike */
        f.error = 0;
        l->m->rotten |= f.kind == FAULT_WRITE;
    }
    trace(l, "replica %u: kind %d, error %d, rot %u, %" PRIu64 " +%" PRIu64, i, f.kind,
          f.error, f.rot, f.offset, f.length);
    fault_add(f);
    l->armed++;
}

static void rot(life *l)
{
    uint8_t bytes[4 * SECTOR];
    unsigned i = a_victim(l), first = below(l, SECTORS - 4);
    trace(l, "replica %u rots: %u +4", i, first);
    memset(bytes, (int)(0xe0 + i), sizeof bytes);
    support_poke(l->paths[i], first * SECTOR, bytes, sizeof bytes);
    l->m->rotten = true;
}

static void work(life *l, unsigned steps)
{
    while (steps-- > 0 && disk_worker_step(l->disk))
        ;
}

/* Of whoever is out. What is still under way on it lets it wait (R5). */
static void bring_back(life *l, bool must)
{
    for (unsigned i = 0; i < l->n; i++) {
        g_autoptr(GError) error = NULL;
        if (!is_out(l, i))
            continue;
        bool waits =
            l->disk->replicas[i].chain && chain_abandoned(l->disk->replicas[i].chain) > 0;
        rejoin_result result = disk_rejoin_try(l->disk, i, &error);
        trace(l, "replica %u rejoins: %d %s", i, (int)result,
              error ? error->message : "");
        if (waits != (result == REJOIN_WAITS) || (must && result != REJOIN_BACK))
            fail(l, "R5: replica %u rejoins: %d, %s", i, (int)result,
                 error ? error->message : "");
        l->m->rejoined += result == REJOIN_BACK;
    }
}

static void heal(life *l)
{
    trace(l, "heal");
    fault_land(NULL);
    fault_clear();
    l->armed = 0;
}

static void scrub_all(life *l)
{
    repair_stats stats = {0};
    repair_options options = {.from = -1, .op = "scrub"};
    if (2 * l->threshold <= l->n)
        return;
    trace(l, "scrub");
    heal(l);
    bring_back(l, true);
    disk_resync(l->disk);
    work(l, WORK_MAX);
    int r = disk_repair_range(l->disk, 0, SIZE, &options, &stats);
    if (r != 0 || stats.failed > 0)
        fail(l, "W7: scrub: %s, %" PRIu64 " failed", g_strerror(-r), stats.failed);
    l->m->rotten = !is_healthy(l);
}

/* All replicas fail or hang in one write, which may be anywhere then. Only if all is well: the
 * first that come back decide what nobody has a quorum for (W6), and a stale replica cannot be
 * given what the others do not agree on. With a threshold of half or less only as many as that
 * are sure to hold the result. */
static void strike_all(life *l)
{
    bool hangs = below(l, 2);
    if (2 * l->threshold <= l->n)
        return;
    scrub_all(l);
    if (!is_healthy(l))
        return;
    trace(l, "all %s", hangs ? "hang" : "fail");
    heal(l);
    for (unsigned i = 0; i < l->n; i++)
        if (!is_out(l, i))
            fault_add((fault){.chain = disk_chain(l->disk, i),
                              .kind = FAULT_WRITE,
                              .error = hangs ? ETIMEDOUT : EIO,
                              .shreds = below(l, 2) ? support_random(&l->random) : 0,
                              .late = hangs && below(l, 2),
                              .times = 1});
    change(l, true);
    l->m->hung += hangs;
    l->outage = hangs;
    for (unsigned k = below(l, 3); k > 0 && hangs; k--)
        change(l, false);
    heal(l);
    bring_back(l, true);
    l->outage = false;
    disk_resync(l->disk);
    work(l, WORK_MAX);
    if (hangs && !is_healthy(l))
        fail(l, "%s after all were struck", disk_state_name(l->disk));
    check(l, 0, SECTORS);
}

/* ---- Lives ------------------------------------------------------------------------------- */

static void must_open(life *l)
{
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_rig_options(l->paths, l->n, "raw");
    options->threshold = l->threshold;
    options->state_dir = g_strdup(l->dir);
    l->disk = disk_open(options, NULL, &error);
    disk_options_free(options);
    if (!l->disk)
        fail(l, "open: %s", error->message);
    if (!disk_writable(l->disk))
        fail(l, "read-only: %s", disk_read_only_reason(l->disk));
}

static void do_step(life *l)
{
    unsigned first, count, what = below(l, 64);
    if (what < 28) {
        change(l, false);
    } else if (what < 36) {
        pick(l, &first, &count);
        check(l, first, count);
    } else if (what < 41) {
        flush(l);
    } else if (what < 50) {
        arm(l);
    } else if (what < 55) {
        work(l, 1 + below(l, 8));
    } else if (what < 56) {
        disk_state_tidy(l->disk);
    } else if (what < 59) {
        heal(l);
    } else if (what < 61) {
        bring_back(l, false);
    } else if (what < 62) {
        rot(l);
    } else if (what < 63) {
        strike_all(l);
    } else {
        scrub_all(l);
    }
}

static void live_round(life *l)
{
    must_open(l);
    check(l, 0, SECTORS);
    if (!l->m->victims)
        choose_victims(l);
    for (l->step = 0; l->step < STEPS; l->step++)
        do_step(l);
    if (below(l, 2))
        fault_land(NULL);
    bool closes = below(l, 3) == 0;
    trace(l, closes ? "close" : "end");
    l->m->crashed += !closes;
    if (!closes)
        _exit(0);
    heal(l);
    disk_close(l->disk);
}

/* In the end: everybody comes back, and what a write that failed left is decided. */
static void settle(life *l)
{
    must_open(l);
    scrub_all(l);
    check(l, 0, SECTORS);
    if (2 * l->threshold > l->n && !is_healthy(l))
        fail(l, "%s in the end", disk_state_name(l->disk));
    int r = disk_close(l->disk);
    if (r != 0)
        fail(l, "close: %s", g_strerror(-r));
}

static void in_child(life *l, void (*run)(life *l))
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run(l);
        _exit(0);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    if (!l->m->wrong[0] && status != 0)
        g_snprintf(l->m->wrong, sizeof l->m->wrong,
                   "QUORUMFS_TEST_SEED=%" PRIu64 ", round %u: status %x", l->seed,
                   l->round, status);
}

static void check_equal(life *l)
{
    size_t length;
    g_autofree uint8_t *first = support_load(l->paths[0], &length);
    for (unsigned i = 1; i < l->n && !l->m->wrong[0]; i++) {
        g_autofree uint8_t *other = support_load(l->paths[i], &length);
        if (memcmp(first, other, SIZE) != 0)
            g_snprintf(l->m->wrong, sizeof l->m->wrong,
                       "QUORUMFS_TEST_SEED=%" PRIu64 ": replicas 0 and %u differ",
                       l->seed, i);
    }
}

static void live(life *l)
{
    g_autofree char *record = state_path(l->dir, "disk");
    unlink(record);
    memset(l->m, 0, offsetof(model, rejoined));
    for (unsigned i = 0; i < l->n; i++) {
        unlink(l->paths[i]);
        int fd = open(l->paths[i], O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        cr_assert(fd >= 0 && ftruncate(fd, (off_t)SIZE) == 0);
        close(fd);
    }
    for (l->round = 0; l->round < ROUNDS + 2 && !l->m->wrong[0]; l->round++) {
        l->random = (l->seed * 100 + l->round) * 0x9e3779b97f4a7c15 | 1;
        in_child(l, l->round < ROUNDS ? live_round : settle);
    }
    if (!l->m->wrong[0] && 2 * l->threshold > l->n)
        check_equal(l);
}

static void run_lives(unsigned n, unsigned threshold, unsigned n_victims)
{
    char shm[] = "/dev/shm/quorumfs-test-XXXXXX";
    bool in_memory = mkdtemp(shm) != NULL;
    unsigned count = g_getenv("QUORUMFS_TEST_THOROUGH") ? 20 * SEEDS : SEEDS;
    uint64_t seed = support_seed();
    life l = {.n = n,
              .threshold = threshold,
              .n_victims = n_victims,
              .dir = in_memory ? shm : support_dir()};
    l.m = mmap(NULL, sizeof *l.m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
               0);
    cr_assert(l.m != MAP_FAILED);
    for (unsigned i = 0; i < n; i++)
        l.paths[i] = g_strdup_printf("%s/%c.raw", l.dir, 'a' + i);
    for (unsigned k = 0; k < count && !l.m->wrong[0]; k++) {
        l.seed = seed + k;
        live(&l);
    }
    if (in_memory)
        support_run("rm -rf '%s'", shm);
    for (unsigned i = 0; i < n; i++)
        g_free(l.paths[i]);
    cr_assert(!l.m->wrong[0], "%u/%u: %s", n, threshold, l.m->wrong);
    cr_assert(l.m->rejoined > 0 && l.m->crashed > 0);
    cr_assert(l.m->hung > 0 || 2 * threshold <= n);
    munmap(l.m, sizeof *l.m);
}

Test(disk_lives, W2_three_replicas_two_of_which_must_agree)
{
    run_lives(3, 2, 1);
}

Test(disk_lives, W2_five_replicas_three_of_which_must_agree)
{
    run_lives(5, 3, 2);
}

Test(disk_lives, W3_four_replicas_any_two_of_which_win)
{
    run_lives(4, 2, 1);
}
