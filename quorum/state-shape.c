/*
 * state-shape.c: which replicas the recorded ones are, and giving a state another shape.
 *
 * Another shape is a new area beside the old one, with the next layout number, and then a
 * slot that leads to it. If that fails after the slot was written, on disk it may be the
 * newer one; so the old facts are written over it, with a higher number, before anything
 * else is called durable (facts_dirty).
 */
#include "quorum/state-internal.h"
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define INTENT_SHIFT 26
#define STALE_SHIFT  20
#define SHIFT_MIN    12

/* ---- From a shape to facts ----------------------------------------------------------- */

static unsigned region_shift(uint64_t size, uint64_t region, unsigned usual,
                             uint32_t most)
{
    unsigned shift = region ? (unsigned)__builtin_ctzll(region) : usual;
    while (size >> shift > most || state_bits(size, shift) > most)
        shift++;
    return shift;
}

/* Of a source that is too long the end: that is where paths differ. */
static void copy_source(char *to, const char *source)
{
    size_t length = strlen(source), most = STATE_SOURCE_SIZE - 1;
    memset(to, 0, STATE_SOURCE_SIZE);
    memcpy(to, length > most ? source + length - most : source, MIN(length, most));
}

static bool is_region(uint64_t region)
{
    return region == 0 || ((region & (region - 1)) == 0 && region >= 1u << SHIFT_MIN &&
                           region <= IMAGE_SIZE_MAX);
}

const char *state_set_shape(state_facts *facts, const state_shape *shape)
{
    if (shape->n < 1 || shape->n > VOTE_REPLICAS_MAX || shape->threshold < 1 ||
        shape->threshold > shape->n || shape->size > IMAGE_SIZE_MAX ||
        shape->resize_from > IMAGE_SIZE_MAX || shape->resize_to > IMAGE_SIZE_MAX ||
        !is_region(shape->intent_region) || !is_region(shape->stale_region))
        return "the disk's size, threshold or number of replicas cannot be";
    facts->size = shape->size;
    facts->resize_from = shape->resize_from;
    facts->resize_to = shape->resize_to;
    facts->n = shape->n;
    facts->threshold = shape->threshold;
    facts->intent_shift =
        region_shift(shape->size, shape->intent_region, INTENT_SHIFT, STATE_INTENT_BITS);
    facts->stale_shift =
        region_shift(shape->size, shape->stale_region, STALE_SHIFT, STATE_STALE_BITS);
    for (unsigned i = 0; i < shape->n; i++) {
        if (strlen(shape->names[i]) >= STATE_NAME_SIZE)
            return "a replica's name has more than 127 bytes";
        memset(facts->replicas[i].name, 0, STATE_NAME_SIZE);
        memcpy(facts->replicas[i].name, shape->names[i], strlen(shape->names[i]));
        copy_source(facts->replicas[i].source, shape->sources[i]);
    }
    return NULL;
}

static const char *name_of(const state_facts *facts, unsigned i)
{
    return facts->replicas[i].name;
}

static const char *source_of(const state_facts *facts, unsigned i)
{
    return facts->replicas[i].source;
}

/* ---- Recognising replicas --------------------------------------------------------------- */

/* What has been recognised: map[i] is the recorded place of replica i, or -1. */
typedef struct matching {
    const state_facts *recorded, *wanted;
    const identity *identities; /* of those wanted; NULL: unknown */
    int *map;
    uint64_t taken;
    unsigned count;
} matching;

typedef bool is_match(const matching *m, unsigned recorded, unsigned wanted);

static bool by_file(const matching *m, unsigned recorded, unsigned wanted)
{
    return m->identities &&
           identity_same_file(&m->recorded->replicas[recorded].record.identity,
                              &m->identities[wanted]);
}

static bool by_mark(const matching *m, unsigned recorded, unsigned wanted)
{
    const qcow2_mark *mark = m->identities ? &m->identities[wanted].mark : NULL;
    return mark && mark->replica != 0 &&
           mark->replica == m->recorded->replicas[recorded].record.number &&
           memcmp(mark->set_id, m->recorded->set_id, sizeof mark->set_id) == 0;
}

static bool by_source(const matching *m, unsigned recorded, unsigned wanted)
{
    return strcmp(source_of(m->recorded, recorded), source_of(m->wanted, wanted)) == 0;
}

static bool by_name(const matching *m, unsigned recorded, unsigned wanted)
{
    return strcmp(name_of(m->recorded, recorded), name_of(m->wanted, wanted)) == 0;
}

/* One that cannot be looked at now. */
static bool by_absence(const matching *m, unsigned recorded, unsigned wanted)
{
    return m->identities && m->identities[wanted].kind == IDENTITY_NONE &&
           by_name(m, recorded, wanted);
}

static void match_by(matching *m, is_match *test)
{
    for (unsigned i = 0; i < m->wanted->n; i++) {
        unsigned k = 0;
        if (m->map[i] >= 0)
            continue;
        while (k < m->recorded->n && (m->taken >> k & 1 || !test(m, k, i)))
            k++;
        if (k == m->recorded->n)
            continue;
        m->taken |= UINT64_C(1) << k;
        m->map[i] = (int)k;
        m->count++;
    }
}

