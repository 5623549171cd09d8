/*
 * The power fails while a qcow2 image is written: at every change of a file, with any part
 * of what was not synced on disk. Whatever is left opens, holds what was flushed, leaks at
 * most, and can be written again; so can what a crash leaves of that.
 *
 * Which states there are is up to crash-file.h, what they may hold to disk-model.h, and
 * whether they are sound to qcow2-fsck.h, and for some to qemu-img check. The rules of the
 * writer that this is about, I1 to I8, stand atop formats/qcow2-alloc.c.
 *
 * QUORUMFS_TEST_THOROUGH=1: all variants, more states, qemu-img for all of them (an hour).
 * QUORUMFS_TEST_VARIANT=name: only this one. QUORUMFS_TEST_KEEP=directory: the state that
 * failed is copied there.
 */
#include "tests/crash-file.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-rig.h"
#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAVED_MAX 512 /* states of one request */
#define DEEP_MAX  2   /* states that a second sweep starts from */

/* How much is done. */
typedef struct effort {
    unsigned requests, per_point, reopened,
        qemu_checked; /* the last two: one in so many */
} effort;
static const effort bounded = {60, 2, 12, 120}, second = {8, 2, 12, 60},
                    large = {25, 1, 12, 60}, thorough = {150, 6, 6, 1};
#define LARGE_CLUSTER (1u << 20) /* from here on an image is slow to copy */

typedef struct sweep {
    qcow2_rig *rig;
    effort effort;
    unsigned depth;
    uint64_t printed_seed, seed;
    unsigned n_files;
    struct {
        unsigned point;
        crash_choice choice;
    } saved[SAVED_MAX];
    unsigned n_saved, n_checked, n_deep;
} sweep;

static bool is_thorough(void)
{
    return g_getenv("QUORUMFS_TEST_THOROUGH") != NULL;
}

static bool one_in(sweep *s, unsigned n)
{
    return (support_random(&s->seed) >> 16) % n == 0;
}

/* ---- Taking states ------------------------------------------------------------------- */

static char *state_name(const sweep *s, unsigned k)
{
    return g_strdup_printf("state-%u-%u", s->depth, k);
}

static void save(sweep *s, crash_choice choice)
{
    if (s->n_saved == SAVED_MAX)
        return;
    g_autofree char *name = state_name(s, s->n_saved);
    g_autofree char *path = support_path("%s", name);
    g_autofree char *data_path = support_path("%s.data", name);
    crash_state_save(0, path, choice, &s->seed);
    if (s->n_files > 1)
        crash_state_save(1, data_path, choice, &s->seed);
    s->saved[s->n_saved].point = crash_points();
    s->saved[s->n_saved++].choice = choice;
}

static void at_point(void *user, crash_kind kind)
{
    sweep *s = user;
    if (kind == CRASH_SYNC)
        save(s, CRASH_DROP_ALL);
    else if (one_in(s, 8))
        save(s, CRASH_KEEP_ALL);
    bool open = crash_queued(0) > 0 || (s->n_files > 1 && crash_queued(1) > 0);
    for (unsigned i = 0; open && i < s->effort.per_point; i++)
        save(s, CRASH_SOME);
}

/* ---- Checking them ------------------------------------------------------------------- */

static void assert_fine(const sweep *s, unsigned k, const char *when, const char *wrong)
{
    if (!wrong)
        return;
    g_autofree char *name = state_name(s, k);
    const char *keep = g_getenv("QUORUMFS_TEST_KEEP");
    if (keep)
        support_try("cp %s %s.data state-before* %s* '%s' 2>/dev/null", name, name,
                    QCOW2_RIG_IMAGE, keep);
    cr_assert(false, "%s, seed %" PRIu64 ", depth %u, point %u, state %u (%d): %s: %s",
              s->rig->variant->name, s->printed_seed, s->depth, s->saved[k].point, k,
              s->saved[k].choice, when, wrong);
}

/* What is not sound; *ret says more. `after_close`: nothing excuses a dirty image. */
static char *check_sound(const char *name, bool after_close, qcow2_fsck *ret)
{
    g_autofree char *path = support_path("%s", name);
    *ret = qcow2_fsck_run(path);
    if (ret->error)
        return g_steal_pointer(&ret->error);
    return after_close && ret->dirty ? g_strdup("dirty") : NULL;
}

