/*
 * test-state-crash.c: the state file under power failures, failing calls and rot.
 *
 * A model knows what was reported durable and what the operation under way may have changed
 * already. At each point at which the power may fail several crash states are opened as
 * the next daemon would, and must lie between the two (W2, W5, W6).
 */
#include "quorum/state-internal.h"
#include "tests/crash-file.h"
#include "tests/state-rig.h"
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BITS_MAX 8192u

typedef struct model {
    bool clean;
    uint64_t generation, size;
    state_replica_state states[3];
    bool dirty[BITS_MAX], stale[3][BITS_MAX];
} model;

static struct {
    model old, new; /* reported durable; what the call under way is to make of it */
    char *dir, *peek_dir, *peek_path;
    uint64_t seed;
    unsigned looks, states; /* per point */
} rig;

/* `since`: the generation of a call that failed before it was repeated counted up too. */
static bool has_facts(state *s, const model *m, uint64_t since)
{
    uint64_t generation = state_generation(s);
    bool same = generation >= MIN(since, m->generation) && generation <= m->generation &&
                state_was_clean(s) == m->clean;
    for (unsigned i = 0; i < 3; i++)
        same = same && rig_state(s, i) == m->states[i];
    return same;
}

static void check_bits(const state *s, const state_bitmap *bitmap, const bool *old,
                       const bool *new)
{
    for (uint32_t bit = 0; bit < bitmap->bits; bit++) {
        bool is = state_has_bit(bitmap, bit);
        cr_assert(is || !(old[bit] && new[bit]), "bitmap %u: bit %u is lost",
                  bitmap->index, bit);
        cr_assert(!is || old[bit] || new[bit], "bitmap %u: bit %u comes from nowhere",
                  bitmap->index, bit);
    }
    (void)s;
}

static void check_state(const char *what)
{
    state_shape shape = rig_shape();
    shape.size = rig.new.size;
    state *s = rig_open(rig.peek_dir, &shape);
    cr_assert(has_facts(s, &rig.old, UINT64_MAX) ||
                  has_facts(s, &rig.new, rig.old.generation + 1),
              "%s: neither the old nor the new facts", what);
    check_bits(s, &s->bitmaps[0], rig.old.dirty, rig.new.dirty);
    for (unsigned i = 0; i < 3; i++)
        check_bits(s, &s->bitmaps[1 + i], rig.old.stale[i], rig.new.stale[i]);
    state_close(s);
    rig.looks++;
}

static void look(crash_choice choice, const char *what)
{
    crash_state_save(0, rig.peek_path, choice, &rig.seed);
    check_state(what);
}

static void on_point(void *user, crash_kind kind)
{
    (void)user;
    (void)kind;
    look(CRASH_DROP_ALL, "nothing kept");
    look(CRASH_KEEP_ALL, "all kept");
    for (unsigned k = 0; k < rig.states; k++)
        look(CRASH_SOME, "some kept");
}

/* In memory where there is such a directory: thousands of files are made and synced there. */
static void make_dirs(void)
{
    char shm[] = "/dev/shm/quorumfs-test-XXXXXX";
    rig.peek_dir = mkdtemp(shm) ? g_strdup(shm) : rig_dir("peek");
    rig.peek_path = state_path(rig.peek_dir, "disk");
    rig.dir = g_build_filename(rig.peek_dir, "state", NULL);
    cr_assert_eq(g_mkdir(rig.dir, 0700), 0);
}

/* A state in its first session, all of it stable, watched. */
static state *life_start(unsigned states)
{
    state_shape shape = rig_shape();
    make_dirs();
    rig.seed = support_seed();
    rig.states = states;
    state *s = rig_open(rig.dir, &shape);
    rig_begin_session(s);
    rig.old = (model){.generation = 1, .size = RIG_SIZE};
    rig.new = rig.old;
    crash_watch(s->fd);
    crash_set_hook(on_point, NULL);
    return s;
}

static void life_stop(state *s)
{
    crash_set_hook(NULL, NULL);
    state_close(s);
    crash_reset();
    support_run("rm -rf '%s'", rig.peek_dir);
    g_free(rig.dir);
    g_free(rig.peek_dir);
    g_free(rig.peek_path);
}

/* ---- Operations, on the model and on the state ------------------------------------------ */