static unsigned match_itself(matching *m)
{
    for (unsigned i = 0; i < m->wanted->n; i++)
        m->map[i] = -1;
    match_by(m, by_file);
    match_by(m, by_mark);
    match_by(m, by_source);
    return m->count;
}

/* Names are given by place on the command line: they tell only of one that is out of reach, or
 * if they all do. */
static unsigned match(const state_facts *recorded, const state_facts *wanted,
                      const identity *identities, int *ret_map)
{
    matching m = {recorded, wanted, identities, ret_map, 0, 0};
    match_itself(&m);
    match_by(&m, by_absence);
    if (m.count > 0 || recorded->n != wanted->n)
        return m.count;
    match_by(&m, by_name);
    return m.count == recorded->n ? m.count : 0;
}

unsigned state_match(const state_facts *recorded, const state_shape *shape, int *ret_map)
{
    g_autofree state_facts *wanted = g_memdup2(recorded, sizeof *recorded);
    matching m = {recorded, wanted, shape->identities, ret_map, 0, 0};
    return state_set_shape(wanted, shape) ? 0 : match_itself(&m);
}

/* ---- Another shape ------------------------------------------------------------------- */

/* Sets what a bit of `from` stands for in `to`. */
static void carry_bit(const state_bitmap *from, uint32_t bit, state_bitmap *to)
{
    uint64_t start = (uint64_t)bit << from->shift;
    uint64_t last = start + (UINT64_C(1) << from->shift) - 1;
    for (uint64_t k = start >> to->shift; k <= last >> to->shift && k < to->bits; k++) {
        atomic_fetch_or(&to->wanted[k / 64], UINT64_C(1) << k % 64);
        to->stable[k / 64] |= UINT64_C(1) << k % 64;
    }
}

static void carry_bits(const state_bitmap *from, state_bitmap *to)
{
    for (uint32_t bit = 0; bit < (from ? from->bits : to->bits); bit++)
        if (!from)
            carry_bit(to, bit, to);
        else if (state_has_bit(from, bit))
            carry_bit(from, bit, to);
}

/* The words of the new regions: what is dirty is stable, and as unequal as it was. */
static void carry_regions(const state *from, state *to)
{
    const state_bitmap *old = &from->bitmaps[0], *bitmap = &to->bitmaps[0];
    for (uint32_t region = 0; region < bitmap->bits; region++)
        if (state_has_bit(bitmap, region))
            atomic_store(&to->regions[region], STATE_STABLE);
    for (uint32_t region = 0; region < old->bits; region++) {
        uint64_t flags =
            atomic_load(&from->regions[region]) & (STATE_KEPT | STATE_UNRECONCILED);
        uint64_t start = (uint64_t)region << old->shift;
        uint64_t last = start + (UINT64_C(1) << old->shift) - 1;
        for (uint64_t k = start >> bitmap->shift;
             flags && k <= last >> bitmap->shift && k < bitmap->bits; k++)
            atomic_fetch_or(&to->regions[k], flags);
    }
}

static void take_bitmaps(state *s, state *from)
{
    for (unsigned k = 0; k < STATE_BITMAPS_MAX; k++) {
        state_bitmap_clear(&s->bitmaps[k]);
        s->bitmaps[k] = from->bitmaps[k];
        from->bitmaps[k] = (state_bitmap){0};
    }
    g_free(s->regions);
    s->regions = g_steal_pointer(&from->regions);
}

/* In front of the present area if it fits there, else behind it. */
static uint64_t place_area(const state_facts *now, const state_facts *then)
{
    uint64_t end = now->area + state_area_length(now);
    if (STATE_AREA_MIN + state_area_length(then) <= now->area)
        return STATE_AREA_MIN;
    return (end + 4095) & ~UINT64_C(4095);
}

/* `facts` are the new ones, `map` as for state_reshape; both lie outside of `s`. Not `now`: in
 * memory, and nothing else is written until that has been. */
static int reshape(state *s, const state_facts *facts, const int *map, bool now)
{
    state *next = state_new(s->fd, NULL);
    next->facts = *facts;
    next->facts.layout = s->facts.layout + 1;
    next->facts.area = place_area(&s->facts, facts);
    next->durable_slot = s->durable_slot;
    state_init_bitmaps(next);
    carry_bits(&s->bitmaps[0], &next->bitmaps[0]);
    carry_regions(s, next);
    for (unsigned i = 0; i < facts->n; i++)
        carry_bits(map[i] < 0 ? NULL : &s->bitmaps[1 + map[i]], &next->bitmaps[1 + i]);
    state_recount(next);
    int failed = now ? state_write_all(next) : 0;

    g_mutex_lock(&s->lock);
    s->durable_slot = next->durable_slot;
    s->facts_dirty = failed != 0;
    if (failed) {
        s->facts.sequence = next->facts.sequence;
    } else {
        s->facts = next->facts;
        take_bitmaps(s, next);
        g_array_set_size(s->queue, 0);
        state_recount(s);
        s->pending = !now;
    }
    g_mutex_unlock(&s->lock);
    next->fd = -1;
    state_free(next);
    return failed;
}

