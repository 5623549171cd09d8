/*
 * state-rig.h: a state of three replicas, and a look at what its file says.
 */
#ifndef TESTS_STATE_RIG_H
#define TESTS_STATE_RIG_H

#include "quorum/state.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <sys/stat.h>

#define RIG_INTENT (64u << 10)
#define RIG_STALE  4096u
#define RIG_SIZE   (4096u * RIG_STALE + 512u) /* more than one sector, and an odd tail */

static const char *const rig_names[] = {"a", "b", "c", "d"};
static const char *const rig_sources[] = {"/srv/a.raw", "/srv/b.raw", "/srv/c.raw",
                                          "/srv/d.raw"};

static inline state_shape rig_shape(void)
{
    return (state_shape){.size = RIG_SIZE,
                         .n = 3,
                         .threshold = 2,
                         .names = rig_names,
                         .sources = rig_sources,
                         .intent_region = RIG_INTENT,
                         .stale_region = RIG_STALE};
}

static inline state *rig_try(const char *dir, const state_shape *shape, int *ret_code)
{
    g_autoptr(GError) error = NULL;
    state *s = state_open(dir, "disk", shape, &error);
    *ret_code = s ? -1 : error->code;
    cr_assert(s || error->domain == STATE_ERROR);
    return s;
}

static inline state *rig_open(const char *dir, const state_shape *shape)
{
    g_autoptr(GError) error = NULL;
    state *s = state_open(dir, "disk", shape, &error);
    cr_assert_not_null(s, "%s", error ? error->message : "");
    cr_assert_eq(state_take_over(s), 0);
    return s;
}

static inline char *rig_dir(const char *name)
{
    char *dir = support_path("%s", name);
    cr_assert_eq(g_mkdir_with_parents(dir, 0700), 0);
    return dir;
}

/* What a daemon would find that started after a crash now: a copy, opened. */
static inline state *rig_peek(const char *dir, const state_shape *shape)
{
    g_autofree char *copy = rig_dir("peek");
    g_autofree char *from = state_path(dir, "disk"), *to = state_path(copy, "disk");
    size_t length;
    g_autofree uint8_t *bytes = support_load(from, &length);
    support_save(to, bytes, length);
    return rig_open(copy, shape);
}

static inline bool rig_is_dirty(state *s, uint64_t offset)
{
    return state_is_unreconciled(s, offset, 1);
}

static inline void rig_begin_session(state *s)
{
    identity none[VOTE_REPLICAS_MAX] = {{0}};
    cr_assert_eq(state_begin_session(s, none), 0);
}

static inline void rig_end_session(state *s)
{
    identity none[VOTE_REPLICAS_MAX] = {{0}};
    cr_assert_eq(state_end_session(s, none), 0);
}

static inline void rig_set(state *s, unsigned i, state_replica_state now)
{
    state_replica replica;
    state_get_replica(s, i, &replica);
    replica.state = now;
    cr_assert_eq(state_set_replica(s, i, &replica), 0);
}

static inline state_replica_state rig_state(state *s, unsigned i)
{
    state_replica replica;
    state_get_replica(s, i, &replica);
    return replica.state;
}

/* A write that all took. */
static inline void rig_write(state *s, uint64_t offset, uint64_t length)
{
    cr_assert_eq(state_write_begin(s, offset, length), 0);
    state_write_end(s, offset, length, true);
}

/* Of a fresh state, in a session. */
static inline state *rig_start(char **ret_dir)
{
    state_shape shape = rig_shape();
    *ret_dir = rig_dir("state");
    state *s = rig_open(*ret_dir, &shape);
    cr_assert(state_is_new(s));
    rig_begin_session(s);
    return s;
}

static inline state *rig_peek_as_is(const char *dir)
{
    state_shape shape = rig_shape();
    return rig_peek(dir, &shape);
}

static inline int64_t rig_clear_idle(state *s)
{
    state_collection *collection = state_collect(s);
    return collection ? state_clear(s, collection) : 0;
}

#endif