static void model_set(bool *bits, uint64_t region, uint64_t offset, uint64_t length,
                      bool value)
{
    for (uint64_t k = offset / region; k <= (offset + length - 1) / region; k++)
        bits[k] = value;
}

static int do_write(state *s, uint64_t offset, uint64_t length)
{
    model_set(rig.new.dirty, RIG_INTENT, offset, length, true);
    int result = state_write_begin(s, offset, length);
    if (result == 0)
        state_write_end(s, offset, length, true);
    return result;
}

static int do_clear(state *s)
{
    state_collection *collection = state_collect(s);
    if (!collection)
        return 0;
    memset(rig.new.dirty, 0, sizeof rig.new.dirty);
    int64_t cleared = state_clear(s, collection);
    return cleared < 0 ? (int)cleared : 0;
}

static int do_mark(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    model_set(rig.new.stale[i], RIG_STALE, offset, length, true);
    return state_mark_stale(s, i, offset, length);
}

static int do_copy(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    model_set(rig.new.stale[i], RIG_STALE, offset, length, false);
    state_stale_copied(s, i, offset, length);
    return state_stale_clear(s, i);
}

static int do_replica(state *s, unsigned i, state_replica_state to)
{
    state_replica replica = {.state = to};
    rig.new.states[i] = to;
    return state_set_replica(s, i, &replica);
}

static int do_session(state *s, bool begin)
{
    identity none[3] = {{0}};
    rig.new.clean = !begin;
    rig.new.generation += begin;
    return begin ? state_begin_session(s, none) : state_end_session(s, none);
}

static int do_resize(state *s, uint64_t size)
{
    state_shape shape = rig_shape();
    shape.size = size;
    rig.new.size = size;
    return state_reshape(s, &shape, NULL);
}

/* The k-th step of a life; -1: over. */
static int step(state *s, unsigned k)
{
    switch (k) {
    case 0:
        return do_write(s, 5, 1);
    case 1:
        return do_write(s, 3 * RIG_INTENT, 9 * RIG_INTENT);
    case 2:
        return do_clear(s);
    case 3:
        return do_replica(s, 2, STATE_FAILED);
    case 4:
        return do_write(s, RIG_SIZE - 600, 600);
    case 5: /* both sectors of the bitmap */
        return do_mark(s, 2, 3960 * RIG_STALE, 20 * RIG_STALE);
    case 6:
        return do_copy(s, 2, 3967 * RIG_STALE, 2 * RIG_STALE);
    case 7:
        return do_resize(s, RIG_SIZE + 2 * RIG_INTENT);
    case 8:
        return do_mark(s, 1, 0, 1);
    case 9:
        return do_session(s, false);
    case 10:
        return do_session(s, true);
    case 11:
        return do_resize(s, RIG_SIZE + 5 * RIG_INTENT);
    case 12:
        return do_replica(s, 2, STATE_IN_SYNC);
    case 13:
        return do_mark(s, 1, 0, RIG_SIZE);
    default:
        return -1;
    }
}

/* It may have been done or not, and later be done in the shadow of the next one. */
static void settle(int result)
{
    if (result == 0)
        rig.old = rig.new;
}

Test(state_crash, W2_W5_every_crash_point_leaves_old_or_new)
{
    state *s = life_start(6);
    int result;
    for (unsigned k = 0; (result = step(s, k)) == 0; k++)
        settle(result);
    cr_assert_eq(result, -1);
    cr_assert_gt(crash_points(), 40);
    cr_assert_gt(rig.looks, 300);
    on_point(NULL, CRASH_SYNC);
    life_stop(s);
}

/* The at-th write or sync fails, torn. What was promised before is still there at every
 * later point, and when the call is repeated it succeeds and is durable. */
static bool run_with_fault(unsigned kinds, unsigned at)
{
    state *s = life_start(2);
    crash_set_fault((crash_fault){.kinds = kinds, .at = at, .error = EIO, .tear = at});
    for (unsigned k = 0;; k++) {
        int result = step(s, k);
        if (result == -1)
            break;
        if (result == -EIO) {
            on_point(NULL, CRASH_SYNC);
            result = step(s, k);
            rig.new.generation = state_generation(s);
            if (result == 0) /* a failed clear has nothing left to clear, but to write */
                result = do_replica(s, 0, STATE_IN_SYNC);
        }
        cr_assert_eq(result, 0, "step %u, fault %u: %d", k, at, result);
        settle(result);
        on_point(NULL, CRASH_SYNC);
    }
    bool struck = crash_fault_hits() > 0;
    life_stop(s);
    return struck;
}

