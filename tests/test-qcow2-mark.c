/*
 * test-qcow2-mark.c: the set's mark in a qcow2 header (O5): what QEMU makes of it, images
 * that have no room, hostile headers, and the power failing at every step (W6).
 */
#include "formats/qcow2-internal.h"
#include "tests/crash-file.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const qcow2_mark first = {
    .present = true, .set_id = "0123456789abcde", .replica = 7, .generation = 41};

static int open_named(const char *name)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert(fd >= 0, "%s", path);
    return fd;
}

static qcow2_mark mark_of(const char *name, const char **ret_why)
{
    qcow2_mark mark;
    int fd = open_named(name);
    cr_assert_eq(qcow2_mark_read(fd, &mark, ret_why), 0);
    close(fd);
    return mark;
}

static int write_to(const char *name, const qcow2_mark *mark)
{
    int fd = open_named(name);
    int result = qcow2_mark_write(fd, mark);
    close(fd);
    return result;
}

static void assert_mark(const char *name, const qcow2_mark *expected)
{
    qcow2_mark found = mark_of(name, NULL);
    cr_assert(qcow2_mark_equal(&found, expected), "%s: generation %d, clean %d", name,
              (int)found.generation, found.clean);
}

static void assert_sound(const char *name, const char *backing)
{
    support_run("qemu-img check -q -f qcow2 %s", name);
    g_autofree char *info = support_output("qemu-img info -f qcow2 %s", name);
    g_autofree char *line = g_strdup_printf("backing file: %s", backing);
    cr_assert_eq(strstr(info, line) != NULL, *backing != '\0', "%s", info);
}

/* ---- QEMU ---- */

static const char *const kinds[] = {
    "compat=1.1",
    "compat=0.10",
    "compat=1.1,cluster_size=4k",
    "compat=1.1,cluster_size=2M",
    "compat=1.1,compression_type=zstd",
    "compat=1.1,extended_l2=on",
    "compat=1.1,lazy_refcounts=on",
    "compat=1.1,data_file=x.data,data_file_raw=on",
};

Test(qcow2_mark, O5_qemu_reads_and_keeps_it)
{
    qcow2_mark second = first;
    second.clean = true;
    second.generation = 42;
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        support_run("rm -f x*; qemu-img create -q -f qcow2 -o %s x 8M && "
                    "qemu-io -f qcow2 -c 'write -P 5 0 1M' x >/dev/null",
                    kinds[i]);
        const char *why = "";
        cr_assert(!mark_of("x", &why).present);
        cr_assert_null(why, "%s: %s", kinds[i], why);
        cr_assert_eq(write_to("x", &first), 0);
        assert_mark("x", &first);
        assert_sound("x", "");
        cr_assert_eq(write_to("x", &second), 0);
        assert_mark("x", &second);
        support_run("qemu-io -f qcow2 -c 'write -P 6 1M 1M' -c 'read -P 5 0 1M' x | "
                    "grep -q 'read 1048576' && qemu-img resize -q -f qcow2 x 9M");
        assert_mark("x", &second);
        assert_sound("x", "");
    }
}

/* QEMU writes extensions and name anew, one behind the other. */
Test(qcow2_mark, O5_rebase_and_amend_keep_it)
{
    support_run("qemu-img create -q -f raw base.raw 8M; cp base.raw other-base.raw;"
                "qemu-img create -q -f qcow2 -F raw -b base.raw x 8M");
    cr_assert_eq(write_to("x", &first), 0);
    assert_sound("x", "base.raw");
    support_run("qemu-img rebase -u -f qcow2 -F raw -b other-base.raw x");
    assert_mark("x", &first);
    assert_sound("x", "other-base.raw");
    qcow2_mark next = first;
    for (unsigned i = 0; i < 5; i++) {
        next.generation++;
        cr_assert_eq(write_to("x", &next), 0);
        assert_mark("x", &next);
    }
    support_run("qemu-img amend -q -f qcow2 -o compat=0.10 x");
    assert_mark("x", &next);
    support_run("qemu-img amend -q -f qcow2 -o compat=1.1 x;"
                "qemu-img rebase -u -f qcow2 -b '' x");
    assert_mark("x", &next);
    assert_sound("x", "");
    support_run("qemu-img convert -f qcow2 -O qcow2 x y");
    cr_assert(!mark_of("y", NULL).present);
}

/* ---- Names and room ---- */

