/*
 * The power fails while a disk is used: at every change of any of its files, with any part of
 * what was not synced there (W2, W5, W6). Whatever is left, the next open succeeds, every byte
 * that a completed flush covered is there, and the others hold what was once written; all
 * replicas are equal in the end, what was decided is in the journal, and a crash while that is
 * done changes nothing of it.
 *
 * A life is a process: a disk under random requests, one replica of which fails now and then,
 * is closed, opened, and killed, when it goes on with one of the states that a crash may
 * leave. A point at which the power may fail forks: the child saves states and recovers each.
 * While it does so it forks again (depth 2). Which states there are is crash-file.h's, what
 * they may hold disk-model.h's. Everything follows from the seed of the life.
 *
 * QUORUMFS_TEST_THOROUGH=1: for minutes. QUORUMFS_TEST_TRACE=1 prints the requests.
 */
#include "tests/crash-sweep.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define SECTOR    SWEEP_SECTOR
#define WRITE_MAX (40u << 10)
#define REQUESTS  40u /* of a life */

#define CONVERT(options) "qemu-img convert -f raw -O qcow2 -o " options " \"$raw\" \"$i\""

static const crash_set sets[] = {
    {"raw", 3, 2, {{"raw", "cp $raw $i"}, {"raw", "cp $raw $i"}, {"raw", "cp $raw $i"}}},
    {"qcow2",
     3,
     2,
     {{"qcow2", CONVERT("cluster_size=4096")},
      {"qcow2", CONVERT("cluster_size=512,refcount_bits=1")},
      {"qcow2", CONVERT("cluster_size=65536")}}},
    {"mixed",
     3,
     2,
     {{"qcow2", CONVERT("cluster_size=4096,lazy_refcounts=on")},
      {"raw", "cp $raw $i"},
      {"qcow2", "cp $raw $base; qemu-img create -f qcow2 -F raw -b $base -o "
                "cluster_size=2048 $i"}}},
    {"five",
     5,
     3,
     {{"raw", "cp $raw $i"},
      {"qcow2", CONVERT("cluster_size=4096")},
      {"raw", "cp $raw $i"},
      {"qcow2", CONVERT("cluster_size=16384,extended_l2=on")},
      {"raw", "cp $raw $i"}}},
};

static bool is_traced(void)
{
    return g_getenv("QUORUMFS_TEST_TRACE") != NULL;
}

/* ---- Living -------------------------------------------------------------------------------- */

static void trace(const sweep *s, const char *what, uint64_t offset, uint64_t length)
{
    if (is_traced() && s->depth == 0)
        fprintf(stderr, "# %u: %s %" PRIu64 " +%" PRIu64 "\n", crash_points(), what,
                offset, length);
}

static void pick_range(sweep *s, uint64_t *ret_offset, uint64_t *ret_length)
{
    uint64_t offset = sweep_number(&s->seed, CRASH_DISK_SIZE);
    uint64_t length = 1 + sweep_number(&s->seed, 3000), unit = 1;
    if (sweep_number(&s->seed, 2))
        offset = offset % (12 << 10);
    switch (sweep_number(&s->seed, 4)) {
    case 0:
        unit = SECTOR;
        length = SECTOR * (1 + sweep_number(&s->seed, 12));
        break;
    case 1:
        unit = 4096;
        length = 4096 * (1 + sweep_number(&s->seed, 9));
        break;
    default:
        break;
    }
    *ret_offset = offset / unit * unit;
    *ret_length = MIN(length, CRASH_DISK_SIZE - *ret_offset);
}

static int change(sweep *s, unsigned kind)
{
    static const char *const names[] = {"write", "zeroes", "discard"};
    uint8_t data[WRITE_MAX];
    uint64_t offset, length;
    disk *d = s->c->disk;
    pick_range(s, &offset, &length);
    support_pattern(data, (size_t)length, offset, ++s->tag);
    disk_model_begin(s->model, kind == 0 ? data : NULL, offset, length);
    trace(s, names[kind], offset, length);
    int r = kind == 0   ? disk_write(d, offset, (size_t)length, data)
            : kind == 1 ? disk_write_zeroes(d, offset, length)
                        : disk_discard(d, offset, length);
    disk_model_end(s->model, r == 0);
    return r;
}

static int flush(sweep *s)
{
    trace(s, "flush", 0, 0);
    int r = disk_flush(s->c->disk);
    if (r == 0)
        disk_model_flushed(s->model);
    return r;
}

static void see(sweep *s)
{
    g_autofree uint8_t *content = sweep_read_disk(s, "in use");
    sweep_fine(s, "in use", disk_model_see(s->model, content, 0, CRASH_DISK_SIZE));
}

