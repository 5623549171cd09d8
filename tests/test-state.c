/*
 * test-state.c: what a disk remembers (W2, W5, W6, O5).
 */
#include "tests/state-rig.h"
#include <errno.h>
#include <unistd.h>

/* ---- W5 ------------------------------------------------------------------------------ */

Test(state, W5_a_write_that_has_begun_is_on_disk)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    cr_assert_eq(state_write_begin(s, RIG_INTENT - 1, 2), 0);
    state *after = rig_peek_as_is(dir);
    cr_assert(rig_is_dirty(after, 0));
    cr_assert(rig_is_dirty(after, RIG_INTENT));
    cr_assert(!rig_is_dirty(after, 2 * RIG_INTENT));
    cr_assert_eq(state_unreconciled_bytes(after), 2 * RIG_INTENT);
    cr_assert_eq(state_dirty_bytes(s), 2 * RIG_INTENT);
    state_close(after);
    state_write_end(s, RIG_INTENT - 1, 2, true);
    cr_assert_eq(state_write_begin(s, RIG_SIZE, 1), -EINVAL);
    cr_assert_eq(state_write_begin(s, RIG_SIZE - 1, 1), 0);
    cr_assert_eq(state_dirty_bytes(s), 2 * RIG_INTENT + 512);
    state_close(s);
}

Test(state, W5_idle_regions_are_cleared)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    rig_write(s, 0, 1);
    rig_write(s, 5 * RIG_INTENT, 1);
    cr_assert_eq(rig_clear_idle(s), 2);
    cr_assert_eq(state_dirty_bytes(s), 0);
    cr_assert_null(state_collect(s));
    state *after = rig_peek_as_is(dir);
    cr_assert_eq(state_unreconciled_bytes(after), 0);
    state_close(after);
    rig_write(s, 0, 1);
    after = rig_peek_as_is(dir);
    cr_assert_eq(state_unreconciled_bytes(after), RIG_INTENT);
    state_close(after);
    state_close(s);
}

Test(state, W5_a_region_with_a_write_under_way_is_not_cleared)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    cr_assert_eq(state_write_begin(s, 0, 1), 0);
    cr_assert_null(state_collect(s));
    state_write_end(s, 0, 1, true);
    state_collection *collection = state_collect(s);
    cr_assert_not_null(collection);
    cr_assert_eq(state_write_begin(s, 0, 1), 0);
    cr_assert_eq(state_clear(s, collection), 0);
    cr_assert_eq(state_dirty_bytes(s), RIG_INTENT);
    state_close(s);
}

Test(state, W5_a_write_since_the_flush_began_keeps_its_region)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    rig_write(s, 0, 1);
    state_collection *collection = state_collect(s);
    rig_write(s, 0, 1);
    cr_assert_eq(state_clear(s, collection), 0);
    cr_assert_eq(rig_clear_idle(s), 1);
    state_close(s);
}

Test(state, W5_nothing_is_cleared_while_a_replica_is_missing)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    rig_write(s, 0, 1);
    state_collection *collection = state_collect(s);
    rig_set(s, 1, STATE_FAILED);
    cr_assert_eq(state_clear(s, collection), 0);
    cr_assert_null(state_collect(s));
    rig_set(s, 1, STATE_IN_SYNC);
    cr_assert_eq(state_mark_stale(s, 2, 0, 1), 0);
    cr_assert_null(state_collect(s));
    state_stale_copied(s, 2, 0, RIG_STALE);
    cr_assert_eq(state_stale_clear(s, 2), 0);
    rig_set(s, 1, STATE_REMOVED);
    cr_assert_eq(rig_clear_idle(s), 1);
    state_close(s);
}

Test(state, W5_a_failed_write_keeps_its_region_until_it_is_reconciled)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    cr_assert_eq(state_write_begin(s, 0, 1), 0);
    state_write_end(s, 0, 1, false);
    cr_assert_null(state_collect(s));
    cr_assert(!rig_is_dirty(s, 0));
    rig_end_session(s);
    state *after = rig_peek_as_is(dir);
    cr_assert(state_was_clean(after));
    cr_assert(rig_is_dirty(after, 0));
    state_close(after);
    state_reconciled(s, 0, RIG_INTENT);
    cr_assert_eq(rig_clear_idle(s), 1);
    state_close(s);
}