static char *check_qemu(const sweep *s, const char *name, bool dirty, bool leaks_allowed)
{
    int status = qcow2_rig_qemu_check(s->rig, name, dirty ? "-r all" : "");
    if (status == 0 && dirty) /* what it repaired must be nothing but that */
        status = qcow2_rig_qemu_check(s->rig, name, "");
    if (status == 0 || (status == 3 && leaks_allowed))
        return NULL;
    support_try("head -n 20 %s.check >&2", name);
    return g_strdup_printf("qemu-img check: %d", status);
}

/* A raw data file is an image of the disk at any time; after a crash it may be ahead of the
 * tables. */
static char *check_raw_file(const sweep *s, const char *name, uint64_t size)
{
    if (s->depth > 0 || !(s->rig->variant->traits & VARIANT_RAW_FILE))
        return NULL;
    size_t length;
    g_autofree char *path = support_path("%s.data", name);
    g_autofree uint8_t *file = support_load(path, &length);
    file = g_realloc(file, size + 1);
    if (length < size)
        memset(file + length, 0, size - length);
    return disk_model_crashed(s->rig->model, file, size);
}

static void copy_state(const char *from, const char *to)
{
    support_run("cp %s %s; [ ! -e %s.data ] || cp %s.data %s.data", from, to, from, from,
                to);
}

/* Opens it for writing, which repairs what is to be repaired, and goes on with it. */
static void check_reopened(sweep *s, unsigned k, const uint8_t *content, uint64_t size,
                           const qcow2_fsck *before)
{
    qcow2_fsck after;
    rig_request request;
    g_autofree char *name = state_name(s, k);
    if (g_getenv("QUORUMFS_TEST_KEEP"))
        copy_state(name, "state-before");
    qcow2_rig *r = qcow2_rig_new_copy(s->rig, name, content, size, s->seed);
    g_autofree char *wrong = qcow2_rig_open(r);
    assert_fine(s, k, "opened again", wrong);
    for (unsigned i = 0; i < 8; i++) {
        int error = qcow2_rig_step(r, &request);
        if (error && !(error == -ENOTSUP && request == RIG_RESIZE))
            wrong = g_strdup_printf("request %u: %s", request, g_strerror(-error));
        assert_fine(s, k, "written again", wrong);
    }
    wrong = qcow2_rig_see(r);
    assert_fine(s, k, "written again", wrong);
    qcow2_rig_close(r);
    wrong = check_sound(name, true, &after);
    assert_fine(s, k, "closed again", wrong);
    if (after.leaks > (before->dirty ? 0 : before->leaks))
        wrong = g_strdup_printf("%u leaks, %u before", (unsigned)after.leaks,
                                (unsigned)before->leaks);
    assert_fine(s, k, "closed again", wrong);
    wrong = qcow2_rig_check_snapshots(r, name);
    assert_fine(s, k, "closed again", wrong);
    if (one_in(s, s->effort.qemu_checked / 8 + 1))
        wrong = check_qemu(s, name, false, !before->dirty && before->leaks > 0);
    assert_fine(s, k, "closed again", wrong);
    qcow2_rig_free(r);
}

static void check_state(sweep *s, unsigned k)
{
    qcow2_fsck sound;
    uint64_t size;
    g_autofree uint8_t *content = NULL;
    g_autofree char *name = state_name(s, k);
    g_autofree char *wrong = qcow2_rig_read(s->rig, name, &content, &size);
    assert_fine(s, k, "read", wrong);
    wrong = disk_model_crashed(s->rig->model, content, size);
    assert_fine(s, k, "content", wrong);
    wrong = check_raw_file(s, name, size);
    assert_fine(s, k, "raw data file", wrong);
    wrong = check_sound(name, false, &sound);
    assert_fine(s, k, "check", wrong);
    wrong = one_in(s, 4) ? qcow2_rig_check_snapshots(s->rig, name) : NULL;
    assert_fine(s, k, "snapshots", wrong);
    if (s->n_checked++ < 2 || one_in(s, s->effort.qemu_checked)) {
        copy_state(name, "copy");
        wrong = check_qemu(s, "copy", sound.dirty, true);
        assert_fine(s, k, "check", wrong);
    }
    if (s->depth == 0 && s->n_deep < DEEP_MAX && one_in(s, 100)) {
        g_autofree char *deep = g_strdup_printf("deep-%u", s->n_deep++);
        copy_state(name, deep);
    }
    if (one_in(s, s->effort.reopened))
        check_reopened(s, k, content, size, &sound);
}