Test(state_crash, W2_W5_a_failed_call_promises_nothing_and_can_be_repeated)
{
    unsigned writes = 1, syncs = 1;
    while (run_with_fault(CRASH_WRITE, writes))
        writes++;
    while (run_with_fault(CRASH_SYNC, syncs))
        syncs++;
    cr_assert_gt(writes, 25);
    cr_assert_gt(syncs, 15);
}

/* Whichever call of a reshape fails: the old shape goes on, and what is marked in it from
 * then on is what the next open finds, though a slot may lead to the new area already. */
static bool run_with_failed_reshape(unsigned at, unsigned slot)
{
    state *s = life_start(6);
    crash_set_hook(NULL, NULL);
    if (s->durable_slot != slot)
        cr_assert_eq(do_replica(s, 0, STATE_IN_SYNC), 0);
    crash_set_fault(
        (crash_fault){.kinds = CRASH_WRITE | CRASH_SYNC, .at = at, .error = EIO});
    int result = do_resize(s, RIG_SIZE + 5 * RIG_INTENT);
    bool struck = crash_fault_hits() > 0;
    if (result < 0) {
        rig.new.size = rig.old.size;
        crash_set_fault((crash_fault){0});
        cr_assert_eq(do_write(s, 5, 1), 0);
        settle(0);
        on_point(NULL, CRASH_SYNC);
        cr_assert_eq(do_mark(s, 1, 5, 1), 0);
        settle(0);
        on_point(NULL, CRASH_SYNC);
    }
    life_stop(s);
    return struck;
}

Test(state_crash, W5_a_failed_reshape_leaves_the_old_one_in_force)
{
    unsigned at = 1;
    while (run_with_failed_reshape(at, 0) && run_with_failed_reshape(at, 1))
        at++;
    cr_assert_gt(at, 5);
}

Test(state_crash, W5_what_is_set_needs_no_call)
{
    state *s = life_start(0);
    cr_assert_eq(do_write(s, 5, 1), 0);
    cr_assert_eq(do_mark(s, 1, 5, 1), 0);
    settle(0);
    unsigned points = crash_points();
    cr_assert_eq(do_write(s, 7, 100), 0);
    cr_assert_eq(do_mark(s, 1, 7, 100), 0);
    cr_assert_eq(crash_points(), points);
    life_stop(s);
}

/* What a daemon wrote that was killed before its sync is in the page cache only. */
Test(state_crash, W5_what_is_read_is_stable_before_it_counts)
{
    state_shape shape = rig_shape();
    g_autofree char *dir = rig_dir("state"), *path = state_path(dir, "disk");
    state_close(rig_open(dir, &shape));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte = 1;
    crash_watch(fd);
    cr_assert_eq(file_write_full(fd, &byte, 1, STATE_AREA_MIN), 0);
    close(fd);
    cr_assert_eq(crash_queued(0), 1);
    state *s = rig_open(dir, &shape);
    cr_assert_eq(crash_queued(0), 0);
    state_close(s);
    crash_reset();
}

/* The file that state_open makes: under its name only when it is stable. */
static unsigned made_looks;
static void on_making(void *user, crash_kind kind)
{
    g_autofree char *path = state_path(rig.dir, "disk");
    (void)user;
    (void)kind;
    cr_assert_neq(access(path, F_OK), 0);
    made_looks++;
}

Test(state_crash, O5_a_new_file_is_whole_when_it_has_its_name)
{
    state_shape shape = rig_shape();
    make_dirs();
    rig.old = rig.new = (model){.clean = true, .size = RIG_SIZE};
    rig.seed = support_seed();
    g_autofree char *fresh = g_strdup_printf("%s/disk.state.new", rig.dir);
    support_save(fresh, "left over by a crash", 20);
    int fd = open(fresh, O_RDWR | O_CLOEXEC);
    crash_watch(fd);
    close(fd);
    crash_set_hook(on_making, NULL);
    state *s = rig_open(rig.dir, &shape);
    cr_assert_gt(made_looks, 4);
    rig.states = 10;
    on_point(NULL, CRASH_SYNC);
    life_stop(s);
}