/* ---- W6 ------------------------------------------------------------------------------ */

Test(state, W6_dirty_regions_are_found_and_reconciled_one_by_one)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    uint64_t offset, length;
    rig_write(s, 3 * RIG_INTENT, 2 * RIG_INTENT);
    rig_write(s, RIG_SIZE - 1, 1);
    state_close(s);
    s = rig_open(dir, &shape);
    cr_assert(!state_was_clean(s));
    cr_assert(state_next_unreconciled(s, 0, &offset, &length));
    cr_assert_eq(offset, 3 * RIG_INTENT);
    cr_assert_eq(length, 2 * RIG_INTENT);
    rig_begin_session(s);
    state_reconciled(s, offset + 1, RIG_INTENT);
    cr_assert(rig_is_dirty(s, offset));
    state_reconciled(s, offset, length);
    cr_assert(!rig_is_dirty(s, offset));
    cr_assert(state_next_unreconciled(s, 0, &offset, &length));
    cr_assert_eq(offset, (uint64_t)RIG_SIZE - 512);
    cr_assert_eq(length, 512);
    state_reconciled(s, offset, length);
    cr_assert(!state_next_unreconciled(s, 0, &offset, &length));
    cr_assert_eq(state_unreconciled_bytes(s), 0);
    state *after = rig_peek_as_is(dir);
    cr_assert_eq(state_unreconciled_bytes(after), 2 * RIG_INTENT + 512);
    state_close(after);
    cr_assert_eq(rig_clear_idle(s), 3);
    state_close(s);
}

Test(state, W6_after_a_clean_close_nothing_is_to_be_reconciled)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    rig_write(s, 0, 1);
    rig_set(s, 0, STATE_FAILED); /* so its bit stays */
    rig_end_session(s);
    state_close(s);
    s = rig_open(dir, &shape);
    cr_assert(state_was_clean(s));
    cr_assert_eq(state_dirty_bytes(s), RIG_INTENT);
    cr_assert_eq(state_unreconciled_bytes(s), 0);
    rig_begin_session(s);
    state *after = rig_peek_as_is(dir);
    cr_assert_eq(state_unreconciled_bytes(after), RIG_INTENT);
    state_close(after);
    state_close(s);
}

Test(state, W6_what_is_dirty_is_found)
{
    g_autofree char *dir = NULL;
    uint64_t offset, length;
    state *s = rig_start(&dir);
    cr_assert(!state_next_dirty(s, 0, &offset, &length));
    rig_write(s, 2 * RIG_INTENT, 1);
    rig_write(s, 3 * RIG_INTENT, 1);
    cr_assert_eq(state_write_begin(s, RIG_SIZE - 1, 1), 0); /* under way, too */
    cr_assert(state_next_dirty(s, 2 * RIG_INTENT + 7, &offset, &length));
    cr_assert_eq(offset, 2 * RIG_INTENT + 7);
    cr_assert_eq(length, 2 * RIG_INTENT - 7);
    cr_assert(state_next_dirty(s, offset + length, &offset, &length));
    cr_assert_eq(offset, (uint64_t)RIG_SIZE - 512);
    cr_assert_eq(length, 512);
    cr_assert_eq(rig_clear_idle(s), 2);
    cr_assert(state_next_dirty(s, 0, &offset, &length));
    cr_assert_eq(offset, (uint64_t)RIG_SIZE - 512);
    state_write_end(s, RIG_SIZE - 1, 1, true);
    state_close(s);
}

Test(state, W6_what_is_dirty_becomes_unreconciled_again)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    rig_write(s, 0, 1);
    rig_write(s, 7 * RIG_INTENT, 1);
    rig_write(s, RIG_SIZE - 1, 1);
    state_collection *cleared = state_collect(s);
    rig_write(s, 0, 1);
    rig_write(s, RIG_SIZE - 1, 1);
    cr_assert_eq(state_clear(s, cleared), 1);
    state_collection *collection = state_collect(s);
    cr_assert_not_null(collection);
    for (int k = 0; k < 2; k++) {
        state_unreconcile(s);
        cr_assert_eq(state_unreconciled_bytes(s), RIG_INTENT + 512);
    }
    cr_assert(rig_is_dirty(s, 0));
    cr_assert(!rig_is_dirty(s, 7 * RIG_INTENT));
    cr_assert_eq(state_clear(s, collection),
                 0); /* what was noted before does not count */
    cr_assert_null(state_collect(s));
    rig_end_session(s);
    state *after = rig_peek_as_is(dir); /* a clean end does not make it equal */
    cr_assert_eq(state_unreconciled_bytes(after), RIG_INTENT + 512);
    state_close(after);
    state_reconciled(s, 0, RIG_SIZE);
    cr_assert_eq(state_unreconciled_bytes(s), 0);
    cr_assert_eq(rig_clear_idle(s), 2);
    state_close(s);
}