static void check_saved(void *user)
{
    sweep *s = user;
    for (unsigned k = 0; k < s->n_saved; k++)
        check_state(s, k);
    s->n_saved = 0;
}

/* ---- The sweep ----------------------------------------------------------------------- */

static void watch(sweep *s)
{
    const char *const ends[] = {"", ".data"};
    s->n_files = s->rig->variant->traits & VARIANT_DATA_FILE ? 2 : 1;
    for (unsigned i = 0; i < s->n_files; i++) {
        g_autofree char *path = support_path("%s%s", s->rig->name, ends[i]);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        cr_assert_geq(fd, 0);
        crash_watch(fd);
        close(fd);
    }
    crash_set_hook(at_point, s);
    s->rig->before_end = check_saved;
    s->rig->user = s;
}

/* `leaks`: so many the image may have when it is closed. */
static void sweep_run(sweep *s, uint64_t leaks)
{
    qcow2_fsck end;
    rig_request request;
    const char *variant = s->rig->variant->name;
    watch(s);
    g_autofree char *wrong = qcow2_rig_open(s->rig);
    cr_assert_null(wrong, "%s: %s", variant, wrong);
    check_saved(s);
    for (unsigned i = 0; i < s->effort.requests; i++) {
        int error = qcow2_rig_step(s->rig, &request);
        cr_assert(error == 0 || (error == -ENOTSUP && request == RIG_RESIZE),
                  "%s: request %u of kind %u: %s", variant, i, request,
                  g_strerror(-error));
        wrong = qcow2_rig_see(s->rig);
        cr_assert_null(wrong, "%s: after request %u of kind %u: %s", variant, i, request,
                       wrong);
    }
    qcow2_rig_close(s->rig);
    check_saved(s);
    crash_reset();
    wrong = check_sound(s->rig->name, true, &end);
    cr_assert_null(wrong, "%s: at the end: %s", variant, wrong);
    cr_assert_leq(end.leaks, leaks, "%s: %u leaks at the end", variant,
                  (unsigned)end.leaks);
    wrong = qcow2_rig_check_snapshots(s->rig, s->rig->name);
    cr_assert_null(wrong, "%s: at the end: %s", variant, wrong);
    wrong = check_qemu(s, s->rig->name, false, leaks > 0);
    cr_assert_null(wrong, "%s: at the end: %s", variant, wrong);
}

/* Crashes while what a crash left is opened, repaired and written. */
static void sweep_deeper(const sweep *first, const char *name)
{
    qcow2_fsck before;
    uint64_t size;
    g_autofree uint8_t *content = NULL;
    g_autofree sweep *s = g_new0(sweep, 1);
    s->printed_seed = first->printed_seed;
    s->seed = first->seed;
    s->depth = 1;
    s->effort = second;
    g_autofree char *wrong = qcow2_rig_read(first->rig, name, &content, &size);
    cr_assert_null(wrong);
    wrong = check_sound(name, false, &before);
    cr_assert_null(wrong);
    s->rig = qcow2_rig_new_copy(first->rig, name, content, size, first->seed);
    sweep_run(s, before.dirty ? 0 : before.leaks);
    qcow2_rig_free(s->rig);
}

/* A refcount table of one cluster of 512 bytes with blocks of 64 entries: nearly full. */
static uint64_t prefill_of(const qcow2_variant *v)
{
    return strcmp(v->name, "c512-r64") == 0 ? 1960u << 10 : 0;
}

static void sweep_variant(const qcow2_variant *v, uint64_t seed)
{
    g_autofree sweep *s = g_new0(sweep, 1);
    gint64 started = g_get_monotonic_time();
    s->effort = is_thorough()                      ? thorough
                : v->cluster_size >= LARGE_CLUSTER ? large
                                                   : bounded;
    s->printed_seed = seed;
    s->seed = seed ^ ((uint64_t)g_str_hash(v->name) << 20);
    s->rig = qcow2_rig_new(v, prefill_of(v), s->seed ^ 1);
    sweep_run(s, 0);
    unsigned n_states = s->n_checked;
    for (unsigned i = 0; i < s->n_deep; i++) {
        g_autofree char *name = g_strdup_printf("deep-%u", i);
        sweep_deeper(s, name);
    }
    qcow2_rig_free(s->rig);
    support_run("rm -f state-* deep-* copy*");
    if (g_getenv("QUORUMFS_TEST_VERBOSE"))
        fprintf(stderr, "%-16s %5u states, %.1f s\n", v->name, n_states,
                (double)(g_get_monotonic_time() - started) / 1e6);
}