/* Random lives against the model, each with a crash and a reopening between sessions. */
static int random_step(state *s)
{
    uint64_t offset = support_random(&rig.seed) % (RIG_SIZE - 1);
    uint64_t length = 1 + support_random(&rig.seed) % (RIG_SIZE - offset);
    unsigned i = (unsigned)(support_random(&rig.seed) % 3);
    length = support_random(&rig.seed) % 4 ? MIN(length, 3 * RIG_INTENT) : length;
    switch (support_random(&rig.seed) % 8) {
    case 0:
        return do_clear(s);
    case 1:
        return do_mark(s, i, offset, length);
    case 2:
        return do_copy(s, i, 0, RIG_SIZE);
    case 3:
        return do_replica(s, i, (state_replica_state)(support_random(&rig.seed) % 5));
    case 4:
        return do_session(s, support_random(&rig.seed) % 2);
    default:
        return do_write(s, offset, length);
    }
}

Test(state_crash, W6_random_lives_read_back_as_the_model)
{
    state *s = life_start(1);
    state_shape shape = rig_shape();
    for (unsigned life = 0; life < 12; life++) {
        for (unsigned k = 0; k < 12; k++) {
            int result = random_step(s);
            cr_assert_eq(result, 0);
            settle(result);
        }
        state_close(s);
        crash_reset(); /* its own descriptor has the lock too */
        s = rig_open(rig.dir, &shape);
        crash_watch(s->fd);
        crash_set_hook(on_point, NULL);
        check_bits(s, &s->bitmaps[0], rig.old.dirty, rig.old.dirty);
        cr_assert(has_facts(s, &rig.old, UINT64_MAX));
        cr_assert_eq(state_is_unreconciled(s, 0, RIG_SIZE),
                     !rig.old.clean && state_dirty_bytes(s) > 0);
        state_reconciled(s, 0, RIG_SIZE);
    }
    life_stop(s);
}

/* ---- Exact ranges ----------------------------------------------------------------------- */

static rangeset promised; /* of replica 1, all in its region 3 */
#define EXACT_AT (3 * RIG_STALE)

static void check_promised(crash_choice choice)
{
    state_shape shape = rig_shape();
    uint64_t offset, length, from = 0;
    rangeset told = {0};
    crash_state_save(0, rig.peek_path, choice, &rig.seed);
    state *s = rig_open(rig.peek_dir, &shape);
    for (; state_next_stale(s, 1, from, &offset, &length); from = offset + length)
        rangeset_add(&told, offset, length);
    state_close(s);
    for (unsigned k = 0; k < rangeset_count(&promised); k++) {
        rangeset_range range = rangeset_get(&promised, k);
        cr_assert_eq(rangeset_remove(&told, range.start, range.end - range.start),
                     range.end - range.start);
    }
    rangeset_clear(&told);
}

static void on_exact_point(void *user, crash_kind kind)
{
    (void)user;
    (void)kind;
    check_promised(CRASH_DROP_ALL);
    check_promised(CRASH_KEEP_ALL);
    for (unsigned k = 0; k < rig.states; k++)
        check_promised(CRASH_SOME);
}

static void miss_sector(state *s, unsigned sector)
{
    uint64_t offset = EXACT_AT + (uint64_t)sector * VOTE_SECTOR;
    if (state_mark_stale(s, 1, offset, VOTE_SECTOR) != 0)
        cr_assert_eq(state_mark_stale(s, 1, offset, VOTE_SECTOR), 0);
    rangeset_add(&promised, offset, VOTE_SECTOR);
    on_exact_point(NULL, CRASH_SYNC);
}

static void tell_exactly(state *s)
{
    cr_assert(state_set_exact(s, 1, EXACT_AT, &promised));
    if (state_settle(s) != 0)
        cr_assert_eq(state_settle(s), 0);
}