/* ---- W2 ------------------------------------------------------------------------------ */

Test(state, W2_what_a_replica_missed_is_on_disk)
{
    g_autofree char *dir = NULL;
    uint64_t offset, length;
    state *s = rig_start(&dir);
    cr_assert_eq(state_mark_stale(s, 1, RIG_STALE + 1, RIG_STALE), 0);
    cr_assert_eq(state_mark_stale(s, 2, RIG_SIZE - 1, 1), 0);
    cr_assert_eq(state_mark_stale(s, 1, 0, (uint64_t)RIG_SIZE + 1), -EINVAL);
    state *after = rig_peek_as_is(dir);
    cr_assert_eq(state_stale_bytes(after, 0), 0);
    cr_assert_eq(state_stale_bytes(after, 1), 2 * RIG_STALE);
    cr_assert_eq(state_stale_bytes(after, 2), 512);
    cr_assert(!state_is_stale(after, 1, 0, RIG_STALE));
    cr_assert(state_is_stale(after, 1, 0, RIG_STALE + 1));
    cr_assert(!state_is_stale(after, 1, 3 * RIG_STALE, 1));
    cr_assert(state_next_stale(after, 1, 0, &offset, &length));
    cr_assert_eq(offset, RIG_STALE);
    cr_assert_eq(length, 2 * RIG_STALE);
    cr_assert(!state_next_stale(after, 1, offset + length, &offset, &length));
    state_close(after);
    state_close(s);
}

Test(state, W2_a_mark_after_the_copy_is_not_cleared)
{
    g_autofree char *dir = NULL;
    state *s = rig_start(&dir);
    cr_assert_eq(state_mark_stale(s, 1, 0, 4 * RIG_STALE), 0);
    state_stale_copied(s, 1, 1, 3 * RIG_STALE); /* two whole ones */
    cr_assert_eq(state_mark_stale(s, 1, RIG_STALE, 1), 0);
    cr_assert_eq(state_stale_clear(s, 1), 0);
    state *after = rig_peek_as_is(dir);
    cr_assert(state_is_stale(after, 1, 0, 1));
    cr_assert(state_is_stale(after, 1, RIG_STALE, 1));
    cr_assert(!state_is_stale(after, 1, 2 * RIG_STALE, 1));
    cr_assert(state_is_stale(after, 1, 3 * RIG_STALE, 1));
    state_close(after);
    cr_assert_eq(state_stale_clear(s, 1), 0);
    cr_assert_eq(state_stale_bytes(s, 1), 3 * RIG_STALE);
    state_close(s);
}

/* ---- O5 ------------------------------------------------------------------------------ */

Test(state, O5_two_cannot_have_it_open)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    int code;
    state *s = rig_start(&dir);
    g_autofree char *path = state_path(dir, "disk");
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_LOCKED);
    g_autoptr(GError) error = NULL;
    cr_assert_null(state_reset(dir, "disk", &shape, &error));
    cr_assert_eq(error->code, STATE_ERROR_LOCKED);
    state_close(s);
    s = rig_open(dir, &shape);
    cr_assert_not_null(s);
    state_close(s);
}