/* One replica at a time fails: another one only when all are in sync. */
static void arm(sweep *s)
{
    static const unsigned kinds[] = {CRASH_CHANGES, CRASH_CHANGES, CRASH_WRITE,
                                     CRASH_SYNC, CRASH_CHANGES | CRASH_READ};
    static const int errors[] = {EIO, EIO, ENOSPC};
    if (sweep_is_in_sync(s))
        s->victim = (unsigned)sweep_number(&s->seed, s->set->n);
    crash_fault fault = {.kinds = kinds[sweep_number(&s->seed, G_N_ELEMENTS(kinds))],
                         .at = 1 + (unsigned)sweep_number(&s->seed, 4),
                         .error = errors[sweep_number(&s->seed, G_N_ELEMENTS(errors))],
                         .for_ever = sweep_number(&s->seed, 3) == 0,
                         .tear = sweep_number(&s->seed, 2) * support_random(&s->seed),
                         .lose = sweep_number(&s->seed, 2) * support_random(&s->seed),
                         .files = 1u << s->victim};
    trace(s, "fault of replica, kinds", s->victim, fault.kinds);
    crash_set_fault(fault);
}

/* Whoever is out comes back, unless it still fails. */
static void bring_back(sweep *s)
{
    disk *d = s->c->disk;
    trace(s, "rejoin", 0, 0);
    for (unsigned i = 0; i < d->n; i++) {
        g_autoptr(GError) error = NULL;
        replica_state now = d->replicas[i].state;
        if (now == REPLICA_FAILED || now == REPLICA_HUNG)
            disk_rejoin_try(d, i, &error);
        if (error)
            trace(s, error->message, 0, 0);
    }
}

static void close_and_open(sweep *s)
{
    trace(s, "close and open", 0, 0);
    crash_set_fault((crash_fault){0});
    if (!sweep_fine(s, "in use", crash_disk_close(s->c)))
        return;
    disk_model_flushed(s->model);
    sweep_fine(s, "in use", crash_disk_open(s->c));
}

/* The daemon is killed, or the power fails; life goes on with what that leaves. The old disk
 * stays in memory, as it would in no other way: nothing of it is to be carried out. */
static void die(sweep *s)
{
    sweep_outcome expected;
    uint8_t *raw[CRASH_DISK_N] = {NULL};
    g_autofree char *name = g_strdup_printf("life-%u", ++s->kills);
    trace(s, "crash", 0, 0);
    s->c = crash_disk_save(s->c, name, &s->choices);
    crash_disk_watch(s->c);
    if (!sweep_read_replicas(s, "killed", raw) ||
        !sweep_fine(s, "killed", crash_disk_open(s->c)) ||
        !sweep_foresee(s, raw, &expected) ||
        !sweep_fine(s, "killed",
                    disk_model_crashed(s->model, expected.content, CRASH_DISK_SIZE)))
        return;
    disk_model_free(s->model);
    s->model = sweep_model_after(s, raw, &expected);
    sweep_free_replicas(raw);
    crash_set_hook(sweep_at_point, s);
}

typedef enum request {
    REQUEST_WRITE,
    REQUEST_ZEROES,
    REQUEST_DISCARD,
    REQUEST_FLUSH,
    REQUEST_SEE,
    REQUEST_WORK,
    REQUEST_TIDY,
    REQUEST_FAULT,
    REQUEST_HEAL,
    REQUEST_REJOIN,
    REQUEST_REOPEN,
    REQUEST_DIE,
} request;

static void carry_out(sweep *s, request what)
{
    int r = 0;
    switch (what) {
    case REQUEST_WRITE:
    case REQUEST_ZEROES:
    case REQUEST_DISCARD:
        r = change(s, what);
        break;
    case REQUEST_FLUSH:
        r = flush(s);
        break;
    case REQUEST_SEE:
        see(s);
        break;
    case REQUEST_WORK:
        trace(s, "work", 0, 0);
        for (uint64_t steps = sweep_number(&s->seed, 12); steps > 0; steps--)
            disk_worker_step(s->c->disk);
        break;
    case REQUEST_TIDY:
        trace(s, "tidy", 0, 0);
        disk_state_tidy(s->c->disk);
        break;
    case REQUEST_FAULT:
        arm(s);
        break;
    case REQUEST_HEAL:
        trace(s, "heal", 0, 0);
        crash_set_fault((crash_fault){0});
        crash_disk_wait(20 * G_USEC_PER_SEC);
        break;
    case REQUEST_REJOIN:
        bring_back(s);
        break;
    case REQUEST_REOPEN:
        close_and_open(s);
        break;
    case REQUEST_DIE:
        die(s);
        break;
    }
    sweep_fine(s, "W2: one replica fails, the others suffice",
               r ? g_strdup_printf("request %u: %s", what, g_strerror(-r)) : NULL);
}

