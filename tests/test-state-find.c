/*
 * test-state-find.c: the record of a disk, found by its replicas (O5).
 */
#include "quorum/state-find.h"
#include "tests/state-rig.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 8u

/* Replicas that exist only by their identity: raw files with an inode, or with a mark, too. */
typedef struct cast {
    unsigned n;
    const char *names[MOST], *sources[MOST];
    identity identities[MOST];
} cast;

static identity file_of(uint64_t ino)
{
    return (identity){
        .kind = IDENTITY_FILE,
        .top = {.dev = 1, .ino = ino, .birth_ns = (int64_t)ino, .size = 512}};
}

static cast cast_of(const char *letters)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    cast c = {.n = (unsigned)strlen(letters)};
    for (unsigned i = 0; i < c.n; i++) {
        unsigned k = (unsigned)(letters[i] - 'a');
        c.names[i] = names[i]; /* by place, as on the command line */
        c.sources[i] = names[k];
        c.identities[i] = file_of(100 + k);
    }
    return c;
}

static state_shape shape_of(const cast *c)
{
    return (state_shape){.n = c->n,
                         .threshold = 1,
                         .names = c->names,
                         .sources = c->sources,
                         .identities = c->identities};
}

/* BASE/DIR/DISK.state of these, closed cleanly; with marks as a session leaves them. */
static void record(const char *dir, const char *disk, cast *c, bool marks)
{
    g_autofree char *path = rig_dir(dir);
    g_autoptr(GError) error = NULL;
    state_shape shape = shape_of(c);
    state *s = state_open(path, disk, &shape, &error);
    cr_assert_not_null(s, "%s", error ? error->message : "");
    cr_assert_eq(state_begin_session(s, c->identities), 0);
    for (unsigned i = 0; i < c->n && marks; i++)
        state_get_mark(s, i, true, &c->identities[i].mark);
    cr_assert_eq(state_end_session(s, c->identities), 0);
    state_close(s);
}

static state_found find(const char *prefer, const cast *c, int *ret_code)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = support_path("base/%s", prefer);
    g_autofree char *base = support_path("base");
    state_shape shape = shape_of(c);
    state_found found;
    bool ok = state_find(base, dir, "disk", &shape, &found, &error);
    *ret_code = ok ? -1 : error->code;
    return found;
}

static void expect(const char *prefer, const cast *c, const char *dir, const char *disk)
{
    int code;
    state_found found = find(prefer, c, &code);
    g_autofree char *path = support_path("base/%s", dir ? dir : "");
    cr_assert_eq(code, -1);
    cr_assert_eq(g_strcmp0(found.dir, dir ? path : NULL), 0, "%s, not %s",
                 found.dir ? found.dir : "none", dir ? path : "none");
    cr_assert_eq(g_strcmp0(found.disk, dir ? disk : NULL), 0);
    state_found_clear(&found);
}

Test(state_find, O5_nothing_is_found_where_nothing_is)
{
    cast c = cast_of("abc");
    expect("x", &c, NULL, NULL);
    cast other = cast_of("def");
    record("base/x", "disk", &other, false);
    expect("x", &c, NULL, NULL);
}

Test(state_find, O5_by_file_by_mark_and_by_path)
{
    cast c = cast_of("abc"), moved, named;
    record("base/one", "vm1", &c, true);
    cast other = cast_of("def");
    record("base/two", "disk", &other, true);
    expect("x", &c, "one", "vm1");
    moved = c;
    for (unsigned i = 0; i < 3; i++)
        moved.sources[i] = "elsewhere";
    expect("x", &moved, "one", "vm1");
    for (unsigned i = 0; i < 3; i++)
        moved.identities[i].top.ino += 500;
    expect("x", &moved, "one", "vm1"); /* by the marks alone */
    named = cast_of("abc");
    for (unsigned i = 0; i < 3; i++)
        named.identities[i].top.ino += 500; /* made anew at the same paths */
    expect("x", &named, "one", "vm1");
    for (unsigned i = 0; i < 3; i++)
        named.sources[i] = "elsewhere"; /* the names are not asked */
    expect("x", &named, NULL, NULL);
}

Test(state_find, O5_half_of_the_recorded_ones_are_enough)
{
    cast c = cast_of("abcd");
    record("base/one", "disk", &c, false);
    cast half = cast_of("fbae");
    expect("x", &half, "one", "disk");
    cast less = cast_of("efgd");
    expect("x", &less, NULL, NULL);
    int code;
    state_found found = find("x", &less, &code);
    g_autofree char *path = support_path("base/one/disk.state");
    cr_assert_str_eq(found.elsewhere, path);
    cr_assert_eq(found.shared, 3);
    cr_assert_eq(found.behind, 0);
    state_found_clear(&found);
}