Test(state, O5_the_set_is_remembered)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    uint8_t id[16], again[16];
    qcow2_mark marks[3] = {{0}, {0}, {true, {15, 16}, 17, 18, true}};
    state_replica replica = {.state = STATE_FAILED};
    replica.identity = (identity){.kind = IDENTITY_FILE,
                                  .top = {1, 2, 3, 4, 5, 6},
                                  .has_data = true,
                                  .data = {7, 8, 9, 10, 11, 12},
                                  .has_header = true,
                                  .header = {13, 14}};
    state_set_id(s, id);
    cr_assert_eq(state_set_replica(s, 2, &replica), 0);
    rig_begin_session(s);
    cr_assert_eq(state_generation(s), 2);
    replica.identity.mark = marks[2];
    cr_assert_eq(state_set_marks(s, marks), 0);
    state_close(s);
    s = rig_open(dir, &shape);
    cr_assert(!state_is_new(s));
    cr_assert_eq(state_generation(s), 2);
    state_set_id(s, again);
    cr_assert_eq(memcmp(id, again, sizeof id), 0);
    state_replica got;
    state_get_replica(s, 2, &got);
    cr_assert_eq(got.state, STATE_FAILED);
    cr_assert_eq(got.synced_generation, 1);
    cr_assert_eq(memcmp(&got.identity, &replica.identity, sizeof got.identity), 0);
    state_get_replica(s, 0, &got);
    cr_assert_eq(got.synced_generation, 2);
    state_close(s);
}

Test(state, O5_another_set_is_void)
{
    g_autofree char *dir = NULL;
    static const char *const names[] = {"a", "y", "x", "z"};
    static const char *const sources[] = {"/srv/a.raw", "/srv/y.raw", "/srv/x.raw",
                                          "/srv/z.raw"};
    state *s = rig_start(&dir);
    int code;
    state_close(s);
    state_shape shape = rig_shape();
    shape.names = names;
    shape.sources = sources;
    cr_assert_null(rig_try(dir, &shape, &code)); /* one of three */
    cr_assert_eq(code, STATE_ERROR_VOID_OTHER);
    shape.n = 4;
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_VOID_OTHER);
    shape.n = 0;
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_SHAPE);
    shape = rig_shape();
    s = rig_open(dir, &shape); /* nothing was changed */
    cr_assert_eq(state_generation(s), 1);
    state_close(s);
}

/* a is turned to the end, b is gone, x is new: what is known of a and c stays known. */
Test(state, O5_a_set_of_which_half_is_known_is_taken_over)
{
    g_autofree char *dir = NULL;
    static const char *const names[] = {"a", "b", "c"}; /* by place */
    static const char *const sources[] = {"/srv/c.raw", "/srv/x.raw", "/srv/a.raw"};
    state *s = rig_start(&dir);
    uint8_t id[16], again[16];
    state_replica a, c, got;
    state_set_id(s, id);
    state_get_replica(s, 0, &a);
    state_get_replica(s, 2, &c);
    rig_set(s, 0, STATE_FAILED);
    cr_assert_eq(state_mark_stale(s, 2, RIG_STALE, 1), 0);
    rig_write(s, 0, 1);
    state_close(s);
    state_shape shape = rig_shape();
    shape.names = names;
    shape.sources = sources;
    for (int k = 0; k < 2; k++) {
        s = rig_open(dir, &shape);
        state_set_id(s, again);
        cr_assert_eq(memcmp(id, again, sizeof id), 0);
        cr_assert(!state_is_new(s) && state_generation(s) == 1);
        cr_assert_eq(state_stale_bytes(s, 0), RIG_STALE);
        state_get_replica(s, 0, &got);
        cr_assert_eq(got.number, c.number);
        state_get_replica(s, 1, &got);
        cr_assert_eq(got.state, STATE_STALE_WHOLE);
        cr_assert(got.number != 0 && got.number != a.number && got.number != c.number);
        cr_assert_eq(state_stale_bytes(s, 1), RIG_SIZE);
        state_get_replica(s, 2, &got);
        cr_assert_eq(got.state, STATE_FAILED);
        cr_assert_eq(got.number, a.number);
        cr_assert(rig_is_dirty(s, 0));
        state_close(s);
    }
}