/* The at-th write or sync fails, and is repeated. */
static bool run_exact(unsigned at)
{
    state *s = life_start(2);
    crash_set_hook(on_exact_point, NULL);
    crash_set_fault((crash_fault){
        .kinds = CRASH_WRITE | CRASH_SYNC, .at = at, .error = EIO, .tear = at});
    miss_sector(s, 0);
    tell_exactly(s);
    miss_sector(s, 2);
    miss_sector(s, 5);
    miss_sector(s, 5);
    state_stale_copied(s, 1, EXACT_AT, RIG_STALE);
    rangeset_clear(&promised);
    state_stale_clear(s, 1);
    miss_sector(s, 6);
    tell_exactly(s);
    miss_sector(s, 1);
    uint64_t offset, length;
    state *after = rig_peek_as_is(rig.dir);
    cr_assert(state_next_stale(after, 1, 0, &offset, &length));
    cr_assert_eq(offset, EXACT_AT + VOTE_SECTOR); /* and no more than was missed */
    cr_assert_eq(length, VOTE_SECTOR);
    state_close(after);
    bool struck = crash_fault_hits() > 0;
    rangeset_clear(&promised);
    life_stop(s);
    return struck;
}

Test(state_crash, W2_exact_ranges_are_never_less_than_was_promised)
{
    unsigned at = 1;
    while (run_exact(at))
        at++;
    cr_assert_gt(at, 20);
}

/* ---- Rot ----------------------------------------------------------------------------- */

static bool has_all(const state_bitmap *bitmap, const bool *bits)
{
    for (uint32_t bit = 0; bit < bitmap->bits; bit++)
        if (bits[bit] && !state_has_bit(bitmap, bit))
            return false;
    return true;
}

/* One flipped bit anywhere: the same facts, and no bit less than before. */
static void check_rot(const uint8_t *bytes, size_t length, size_t at)
{
    g_autofree uint8_t *rotten = g_memdup2(bytes, length);
    state_shape shape = rig_shape();
    rotten[at] ^= (uint8_t)(1u << support_random(&rig.seed) % 8);
    support_save(rig.peek_path, rotten, length);
    state *s = rig_open(rig.peek_dir, &shape);
    bool in_area = at >= STATE_AREA_MIN;
    cr_assert(has_facts(s, &rig.old, UINT64_MAX), "byte %zu", at);
    cr_assert(has_all(&s->bitmaps[0], rig.old.dirty), "byte %zu", at);
    for (unsigned i = 0; i < 3; i++)
        cr_assert(has_all(&s->bitmaps[1 + i], rig.old.stale[i]), "byte %zu", at);
    uint64_t set = state_dirty_bytes(s) + state_stale_bytes(s, 0);
    cr_assert_eq(set > 8 * RIG_INTENT, in_area && at < STATE_AREA_MIN + 3 * STATE_SECTOR,
                 "byte %zu", at);
    state_close(s);
}

Test(state_crash, O5_a_flipped_byte_is_noticed_and_loses_nothing)
{
    state *s = life_start(0);
    crash_set_hook(NULL, NULL);
    cr_assert_eq(do_write(s, 0, RIG_INTENT), 0);
    cr_assert_eq(do_mark(s, 1, 9 * RIG_STALE, 1), 0);
    cr_assert_eq(do_replica(s, 2, STATE_FAILED), 0);
    settle(0);
    g_autofree char *path = state_path(rig.dir, "disk");
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    cr_assert_eq(length, STATE_AREA_MIN + 7 * STATE_SECTOR);
    for (size_t at = 0; at < 4096; at += 1 + (at >= 200) * 13) {
        check_rot(bytes, length, at);
        check_rot(bytes, length, STATE_SLOT_MAX + at);
    }
    for (size_t at = STATE_AREA_MIN; at < length; at += 5)
        check_rot(bytes, length, at);
    life_stop(s);
}

/* A sector that is whole, but of another file. */
Test(state_crash, O5_a_foreign_sector_counts_as_all_set)
{
    state_shape shape = rig_shape();
    g_autofree char *dir = rig_dir("state"), *other = rig_dir("other");
    g_autofree char *path = state_path(dir, "disk"), *from = state_path(other, "disk");
    size_t length;
    state_close(rig_open(dir, &shape));
    state_close(rig_open(other, &shape));
    g_autofree uint8_t *bytes = support_load(from, &length);
    support_poke(path, STATE_AREA_MIN, bytes + STATE_AREA_MIN, STATE_SECTOR);
    state *s = rig_open(dir, &shape);
    cr_assert_eq(state_dirty_bytes(s), RIG_SIZE);
    state_close(s);
}
