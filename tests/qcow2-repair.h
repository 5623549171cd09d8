/*
 * qcow2-repair.h: images that were left dirty, repaired, and judged by qemu-img.
 */
#ifndef TESTS_QCOW2_REPAIR_H
#define TESTS_QCOW2_REPAIR_H

#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include "tests/qcow2-variants.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <unistd.h>

/* Makes an image ("r.qcow2", data file d.raw beside it) with these options of qemu-img
 * create. */
static inline void repair_create_sized(const char *options, const char *size)
{
    support_run("rm -f r.qcow2 d.raw; qemu-img create -q -f qcow2 -o "
                "lazy_refcounts=on,%s r.qcow2 %s",
                options, size);
}

static inline void repair_create(const char *options)
{
    repair_create_sized(options, "24M");
}

/* Runs qemu-io commands on it ("-c '...' -c '...'"), and then kills it before it can put
 * its refcounts on disk. */
static inline void repair_make_dirty(const char *commands, const char *what)
{
    support_try("ulimit -c 0; qemu-io -t unsafe -d unmap -f qcow2 %s -c abort r.qcow2 "
                ">r.log 2>&1",
                commands);
    g_autofree char *bits = support_output("od -An -tu1 -j79 -N1 r.qcow2");
    cr_assert(atoi(bits) & QCOW2_INCOMPAT_DIRTY, "%s: not dirty", what);
}

/* As the driver does when writing begins. False with an error. */
static inline bool repair_fd(int fd, int data_fd, GError **error)
{
    qcow2_header header;
    qcow2_layout layout;
    uint64_t size = 0, data_size = 0;
    if (!qcow2_header_read(fd, "/x", &header, error))
        return false;
    cr_assert_eq(file_get_size(fd, &size, NULL), 0);
    data_size = size;
    if (data_fd >= 0)
        cr_assert_eq(file_get_size(data_fd, &data_size, NULL), 0);
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    bool ok = qcow2_check_tables(fd, data_size, &header, "/x", &budget, &check, error);
    if (ok) {
        qcow2_layout_init(&layout, &header, size, data_size);
        ok = qcow2_repair_refcounts(fd, &header, &layout, "/x", error);
    }
    qcow2_header again;
    ok = ok && qcow2_header_read(fd, "/x", &again, error);
    if (ok) { /* what it says of the image is what the image says */
        cr_assert_eq(header.refcount_table_offset, again.refcount_table_offset);
        cr_assert_eq(header.refcount_table_clusters, again.refcount_table_clusters);
        cr_assert_eq(header.incompatible, again.incompatible);
        cr_assert_eq(header.autoclear, again.autoclear);
        cr_assert_eq(header.bitmap_count, again.bitmap_count);
        cr_assert_eq(again.incompatible & QCOW2_INCOMPAT_DIRTY, 0);
        cr_assert_eq(file_get_size(fd, &size, NULL), 0);
        cr_assert_eq(layout.file_size, size);
        qcow2_header_clear(&again);
    }
    qcow2_header_clear(&header);
    return ok;
}

static inline bool repair_file(const char *name, GError **error)
{
    g_autofree char *path = support_path("%s", name);
    g_autofree char *data_path = support_path("d.raw");
    int fd = open(path, O_RDWR | O_CLOEXEC);
    int data_fd = open(data_path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    bool ok = repair_fd(fd, data_fd, error);
    g_close(fd, NULL);
    if (data_fd >= 0)
        g_close(data_fd, NULL);
    return ok;
}

static inline void repair_ok(const char *name, const char *what)
{
    g_autoptr(GError) error = NULL;
    cr_assert(repair_file(name, &error), "%s: %s", what, error ? error->message : "");
}

/* Repairs r.qcow2 and compares it with what qemu-img makes of a copy. */
static inline void repair_against_qemu(const char *what)
{
    support_run("cp r.qcow2 q.qcow2");
    int rc = support_try("qemu-img check -q -r all q.qcow2 >q.log 2>&1");
    cr_assert(rc == 0, "%s: qemu-img failed itself", what);
    repair_ok("r.qcow2", what);
    qcow2_assert_clean("r.qcow2", what);
    cr_assert_eq(support_try("qemu-img compare -q r.qcow2 q.qcow2"), 0, "%s", what);
}

#endif