/* Files that were moved are found by their inode, images by their mark. */
Test(state, O5_moved_replicas_are_recognised)
{
    g_autofree char *dir = NULL;
    static const char *const moved[] = {"/mnt/1", "/mnt/2", "/mnt/3"};
    identity was[3] = {{.kind = IDENTITY_FILE, .top = {.ino = 5, .birth_ns = 6}}},
             now[3] = {{0}};
    state_shape shape = rig_shape();
    dir = rig_dir("state");
    state *s = rig_open(dir, &shape);
    cr_assert_eq(state_begin_session(s, was), 0);
    state_get_mark(s, 1, false, &now[0].mark);
    rig_set(s, 0, STATE_FAILED);
    cr_assert_eq(state_mark_stale(s, 1, 0, 1), 0);
    state_close(s);
    shape.sources = moved;
    shape.identities = now;
    now[2] = was[0];
    s = rig_open(dir, &shape);
    cr_assert_eq(rig_state(s, 2), STATE_FAILED);
    cr_assert_eq(state_stale_bytes(s, 0), RIG_STALE);
    cr_assert_eq(rig_state(s, 1), STATE_STALE_WHOLE);
    state_close(s);
}

Test(state, O5_replicas_in_another_order_are_recognised)
{
    g_autofree char *dir = NULL;
    static const char *const turned[] = {"/srv/c.raw", "/srv/a.raw", "/srv/b.raw"};
    static const char *const moved[] = {"/mnt/c.raw", "/mnt/a.raw", "/mnt/b.raw"};
    state *s = rig_start(&dir);
    rig_set(s, 0, STATE_FAILED);
    cr_assert_eq(state_mark_stale(s, 0, RIG_STALE, 1), 0);
    rig_write(s, 0, 1);
    state_close(s);
    state_shape shape = rig_shape();
    shape.sources = turned;
    for (int k = 0; k < 2; k++) {
        s = rig_open(dir, &shape);
        cr_assert_eq(rig_state(s, 0), STATE_IN_SYNC);
        cr_assert_eq(rig_state(s, 1), STATE_FAILED);
        cr_assert_eq(state_stale_bytes(s, 0), 0);
        cr_assert_eq(state_stale_bytes(s, 1), RIG_STALE);
        cr_assert(rig_is_dirty(s, 0));
        state_close(s);
        shape.sources = moved; /* all of them: by name, then */
    }
}

Test(state, O5_damage_is_told_and_reset_keeps_the_old_file)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    g_autofree char *path = state_path(dir, "disk");
    uint8_t zero[8] = {0};
    int code;
    state_close(s);
    support_poke(path, 0, zero, sizeof zero);
    s = rig_open(dir, &shape); /* the other slot */
    cr_assert_eq(state_generation(s), 1);
    state_close(s);
    support_poke(path, 128u << 10, zero, sizeof zero);
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_VOID_BROKEN);
    g_autoptr(GError) error = NULL;
    s = state_reset(dir, "disk", &shape, &error);
    cr_assert_not_null(s);
    cr_assert(state_is_new(s));
    cr_assert_eq(state_generation(s), 0);
    cr_assert_eq(state_dirty_bytes(s), 0);
    g_autofree char *aside = g_strconcat(path, ".void", NULL);
    cr_assert_eq(access(aside, F_OK), 0);
    state_close(s);
    support_save(path, "", 0);
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_VOID_BROKEN);
}

Test(state, O5_only_a_file_of_our_own_is_opened)
{
    g_autofree char *dir = rig_dir("state");
    g_autofree char *path = state_path(dir, "disk");
    state_shape shape = rig_shape();
    int code;
    support_run("mkfifo '%s'", path);
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_IO);
    unlink(path);
    support_run("ln -s /etc/passwd '%s'", path);
    cr_assert_null(rig_try(dir, &shape, &code));
    cr_assert_eq(code, STATE_ERROR_IO);
    g_autoptr(GError) error = NULL;
    cr_assert_null(state_open(dir, "../disk", &shape, &error));
    cr_assert_eq(error->code, STATE_ERROR_SHAPE);
}

/* ---- Shapes -------------------------------------------------------------------------- */

