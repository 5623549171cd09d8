/*
 * test-state-exact.c: exact ranges within stale regions (W2), against a model of sectors.
 */
#include "quorum/journal.h"
#include "quorum/state-internal.h"
#include "tests/state-rig.h"
#include <errno.h>

#define SECTORS (RIG_STALE / VOTE_SECTOR) /* of a region */
#define REGIONS 40u
#define SIZE    (REGIONS * RIG_STALE - 3 * VOTE_SECTOR)
#define COUNT   (SIZE / VOTE_SECTOR)

typedef struct model {
    bool bit[REGIONS], exact[REGIONS], missed[REGIONS * SECTORS];
} model;

static state_shape small_shape(void)
{
    state_shape shape = rig_shape();
    shape.size = SIZE;
    return shape;
}

static state *small_start(char **ret_dir)
{
    state_shape shape = small_shape();
    *ret_dir = rig_dir("state");
    state *s = rig_open(*ret_dir, &shape);
    rig_begin_session(s);
    return s;
}

static state *small_peek(const char *dir)
{
    state_shape shape = small_shape();
    return rig_peek(dir, &shape);
}

static unsigned region_sectors(unsigned region)
{
    return MIN(SECTORS, COUNT - region * SECTORS);
}

static void check(state *s, unsigned i, const model *m)
{
    uint64_t offset = 0, length = 0, from = 0;
    bool found = state_next_stale(s, i, 0, &offset, &length);
    for (unsigned k = 0; k < COUNT; k++) {
        uint64_t at = (uint64_t)k * VOTE_SECTOR;
        bool is = m->bit[k / SECTORS] && (!m->exact[k / SECTORS] || m->missed[k]);
        while (found && offset + length <= at) {
            from = offset + length;
            found = state_next_stale(s, i, from, &offset, &length);
            cr_assert(!found || offset >= from);
        }
        cr_assert_eq(is, found && offset <= at, "replica %u, sector %u", i, k);
    }
}

static void model_mark(model *m, unsigned first, unsigned count)
{
    for (unsigned k = first; k < first + count; k++) {
        unsigned region = k / SECTORS, all = 0;
        if (!m->bit[region])
            m->exact[region] = false;
        m->bit[region] = true;
        m->missed[k] = true;
        for (unsigned j = 0; j < region_sectors(region); j++)
            all += m->missed[region * SECTORS + j];
        if (all == region_sectors(region))
            m->exact[region] = false;
    }
}

static void do_mark(state *s, unsigned i, model *m, uint64_t *seed)
{
    unsigned first = (unsigned)(support_random(seed) % COUNT);
    unsigned most = support_random(seed) % 8 == 0 ? COUNT : 5;
    unsigned count = 1 + (unsigned)(support_random(seed) % MIN(most, COUNT - first));
    cr_assert_eq(state_mark_stale(s, i, (uint64_t)first * VOTE_SECTOR,
                                  (uint64_t)count * VOTE_SECTOR),
                 0);
    model_mark(m, first, count);
}

/* The model says what it missed of a region since its bit was set. */
static void do_exact(state *s, unsigned i, model *m, uint64_t *seed)
{
    unsigned region = (unsigned)(support_random(seed) % REGIONS), all = 0;
    rangeset missed = {0};
    for (unsigned k = 0; k < region_sectors(region); k++) {
        all += m->missed[region * SECTORS + k];
        if (m->missed[region * SECTORS + k])
            rangeset_add(&missed, (region * SECTORS + k) * (uint64_t)VOTE_SECTOR,
                         VOTE_SECTOR);
    }
    bool worth = m->bit[region] && !m->exact[region] && all < region_sectors(region);
    cr_assert_eq(state_set_exact(s, i, (uint64_t)region * RIG_STALE + 5, &missed), worth);
    m->exact[region] |= worth;
    rangeset_clear(&missed);
}

static void do_copy(state *s, unsigned i, model *m, uint64_t *seed)
{
    unsigned region = (unsigned)(support_random(seed) % REGIONS);
    state_stale_copied(s, i, (uint64_t)region * RIG_STALE,
                       region_sectors(region) * VOTE_SECTOR);
    cr_assert_eq(state_stale_clear(s, i), 0);
    m->bit[region] = m->exact[region] = false;
    memset(m->missed + region * SECTORS, 0, SECTORS);
}