uint64_t state_random_number(void)
{
    uint64_t number = 0;
    while (number == 0)
        if (getentropy(&number, sizeof number) < 0)
            number = (uint64_t)g_get_real_time();
    return number;
}

/* The records of the replicas that stay, in their new order. */
static void map_records(const state_facts *from, const int *map, state_facts *to)
{
    for (unsigned i = 0; i < to->n; i++) {
        state_replica fresh = {.state = STATE_STALE_WHOLE};
        if (map[i] < 0)
            fresh.number = state_random_number();
        to->replicas[i].record = map[i] < 0 ? fresh : from->replicas[map[i]].record;
    }
}

/* Entries of the old facts in `to`; where regions have another size, they are told by bits. */
static void map_exact(const state_facts *from, const int *map, state_facts *to)
{
    to->n_exact = 0;
    for (unsigned i = 0; i < to->n && from->stale_shift == to->stale_shift; i++) {
        for (unsigned k = 0; k < from->n_exact; k++) {
            state_exact entry = from->exact[k];
            if ((int)entry.replica != map[i] || entry.offset >= to->size)
                continue;
            entry.replica = i;
            entry.length = MIN(entry.length, to->size - entry.offset);
            to->exact[to->n_exact++] = entry;
        }
    }
}

static bool has_same_area(const state_facts *a, const state_facts *b, const int *map)
{
    bool same = a->size == b->size && a->n == b->n &&
                a->intent_shift == b->intent_shift && a->stale_shift == b->stale_shift;
    for (unsigned i = 0; i < b->n; i++)
        same = same && map[i] == (int)i;
    return same;
}

static bool has_same_labels(const state_facts *a, const state_facts *b)
{
    bool same = a->threshold == b->threshold && a->resize_from == b->resize_from &&
                a->resize_to == b->resize_to;
    for (unsigned i = 0; i < b->n; i++)
        same = same && strcmp(name_of(a, i), name_of(b, i)) == 0 &&
               strcmp(source_of(a, i), source_of(b, i)) == 0;
    return same;
}

/* What is recorded of a resize stays while the disk has one of its sizes. False: the shape
 * needs one that is not recorded. */
static bool adopt_resize(const state_facts *recorded, const state_shape *shape,
                         state_facts *facts)
{
    uint64_t from = recorded->resize_from, to = recorded->resize_to;
    bool needed = shape->resize_from != shape->resize_to;
    bool goes_on = needed || shape->size == from || shape->size == to;
    facts->resize_from = goes_on ? from : 0;
    facts->resize_to = goes_on ? to : 0;
    return !needed || (MIN(from, to) == MIN(shape->resize_from, shape->resize_to) &&
                       MAX(from, to) == MAX(shape->resize_from, shape->resize_to));
}

int state_adopt(state *s, const state_shape *shape, const char **ret_why)
{
    int map[VOTE_REPLICAS_MAX];
    g_autofree state_facts *facts = g_memdup2(&s->facts, sizeof s->facts);
    *ret_why = state_set_shape(facts, shape);
    if (*ret_why)
        return -EINVAL;
    if (!adopt_resize(&s->facts, shape, facts))
        return -ERANGE;
    if (2 * match(&s->facts, facts, shape->identities, map) < s->facts.n)
        return -ENOENT;
    map_records(&s->facts, map, facts);
    map_exact(&s->facts, map, facts);
    if (!has_same_area(&s->facts, facts, map))
        return reshape(s, facts, map, false);
    s->pending = !has_same_labels(&s->facts, facts);
    s->facts = *facts;
    return 0;
}

int state_take_over(state *s)
{
    g_mutex_lock(&s->lock);
    bool pending = s->pending;
    s->pending = false;
    g_mutex_unlock(&s->lock);
    int failed = pending ? state_write_all(s) : 0;
    g_mutex_lock(&s->lock);
    s->pending = failed != 0;
    g_mutex_unlock(&s->lock);
    return failed;
}

int state_reshape(state *s, const state_shape *shape, const int *map)
{
    int as_before[VOTE_REPLICAS_MAX];
    g_mutex_lock(&s->lock);
    state_enter(s);
    g_autofree state_facts *facts = g_memdup2(&s->facts, sizeof s->facts);
    g_mutex_unlock(&s->lock);

    int result = state_set_shape(facts, shape) ? -EINVAL : 0;
    for (unsigned i = 0; i < VOTE_REPLICAS_MAX; i++)
        as_before[i] = (int)i;
    if (!map && facts->n != s->facts.n)
        result = -EINVAL;
    for (unsigned i = 0; map && i < facts->n; i++)
        if (map[i] >= (int)s->facts.n)
            result = -EINVAL;
    facts->generation += map ? 1 : 0;
    if (!result) {
        map_records(&s->facts, map ? map : as_before, facts);
        map_exact(&s->facts, map ? map : as_before, facts);
    }
    if (!result)
        result = reshape(s, facts, map ? map : as_before, true);

    g_mutex_lock(&s->lock);
    state_leave(s);
    g_mutex_unlock(&s->lock);
    return result;
}