Test(state, W2_bits_are_kept_when_the_disk_grows_and_shrinks)
{
    g_autofree char *dir = NULL;
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    rig_write(s, 3 * RIG_INTENT, 1);
    cr_assert_eq(state_mark_stale(s, 1, RIG_STALE, 1), 0);
    cr_assert_eq(state_mark_stale(s, 1, RIG_SIZE - 1, 1), 0);
    for (unsigned k = 0; k < 6; k++) {
        shape.size *= 3;
        cr_assert_eq(state_reshape(s, &shape, NULL), 0);
        cr_assert_eq(state_stale_bytes(s, 1), 2 * RIG_STALE);
        cr_assert_eq(state_dirty_bytes(s), RIG_INTENT);
        rig_write(s, shape.size - 1, 1);
        cr_assert_eq(rig_clear_idle(s), 0); /* a replica is missing */
        state *after = rig_peek(dir, &shape);
        cr_assert(rig_is_dirty(after, 3 * RIG_INTENT));
        cr_assert(rig_is_dirty(after, shape.size - 1));
        cr_assert_eq(state_stale_bytes(after, 1), 2 * RIG_STALE);
        state_close(after);
        shape.size = RIG_SIZE + k;
        cr_assert_eq(state_reshape(s, &shape, NULL), 0);
    }
    state_close(s);
    shape.size *= 2; /* while nobody had it open */
    s = rig_open(dir, &shape);
    cr_assert(rig_is_dirty(s, 3 * RIG_INTENT));
    cr_assert_eq(state_stale_bytes(s, 1), 2 * RIG_STALE);
    g_autofree char *path = state_path(dir, "disk");
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_lt(st.st_size, 1 << 20);
    state_close(s);
}

Test(state, W2_a_huge_disk_has_larger_regions)
{
    g_autofree char *dir = rig_dir("state");
    state_shape shape = rig_shape();
    shape.intent_region = shape.stale_region = 0;
    state *s = rig_open(dir, &shape);
    cr_assert_eq(state_intent_region(s), 64u << 20);
    cr_assert_eq(state_stale_region(s), 1u << 20);
    rig_begin_session(s);
    cr_assert_eq(state_mark_stale(s, 1, 5u << 20, 1), 0);
    rig_write(s, 0, 1);
    shape.size = UINT64_C(1) << 50;
    cr_assert_eq(state_reshape(s, &shape, NULL), 0);
    cr_assert_eq(state_intent_region(s), UINT64_C(1) << 30);
    cr_assert_eq(state_stale_region(s), UINT64_C(1) << 27);
    cr_assert(state_is_stale(s, 1, 5u << 20, 1));
    cr_assert_eq(state_mark_stale(s, 2, 0, shape.size), 0);
    state *after = rig_peek(dir, &shape);
    cr_assert_eq(state_stale_bytes(after, 2), shape.size);
    cr_assert_eq(state_unreconciled_bytes(after), UINT64_C(1) << 30);
    state_close(after);
    shape.size = IMAGE_SIZE_MAX;
    cr_assert_eq(state_reshape(s, &shape, NULL), 0);
    shape.size++;
    cr_assert_eq(state_reshape(s, &shape, NULL), -EINVAL);
    state_close(s);
}

Test(state, O5_replicas_are_added_and_removed)
{
    g_autofree char *dir = NULL;
    static const char *const names[] = {"d", "c", "a"};
    static const char *const sources[] = {"/srv/d.raw", "/srv/c.raw", "/srv/a.raw"};
    state_shape shape = rig_shape();
    state *s = rig_start(&dir);
    cr_assert_eq(state_mark_stale(s, 2, 0, 1), 0);
    shape.n = 4;
    cr_assert_eq(state_reshape(s, &shape, NULL), -EINVAL);
    cr_assert_eq(state_reshape(s, &shape, (int[]){0, 1, 2, -1}), 0);
    cr_assert_eq(state_generation(s), 2);
    cr_assert_eq(rig_state(s, 3), STATE_STALE_WHOLE);
    cr_assert_eq(state_stale_bytes(s, 3), RIG_SIZE);
    shape.n = 3;
    shape.names = names;
    shape.sources = sources;
    cr_assert_eq(state_reshape(s, &shape, (int[]){3, 2, 0}), 0);
    state *after = rig_peek(dir, &shape);
    cr_assert_eq(rig_state(after, 0), STATE_STALE_WHOLE);
    cr_assert_eq(state_stale_bytes(after, 0), RIG_SIZE);
    cr_assert_eq(state_stale_bytes(after, 1), RIG_STALE);
    cr_assert_eq(state_stale_bytes(after, 2), 0);
    cr_assert_eq(state_generation(after), 3);
    state_close(after);
    state_close(s);
}