static void live(sweep *s, unsigned requests, bool faults)
{
    static const uint8_t shares[] = {38, 9, 9, 14, 3, 8, 5, 5, 3, 2, 3, 1};
    for (unsigned k = 0; k < requests && !s->report->wrong[0]; k++) {
        unsigned pick = (unsigned)sweep_number(&s->seed, 100), what = 0;
        while (pick >= shares[what])
            pick -= shares[what++];
        if (faults || what <= REQUEST_FLUSH)
            carry_out(s, (request)what);
    }
}

static void use(sweep *s)
{
    live(s, 6, false);
}

static void live_once(sweep *s)
{
    uint8_t content[CRASH_DISK_SIZE];
    support_run("rm -rf '%s'/*", crash_disk_root());
    memset(content, 0, sizeof content);
    support_pattern(content, 100 << 10, 0, s->life);
    s->c = crash_disk_make(s->set, "life-0", content, sizeof content);
    s->model = disk_model_new(content, sizeof content, sizeof content);
    if (!sweep_fine(s, "made", crash_disk_open(s->c)) ||
        !sweep_fine(s, "made", crash_disk_close(s->c)))
        return;
    crash_disk_watch(s->c);
    crash_set_hook(sweep_at_point, s);
    if (!sweep_fine(s, "made", crash_disk_open(s->c)))
        return;
    live(s, REQUESTS, true);
    if (s->report->wrong[0])
        return;
    crash_set_fault((crash_fault){0});
    sweep_fine(s, "in the end", crash_disk_close(s->c));
}

static sweep_report *sweep_lives(const crash_set *set, unsigned lives, unsigned one_in)
{
    bool thorough = g_getenv("QUORUMFS_TEST_THOROUGH") != NULL;
    uint64_t seed = support_seed();
    sweep_report *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(shared != MAP_FAILED);
    crash_disk_root();
    for (unsigned k = 0; k < lives * (thorough ? 40 : 1) && !shared->wrong[0]; k++) {
        sweep s = {.set = set,
                   .report = shared,
                   .life = seed + k,
                   .seed = (seed + k) * 0x9e3779b97f4a7c15 | 1,
                   .choices = (seed + k) * 0xd1342543de82ef95 | 1,
                   .use = use,
                   .one_in = one_in,
                   .per_point = thorough ? 6 : 2,
                   .qemu_one_in = thorough ? 50 : 150};
        sweep_fork(&s, live_once);
    }
    crash_disk_clean();
    fprintf(
        stderr,
        "# %s: %u crash states, %u of crashes while they were recovered; something to "
        "decide in %u, a stale replica in %u; QEMU looked at %u\n",
        set->name, shared->states, shared->deep, shared->decided, shared->stale,
        shared->qemu);
    return shared;
}

static void expect_sound(const crash_set *set, unsigned lives, unsigned one_in)
{
    sweep_report *r = sweep_lives(set, lives, one_in);
    cr_assert(!r->wrong[0], "%s", r->wrong);
    cr_assert_gt(r->decided, 0);
    cr_assert_gt(r->stale, 0);
    munmap(r, sizeof *r);
}

Test(crash_disk, W6_raw_replicas)
{
    expect_sound(&sets[0], 12, 6);
}

Test(crash_disk, W6_qcow2_replicas)
{
    expect_sound(&sets[1], 6, 8);
}

Test(crash_disk, W6_replicas_of_several_kinds)
{
    expect_sound(&sets[2], 8, 8);
}

Test(crash_disk, W6_five_replicas)
{
    expect_sound(&sets[3], 4, 8);
}

/* ---- The sweep notices when a sync is left out --------------------------------------------- */

static void expect_noticed(crash_mutant mutant, const char *name)
{
    crash_disk_set_mutant(mutant);
    sweep_report *r = sweep_lives(&sets[0], 200, 3);
    crash_disk_set_mutant(CRASH_MUTANT_NONE);
    cr_assert(r->wrong[0], "without %s nothing is lost", name);
    fprintf(stderr, "# without %s: %s\n", name, r->wrong);
    munmap(r, sizeof *r);
}

Test(crash_disk, W5_needs_the_sync_of_the_intent)
{
    expect_noticed(CRASH_MUTANT_INTENT, "the intent's sync");
}

Test(crash_disk, W2_needs_the_sync_of_the_stale_mark)
{
    expect_noticed(CRASH_MUTANT_STALE, "the stale mark's sync");
}

Test(crash_disk, W6_needs_the_sync_of_the_journal)
{
    expect_noticed(CRASH_MUTANT_JOURNAL, "the journal's sync");
}

Test(crash_disk, W4_needs_the_flush_of_all_replicas)
{
    expect_noticed(CRASH_MUTANT_FLUSH, "the replicas' flush");
}

Test(crash_disk, W5_needs_the_flush_of_each_replica)
{
    expect_noticed(CRASH_MUTANT_FLUSH_ONE, "one replica's flush");
}