Test(state_exact, W2_random_lives_read_back_as_the_model)
{
    g_autofree char *dir = NULL;
    g_autofree model *models = g_new0(model, 3);
    uint64_t seed = support_seed();
    state *s = small_start(&dir);
    for (unsigned step = 0; step < 1500; step++) {
        unsigned i = (unsigned)(support_random(&seed) % 3);
        unsigned what = (unsigned)(support_random(&seed) % 8);
        if (what < 3)
            do_mark(s, i, &models[i], &seed);
        else if (what < 6)
            do_exact(s, i, &models[i], &seed);
        else
            do_copy(s, i, &models[i], &seed);
        check(s, i, &models[i]);
        if (step % 50 != 0)
            continue;
        cr_assert_eq(state_settle(s), 0);
        state *after = small_peek(dir);
        for (unsigned k = 0; k < 3; k++)
            check(after, k, &models[k]);
        state_close(after);
    }
    state_close(s);
}

Test(state_exact, W2_a_region_is_crowded_when_too_few_missed_nothing_of_it)
{
    g_autofree char *dir = NULL;
    state *s = small_start(&dir);
    cr_assert_eq(state_mark_stale(s, 1, RIG_STALE, 1), 0);
    cr_assert(!state_is_crowded(s, RIG_STALE));
    cr_assert_eq(state_mark_stale(s, 2, 2 * RIG_STALE - 1, 1), 0);
    cr_assert(state_is_crowded(s, RIG_STALE));
    cr_assert(state_is_crowded(s, 2 * RIG_STALE - 1));
    cr_assert(!state_is_crowded(s, 2 * RIG_STALE));
    rig_set(s, 0, STATE_FAILED);
    cr_assert(!state_is_crowded(s, 0));
    rig_set(s, 2, STATE_STALE_WHOLE);
    cr_assert(state_is_crowded(s, 0));
    state_close(s);
}

Test(state_exact, O5_ranges_follow_their_replica_and_end_with_the_disk)
{
    g_autofree char *dir = NULL;
    static const char *const names[] = {"c", "b", "a"};
    static const char *const sources[] = {"/srv/c.raw", "/srv/b.raw", "/srv/a.raw"};
    state *s = small_start(&dir);
    rangeset missed = {0};
    uint64_t offset, length, last = (REGIONS - 1) * RIG_STALE;
    rangeset_add(&missed, last, 4 * VOTE_SECTOR);
    cr_assert_eq(state_mark_stale(s, 0, last, 4 * VOTE_SECTOR), 0);
    cr_assert(state_set_exact(s, 0, last, &missed));
    rangeset_clear(&missed);
    state_shape shape = small_shape();
    shape.names = names;
    shape.sources = sources;
    shape.size = last + 2 * VOTE_SECTOR;
    cr_assert_eq(state_reshape(s, &shape, (int[]){2, 1, 0}), 0);
    cr_assert(!state_next_stale(s, 0, 0, &offset, &length));
    shape.size = SIZE;
    cr_assert_eq(state_reshape(s, &shape, NULL), 0);
    state *after = rig_peek(dir, &shape);
    cr_assert(state_next_stale(after, 2, 0, &offset, &length));
    cr_assert_eq(offset, last);
    cr_assert_eq(length, 2 * VOTE_SECTOR);
    state_close(after);
    shape.stale_region = 2 * RIG_STALE; /* then they are as large as that again */
    cr_assert_eq(state_reshape(s, &shape, NULL), 0);
    cr_assert(state_next_stale(s, 2, 0, &offset, &length));
    cr_assert_eq(length, SIZE - offset);
    cr_assert_gt(length, 4 * VOTE_SECTOR);
    state_close(s);
}