Test(state_find, O5_who_is_stale_elsewhere_is_told)
{
    cast c = cast_of("abc");
    record("base/one", "disk", &c, true);
    g_autofree char *dir = rig_dir("base/one");
    state_shape shape = shape_of(&c);
    state *s = rig_open(dir, &shape);
    rig_set(s, 1, STATE_STALE_RANGES);
    state_close(s);
    cast one = cast_of("b");
    one.identities[0].mark = c.identities[1].mark;
    int code;
    state_found found = find("x", &one, &code);
    cr_assert_null(found.dir);
    cr_assert_eq(found.behind, 1);
    state_found_clear(&found);
    one.identities[0]
        .top.mtime_ns++; /* it was changed since: that record is no witness */
    found = find("x", &one, &code);
    cr_assert_eq(found.behind, 0);
    state_found_clear(&found);
}

/* c was used alone since: the set knows it, but as another. */
Test(state_find, O5_the_later_record_wins)
{
    cast c = cast_of("abc");
    record("base/one", "disk", &c, true);
    cast alone = cast_of("c");
    record("base/two", "disk", &alone, true);
    c.identities[2].mark = alone.identities[0].mark;
    expect("x", &c, "one", "disk");
    expect("x", &alone, "two", "disk");
    expect("one", &alone, "two", "disk");
    cast pair = cast_of("ab");
    pair.identities[0].mark = c.identities[0].mark;
    pair.identities[1].mark = c.identities[1].mark;
    expect("x", &pair, "one", "disk");
    record("base/three", "disk", &pair, true);
    expect("x", &pair, "three", "disk");
    c.identities[0].mark = pair.identities[0].mark;
    c.identities[1].mark = pair.identities[1].mark;
    expect("one", &c, "three", "disk");
}

Test(state_find, O5_two_that_are_as_good_are_refused)
{
    cast first = cast_of("ab"), second = cast_of("cd"), both = cast_of("abcd");
    record("base/one", "disk", &first, true);
    record("base/two", "disk", &second, true);
    for (unsigned i = 0; i < 2; i++) {
        both.identities[i].mark = first.identities[i].mark;
        both.identities[2 + i].mark = second.identities[i].mark;
    }
    int code;
    state_found found = find("x", &both, &code);
    cr_assert_eq(code, STATE_ERROR_TWO);
    cr_assert(!found.dir && !found.elsewhere);
    expect("two", &both, "two", "disk");
    cast third = cast_of("efg"); /* one that is better than both */
    both = cast_of("abcdefg");
    record("base/three", "disk", &third, true);
    for (unsigned i = 0; i < 7; i++)
        both.identities[i].mark = (i < 2   ? first.identities[i]
                                   : i < 4 ? second.identities[i - 2]
                                           : third.identities[i - 4])
                                      .mark;
    expect("x", &both, "three", "disk");
}

/* What is written there is trusted. */
Test(state_find, O5_only_what_is_ours_alone_is_looked_at)
{
    cast c = cast_of("abc");
    record("base/one", "disk", &c, true);
    support_run("chmod 0770 base/one");
    expect("one", &c, NULL, NULL);
    support_run("chmod 0700 base/one; chmod 0620 base/one/disk.state");
    expect("one", &c, NULL, NULL);
    support_run(
        "chmod 0600 base/one/disk.state; mv base/one base/two; ln -s two base/one");
    expect("one", &c, "two", "disk");
    support_run("mv base/two/disk.state x; ln -s ../../x base/two/disk.state");
    expect("two", &c, NULL, NULL);
    support_run("rm base/two/disk.state; mkfifo base/two/disk.state base/fifo.state; "
                "mkdir base/two/x.state; echo > base/file");
    expect("two", &c, NULL, NULL);
    support_run(
        "rm base/two/disk.state; head -c 300000 /dev/urandom > base/two/disk.state; "
        "truncate -s 1T base/two/big.state");
    expect("two", &c, NULL, NULL);
}

Test(state_find, O5_the_search_has_an_end)
{
    cast c = cast_of("abc");
    for (unsigned i = 0; i <= STATE_FIND_DIRS; i++) {
        g_autofree char *dir = support_path("base/%u", i);
        cr_assert_eq(g_mkdir_with_parents(dir, 0700), 0);
    }
    int code;
    state_found found = find("x", &c, &code);
    cr_assert(code == -1 && found.cut && !found.dir);
    state_found_clear(&found);
    record("base/x", "disk", &c, true);
    found = find("x", &c, &code); /* its own place is always looked at */
    cr_assert(found.dir && !found.cut);
    state_found_clear(&found);
}
