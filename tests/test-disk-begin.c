/*
 * test-disk-begin.c: when a disk of qcow2 replicas begins to change their files: when all of
 * them can be written and nothing else is wrong, and not before.
 */
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define MIB (1024u * 1024u)

enum { DIRTY = 1, CORRUPT = 2 }; /* incompatible features */

typedef struct files {
    char *paths[3];
    uint8_t *bytes[3];
    size_t lengths[3];
} files;

/* Three equal qcow2 images with a feature set in each, an autoclear bit that nobody knows,
 * and lazy refcounts: whoever writes to them changes all of that. */
static void files_make(files *f, const uint8_t features[3])
{
    for (unsigned i = 0; i < 3; i++) {
        f->paths[i] = support_path("%c.qcow2", 'a' + i);
        support_run("qemu-img create -q -f qcow2 -o lazy_refcounts=on %c.qcow2 4M && "
                    "qemu-io -f qcow2 -c 'write -q -P 7 1M 1M' %c.qcow2",
                    'a' + i, 'a' + i);
        support_poke(f->paths[i], 79, &features[i], 1);
        support_poke(f->paths[i], 94, "\x80", 1);
    }
}

static void files_note(files *f)
{
    for (unsigned i = 0; i < 3; i++)
        f->bytes[i] = support_load(f->paths[i], &f->lengths[i]);
}

static void files_expect_same(files *f)
{
    for (unsigned i = 0; i < 3; i++) {
        size_t length;
        g_autofree uint8_t *now = support_load(f->paths[i], &length);
        cr_assert(length == f->lengths[i] && !memcmp(now, f->bytes[i], length),
                  "%s was changed", f->paths[i]);
    }
}

static void files_clear(files *f)
{
    for (unsigned i = 0; i < 3; i++) {
        g_free(f->paths[i]);
        g_free(f->bytes[i]);
    }
}

static disk *open_files(files *f, bool read_only, GError **error)
{
    disk_options *options = disk_rig_options(f->paths, 3, NULL);
    options->read_only = read_only;
    disk *d = disk_open(options, NULL, error);
    disk_options_free(options);
    return d;
}

static disk *must_open_files(files *f, bool read_only)
{
    g_autoptr(GError) error = NULL;
    disk *d = open_files(f, read_only, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "no error");
    return d;
}

static void expect_content(disk *d)
{
    const void *data;
    uint8_t expected[4096];
    memset(expected, 7, sizeof expected);
    cr_assert_eq(disk_read(d, MIB, sizeof expected, &data), 0);
    cr_assert(!memcmp(data, expected, sizeof expected));
}

/* QEMU finds nothing to complain of, and the same in all. */
static void files_check(const files *f)
{
    for (unsigned i = 0; i < 3; i++)
        support_run("qemu-img check -q %s && qemu-img compare -q %s %s", f->paths[i],
                    f->paths[0], f->paths[i]);
}

/* Everything that a guest could ask for. */
static void use_read_only(disk *d)
{
    cr_assert(!disk_writable(d));
    expect_content(d);
    cr_assert_eq(disk_write(d, 0, 1, "x"), -EROFS);
    cr_assert_eq(disk_discard(d, 0, MIB), -EROFS);
    cr_assert_eq(disk_resize(d, MIB), -EROFS);
    cr_assert_eq(disk_flush(d), 0);
    for (unsigned i = 0; i < 3; i++)
        cr_assert(!chain_writable(disk_chain(d, i)));
}

Test(disk_begin, a_disk_that_falls_back_to_read_only_changes_no_file)
{
    files f = {0};
    files_make(&f, (const uint8_t[]){DIRTY, DIRTY, CORRUPT});
    files_note(&f);
    disk *d = must_open_files(&f, false);
    const char *reason = disk_read_only_reason(d);
    cr_assert(reason && g_str_has_prefix(reason, "replica 'c': "), "%s", reason);
    cr_assert_not_null(strstr(reason, "corrupt"), "%s", reason);
    cr_assert(chain_get_layer(disk_chain(d, 0), 0)->dirty);
    use_read_only(d);
    cr_assert_eq(disk_close(d), 0);
    files_expect_same(&f);
    files_clear(&f);
}

Test(disk_begin, a_disk_that_was_to_be_read_only_changes_no_file)
{
    files f = {0};
    files_make(&f, (const uint8_t[]){DIRTY, 0, DIRTY});
    files_note(&f);
    disk *d = must_open_files(&f, true);
    cr_assert_null(disk_read_only_reason(d));
    use_read_only(d);
    cr_assert_eq(disk_close(d), 0);
    files_expect_same(&f);
    files_clear(&f);
}

Test(disk_begin, a_disk_that_does_not_open_changes_no_file)
{
    files f = {0};
    g_autoptr(GError) error = NULL;
    files_make(&f, (const uint8_t[]){DIRTY, DIRTY, 0});
    support_run("qemu-img resize -q c.qcow2 8M");
    files_note(&f);
    cr_assert_null(open_files(&f, false, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_SIZES), "%s", error->message);
    files_expect_same(&f);
    files_clear(&f);
}

/* The second of three: the first has begun by then, and is as good as before. */
Test(disk_begin, a_replica_that_cannot_be_made_ready_leaves_a_disk_to_read)
{
    files f = {0};
    files_make(&f, (const uint8_t[]){0, 0, 0});
    fault_clear();
    fault_add((fault){.kind = FAULT_BEGIN, .error = EIO, .after = 1, .times = 1});
    disk *d = must_open_files(&f, false);
    const char *reason = disk_read_only_reason(d);
    cr_assert(reason && g_str_has_prefix(reason, "replica 'b': "), "%s", reason);
    cr_assert_not_null(strstr(reason, g_strerror(EIO)), "%s", reason);
    use_read_only(d);
    cr_assert_eq(disk_close(d), 0);
    files_check(&f);
    files_clear(&f);
}

static void write_and_check(const uint8_t features[3])
{
    files f = {0};
    files_make(&f, features);
    disk *d = must_open_files(&f, false);
    cr_assert(disk_writable(d), "%s", disk_read_only_reason(d));
    cr_assert_null(disk_read_only_reason(d));
    for (unsigned i = 0; i < 3; i++)
        cr_assert(!chain_get_layer(disk_chain(d, i), 0)->dirty);
    expect_content(d);
    uint8_t data[5000];
    support_pattern(data, sizeof data, 0, 1);
    cr_assert_eq(disk_write(d, 2 * MIB - 1000, sizeof data, data), 0);
    cr_assert_eq(disk_write_zeroes(d, MIB, 65536), 0);
    cr_assert_eq(disk_flush(d), 0);
    const void *got;
    cr_assert_eq(disk_read(d, 2 * MIB - 1000, sizeof data, &got), 0);
    cr_assert(!memcmp(got, data, sizeof data));
    cr_assert_eq(disk_close(d), 0);
    files_check(&f);
    files_clear(&f);
}

Test(disk_begin, every_replica_is_ready_for_the_first_write)
{
    write_and_check((const uint8_t[]){0, 0, 0});
}

Test(disk_begin, unclean_ends_are_repaired_before_the_first_write)
{
    write_and_check((const uint8_t[]){DIRTY, 0, DIRTY});
}