/* 1024 ranges are all that there is room for: what does not fit is told by its bit. */
Test(state_exact, W2_where_there_is_no_room_the_region_counts)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    dir = rig_dir("state");
    state *s = rig_open(dir, &shape);
    rangeset missed = {0};
    uint64_t offset, length;
    rig_begin_session(s);
    for (unsigned k = 0; k < STATE_EXACT_MAX; k++) {
        uint64_t at = (uint64_t)k * RIG_STALE + VOTE_SECTOR;
        cr_assert_eq(state_mark_stale(s, 1, at, VOTE_SECTOR), 0);
        rangeset_add(&missed, at, VOTE_SECTOR);
        cr_assert(state_set_exact(s, 1, at, &missed));
        rangeset_clear(&missed);
    }
    rangeset_add(&missed, 0, VOTE_SECTOR);
    cr_assert_eq(state_mark_stale(s, 2, 0, VOTE_SECTOR), 0);
    cr_assert(!state_set_exact(s, 2, 0, &missed));
    cr_assert_eq(state_mark_stale(s, 1, 3 * VOTE_SECTOR, VOTE_SECTOR), 0);
    state *after = rig_peek_as_is(dir);
    cr_assert(state_next_stale(after, 2, 0, &offset, &length));
    cr_assert_eq(length, RIG_STALE);
    cr_assert(state_next_stale(after, 1, 0, &offset, &length));
    cr_assert_eq(offset, 0); /* its second range did not fit */
    cr_assert_eq(length, RIG_STALE);
    cr_assert(state_next_stale(after, 1, RIG_STALE, &offset, &length));
    cr_assert_eq(offset, RIG_STALE + VOTE_SECTOR);
    cr_assert_eq(length, VOTE_SECTOR);
    state_close(after);
    cr_assert(state_set_exact(s, 2, 0, &missed)); /* there is room again */
    rangeset_clear(&missed);
    state_close(s);
}

/* Makes both slots of a file what the first version wrote: the same, without a list. */
static void make_first_version(const char *path)
{
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    for (unsigned k = 0; k < 2; k++) {
        uint8_t *slot = bytes + (size_t)k * STATE_SLOT_MAX;
        slot[8] = 1;
        memset(slot + 16, 0, 32);
        journal_digest(slot, 4096, slot + 16);
    }
    support_save(path, bytes, length);
}

Test(state_exact, O5_a_file_of_the_first_version_is_read)
{
    g_autofree char *dir = NULL;
    state *s = small_start(&dir);
    state_shape shape = small_shape();
    uint64_t offset, length;
    rig_set(s, 2, STATE_FAILED);
    cr_assert_eq(state_mark_stale(s, 1, RIG_STALE, 1), 0);
    state_close(s);
    g_autofree char *path = state_path(dir, "disk");
    make_first_version(path);
    s = rig_open(dir, &shape);
    cr_assert_eq(rig_state(s, 2), STATE_FAILED);
    cr_assert(state_next_stale(s, 1, 0, &offset, &length));
    cr_assert_eq(offset, RIG_STALE);
    cr_assert_eq(length, RIG_STALE);
    state_close(s);
}

/* A slot that says what cannot be is none: each way to be wrong, on its own. */
static bool is_refused(state_facts *facts)
{
    g_autofree uint8_t *slot = g_malloc0(STATE_SLOT_MAX);
    g_autofree state_facts *got = g_new(state_facts, 1);
    state_encode_slot(facts, slot);
    return state_decode_slot(slot, got) == STATE_SLOT_INVALID;
}

Test(state_exact, O3_a_list_that_cannot_be_is_refused)
{
    g_autofree char *dir = NULL;
    state *s = small_start(&dir);
    g_autofree state_facts *facts = g_memdup2(&s->facts, sizeof s->facts);
    state_close(s);
    const state_exact good[] = {{0, 512, 512}, {0, 1024, 512}, {2, 0, RIG_STALE}};
    const state_exact bad[] = {
        {3, 512, 512},                    /* no such replica */
        {2, 512, 0},                      /* nothing */
        {2, SIZE, 512},                   /* behind the disk */
        {2, SIZE - 512, 1024},            /* across its end */
        {2, RIG_STALE - 512, 1024},       /* across two regions */
        {2, RIG_STALE - 512, UINT64_MAX}, /* around */
        {0, 0, 512},                      /* the wrong order */
        {0, 1024, 1024},                  /* overlapping */
    };
    facts->n_exact = 3;
    memcpy(facts->exact, good, sizeof good);
    cr_assert(!is_refused(facts));
    for (unsigned k = 0; k < G_N_ELEMENTS(bad); k++) {
        facts->exact[2] = bad[k];
        cr_assert(is_refused(facts), "%u", k);
    }
}