Test(qcow2_mark, the_backing_name_makes_way)
{
    static const unsigned lengths[] = {1, 7, 8, 100, 143, 144, 145, 500, 1000, 1015};
    support_run("qemu-img create -q -f raw base.raw 1M");
    for (unsigned i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_autofree char *name = g_strnfill(lengths[i], 'n');
        support_run("rm -f x; qemu-img create -q -f qcow2 -u -F raw -b %s x 1M", name);
        cr_assert_eq(write_to("x", &first), 0);
        assert_mark("x", &first);
        g_autofree char *info = support_output("qemu-img info -U -f qcow2 x 2>&1");
        g_autofree char *line = g_strdup_printf("backing file: %s ", name);
        g_autofree char *plain = g_strdup_printf("backing file: %s\n", name);
        cr_assert(strstr(info, line) || strstr(info, plain), "%s", info);
        support_run("qemu-img rebase -u -f qcow2 -F raw -b base.raw x");
        assert_mark("x", &first);
        assert_sound("x", "base.raw");
    }
}

Test(qcow2_mark, small_clusters_go_without)
{
    static const char *const sizes[] = {"512", "1k"};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        support_run("qemu-img create -q -f qcow2 -o cluster_size=%s x 1M", sizes[i]);
        const char *why = NULL;
        size_t length;
        g_autofree char *path = support_path("x");
        g_autofree uint8_t *before = support_load(path, &length);
        cr_assert(!mark_of("x", &why).present);
        cr_assert_not_null(why);
        cr_assert_eq(write_to("x", &first), -ENOTSUP);
        g_autofree uint8_t *after = support_load(path, &length);
        cr_assert_eq(memcmp(before, after, length), 0);
    }
    support_run("qemu-img create -q -f qcow2 -o cluster_size=2k x 1M");
    cr_assert_eq(write_to("x", &first), 0);
    g_autofree char *name = g_strnfill(1023, 'n');
    support_run("qemu-img rebase -q -u -f qcow2 -F raw -b %s x", name);
    assert_mark("x", &first);
}

Test(qcow2_mark, what_is_no_qcow2_goes_without)
{
    const char *why = NULL;
    support_run(
        "truncate -s 1M raw; qemu-img create -q -f qcow2 x 1M; truncate -s 50 short;"
        "qemu-img create -q -f qcow v1 1M");
    static const char *const names[] = {"raw", "short", "v1"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        cr_assert(!mark_of(names[i], &why).present);
        cr_assert_not_null(why);
        cr_assert_eq(write_to(names[i], &first), -ENOTSUP);
    }
}

/* ---- O3 ---- */

/* Any header gives an answer, and memory is read only where there is some. */
Test(qcow2_mark, O3_hostile_headers)
{
    uint64_t seed = support_seed();
    support_run("qemu-img create -q -f qcow2 -u -F raw -b base.raw x 8M");
    cr_assert_eq(write_to("x", &first), 0);
    g_autofree char *path = support_path("x");
    size_t length;
    g_autofree uint8_t *good = support_load(path, &length);
    unsigned found = 0, none = 0;
    for (unsigned round = 0; round < 20000; round++) {
        size_t some = support_random(&seed) % (QCOW2_MARK_END + 1);
        g_autofree uint8_t *bad = g_memdup2(good, MAX(some, 1));
        for (unsigned k = support_random(&seed) % 4; k > 0 && some > 0; k--)
            bad[support_random(&seed) % MIN(some, 800)] = (uint8_t)support_random(&seed);
        qcow2_mark mark;
        const char *why;
        qcow2_mark_find(bad, some, &mark, &why);
        found += mark.present && mark.generation == 41;
        none += !mark.present;
        cr_assert(mark.generation == 0 || mark.generation == 41);
    }
    cr_assert(found > 100 && none > 100);
}

Test(qcow2_mark, O3_two_marks_are_none)
{
    support_run("qemu-img create -q -f qcow2 x 8M");
    cr_assert_eq(write_to("x", &first), 0);
    g_autofree char *path = support_path("x");
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    uint8_t *at = memmem(bytes, 4096, "qvmk", 4);
    memcpy(at + 136, at, 136);
    memset(at + 272, 0, 8);
    support_save(path, bytes, length);
    const char *why = NULL;
    qcow2_mark mark = mark_of("x", &why);
    cr_assert(mark.present && mark.generation == 0);
    cr_assert_not_null(why);
    cr_assert_eq(write_to("x", &first), -ENOTSUP);
}

/* ---- Crashes ---- */