/* The variants with all of `traits` and none of `without`, every `of`-th from `first` on. */
static void sweep_variants(unsigned traits, unsigned without, unsigned first, unsigned of)
{
    uint64_t seed = support_seed();
    unsigned found = 0;
    const char *only = g_getenv("QUORUMFS_TEST_VARIANT");
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        if ((v->traits & traits) != traits || v->traits & without ||
            (only && strcmp(only, v->name) != 0) ||
            (!only && !is_thorough() && !(v->traits & VARIANT_FEW)))
            continue;
        if (found++ % of == first)
            sweep_variant(v, seed);
    }
}

#define SPECIAL (VARIANT_BACKING | VARIANT_DATA_FILE | VARIANT_SNAPSHOTS)

Test(qcow2_crash, plain_images)
{
    sweep_variants(0, SPECIAL, 0, 2);
}

Test(qcow2_crash, more_plain_images)
{
    sweep_variants(0, SPECIAL, 1, 2);
}

Test(qcow2_crash, data_files)
{
    sweep_variants(VARIANT_DATA_FILE, 0, 0, 1);
}

Test(qcow2_crash, backing_files)
{
    sweep_variants(VARIANT_BACKING, VARIANT_DATA_FILE, 0, 1);
}

Test(qcow2_crash, snapshots)
{
    sweep_variants(VARIANT_SNAPSHOTS, VARIANT_BACKING, 0, 1);
}

/* No crash: what is cut off of a raw data file is not named any more. */
Test(qcow2_crash, a_raw_data_file_that_shrank_opens_again)
{
    uint64_t size;
    g_autofree uint8_t *content = NULL;
    const qcow2_variant *v = qcow2_variant_find("data-raw");
    qcow2_rig *r = qcow2_rig_new(v, 0, 1);
    g_autofree char *wrong = qcow2_rig_open(r);
    cr_assert_null(wrong, "%s", wrong);
    cr_assert_eq(image_write(r->im, r->buf, v->size - 512, 512), 0);
    cr_assert_eq(image_resize(r->im, v->size - 2 * v->cluster_size - 512), 0);
    qcow2_rig_close(r);
    wrong = qcow2_rig_read(r, r->name, &content, &size);
    cr_assert_null(wrong, "%s", wrong);
    cr_assert_eq(size, v->size - 2 * v->cluster_size - 512);
    cr_assert_eq(qcow2_rig_qemu_check(r, r->name, ""), 0);
    qcow2_rig_free(r);
}

static uint32_t refcount_table_clusters(const char *name)
{
    uint32_t clusters;
    size_t length;
    g_autofree char *path = support_path("%s", name);
    g_autofree uint8_t *file = support_load(path, &length);
    memcpy(&clusters, file + 56, sizeof clusters);
    return GUINT32_FROM_BE(clusters);
}

/* Few random requests come across this, and then but once. */
Test(qcow2_crash, I6_the_refcount_table_moves)
{
    const qcow2_variant *v = qcow2_variant_find("c512-r64");
    g_autofree sweep *s = g_new0(sweep, 1);
    s->printed_seed = s->seed = support_seed();
    s->effort = (effort){0, 24, 60, 120};
    s->rig = qcow2_rig_new(v, prefill_of(v), s->seed);
    cr_assert_eq(refcount_table_clusters(s->rig->name), 1);
    watch(s);
    g_autofree char *wrong = qcow2_rig_open(s->rig);
    cr_assert_null(wrong, "%s", wrong);
    for (uint64_t i = 0; i < 4; i++) {
        cr_assert_eq(qcow2_rig_write(s->rig, prefill_of(v) + (i << 15), 1 << 15), 0);
        cr_assert_eq(qcow2_rig_do(s->rig, RIG_FLUSH), 0);
    }
    qcow2_rig_close(s->rig);
    check_saved(s);
    crash_reset();
    cr_assert_gt(refcount_table_clusters(s->rig->name), 1);
    qcow2_rig_free(s->rig);
}