typedef struct sweep {
    unsigned states;
    uint64_t seed;
    const qcow2_mark *old, *next;
    const char *backing;
    unsigned n_old, n_next;
} sweep;

static void check_backing(const sweep *s, int fd)
{
    qcow2_header h;
    g_autoptr(GError) error = NULL;
    cr_assert(qcow2_header_read(fd, "state", &h, &error), "%s",
              error ? error->message : "");
    cr_assert_eq(g_strcmp0(h.backing_file ? h.backing_file : "", s->backing), 0);
    qcow2_header_clear(&h);
}

static void check_state(sweep *s, bool by_qemu)
{
    qcow2_mark mark = mark_of("state", NULL);
    bool is_old = qcow2_mark_equal(&mark, s->old);
    bool is_next = qcow2_mark_equal(&mark, s->next);
    cr_assert(is_old || is_next, "state %u: generation %d", s->states,
              (int)mark.generation);
    s->n_old += is_old;
    s->n_next += is_next;
    if (by_qemu)
        support_run("cp --sparse=always state check; qemu-io -r -f qcow2 -c 'read -P 5 0 "
                    "64k' check | grep -q 'read 65536'");
    if (by_qemu)
        assert_sound("check", s->backing);
    /* and it can be marked once more, whatever stands there */
    int fd = open_named("state");
    check_backing(s, fd);
    cr_assert_eq(qcow2_mark_write(fd, s->next), 0);
    check_backing(s, fd);
    close(fd);
    assert_mark("state", s->next);
    if (by_qemu)
        assert_sound("state", s->backing);
}

static void at_point(void *user, crash_kind kind)
{
    sweep *s = user;
    g_autofree char *path = support_path("state");
    for (unsigned k = 0; k < (kind == CRASH_SYNC ? 1 : 60); k++) {
        crash_choice choice = k == 0   ? CRASH_DROP_ALL
                              : k == 1 ? CRASH_KEEP_ALL
                                       : CRASH_SOME;
        crash_state_save(0, path, choice, &s->seed);
        s->states++;
        check_state(s, k < 3);
    }
}

static void crash_while_marking(const char *backing, const qcow2_mark *old,
                                const qcow2_mark *next)
{
    sweep s = {.seed = support_seed(), .old = old, .next = next, .backing = backing};
    int fd = open_named("x");
    crash_watch(fd);
    crash_set_hook(at_point, &s);
    cr_assert_eq(qcow2_mark_write(fd, next), 0);
    crash_reset();
    close(fd);
    assert_mark("x", next);
    cr_assert(s.n_old > 0 && s.n_next > 0, "%u old, %u next", s.n_old, s.n_next);
}

Test(qcow2_mark, W6_a_crash_leaves_the_old_or_the_new_one)
{
    qcow2_mark none = {0}, next = first, last = first;
    next.clean = true;
    last.generation = 50;
    support_run(
        "qemu-img create -q -f raw base.raw 1M; qemu-img create -q -f qcow2 -F raw "
        "-b base.raw x 1M; qemu-io -f qcow2 -c 'write -P 5 0 64k' x >/dev/null");
    crash_while_marking("base.raw", &none, &first);
    crash_while_marking("base.raw", &first, &next);
    crash_while_marking("base.raw", &next, &last);
}

Test(qcow2_mark, W6_a_crash_in_a_header_without_a_name)
{
    qcow2_mark none = {0};
    support_run("qemu-img create -q -f qcow2 x 1M; "
                "qemu-io -f qcow2 -c 'write -P 5 0 64k' x >/dev/null");
    crash_while_marking("", &none, &first);
}

Test(qcow2_mark, a_write_that_fails_is_told)
{
    support_run("qemu-img create -q -f raw base.raw 1M; "
                "qemu-img create -q -f qcow2 -F raw -b base.raw x 1M; cp x origin");
    for (unsigned at = 1; at <= 4; at++) {
        support_run("cp origin x");
        int fd = open_named("x");
        crash_watch(fd);
        crash_set_fault((crash_fault){.kinds = CRASH_WRITE, .at = at, .error = EIO});
        cr_assert_eq(qcow2_mark_write(fd, &first), -EIO);
        crash_set_fault((crash_fault){.kinds = CRASH_SYNC, .at = 1, .error = EIO});
        cr_assert_eq(qcow2_mark_write(fd, &first), -EIO);
        cr_assert_eq(qcow2_mark_write(fd, &first), 0);
        crash_reset();
        close(fd);
        assert_mark("x", &first);
        assert_sound("x", "base.raw");
    }
}
