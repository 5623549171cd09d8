/*
 * Changes of the header on disk: the fields that are meant and nothing else, in one write,
 * and never into a file that is no qcow2 image any more.
 */
#include "formats/qcow2-internal.h"
#include "tests/qcow2-craft.h"
#include <errno.h>

static unsigned n_writes, n_syncs;
static int next_error;

int __real_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset)
{
    cr_assert_eq(offset, 0);
    cr_assert_eq(length, 512);
    n_writes++;
    return next_error ? next_error : __real_file_write_full(fd, buf, length, offset);
}

int __real_file_sync(int fd);
int __wrap_file_sync(int fd);
int __wrap_file_sync(int fd)
{
    cr_assert_eq(n_syncs + 1, n_writes); /* each write is synced, and after it */
    n_syncs++;
    return __real_file_sync(fd);
}

/* The first cluster before and after: only `length` bytes at `offset` may differ. */
static void assert_only(const craft *c, const uint8_t *before, size_t offset,
                        size_t length)
{
    g_autofree uint8_t *after = g_malloc(CLUSTER);
    cr_assert_eq(pread(c->fd, after, CLUSTER, 0), CLUSTER);
    memset(after + offset, 0, length);
    g_autofree uint8_t *expected = g_memdup2(before, CLUSTER);
    memset(expected + offset, 0, length);
    cr_assert_eq(memcmp(after, expected, CLUSTER), 0);
}

static qcow2_header reread(const craft *c)
{
    qcow2_header h;
    g_autoptr(GError) error = NULL;
    cr_assert(qcow2_header_read(c->fd, "/x", &h, &error), "%s",
              error ? error->message : "");
    return h;
}

Test(qcow2_update, each_field_alone)
{
    craft c = craft_new(3, 16, QCOW2_INCOMPAT_DIRTY);
    g_autofree uint8_t *before = g_malloc(CLUSTER);
    put_word(&c, 80, 1);
    put_word(&c, 88, 0x8000000000000007u);
    put_field(&c, 504, 0x12345678);
    put_field(&c, 512, 0x12345678);
    cr_assert_eq(pread(c.fd, before, CLUSTER, 0), CLUSTER);

    cr_assert_eq(qcow2_update_size(c.fd, 19 * CLUSTER), 0);
    assert_only(&c, before, 24, 8);
    cr_assert_eq(reread(&c).size, 19 * CLUSTER);
    cr_assert_eq(qcow2_update_size(c.fd, 20 * CLUSTER), 0);

    cr_assert_eq(
        qcow2_update_incompatible(c.fd, QCOW2_INCOMPAT_CORRUPT, QCOW2_INCOMPAT_DIRTY), 0);
    assert_only(&c, before, 72, 8);
    cr_assert_eq(reread(&c).incompatible, QCOW2_INCOMPAT_CORRUPT);
    cr_assert_eq(
        qcow2_update_incompatible(c.fd, QCOW2_INCOMPAT_DIRTY, QCOW2_INCOMPAT_CORRUPT), 0);

    cr_assert_eq(qcow2_update_autoclear(c.fd, 6), 0);
    assert_only(&c, before, 88, 8);
    cr_assert_eq(reread(&c).autoclear, 0x8000000000000001u);
    put_word(&c, 88, 0x8000000000000007u);

    cr_assert_eq(qcow2_update_refcount_table(c.fd, 7 * CLUSTER, 2), 0);
    assert_only(&c, before, 48, 12);
    qcow2_header h = reread(&c);
    cr_assert_eq(h.refcount_table_offset, 7 * CLUSTER);
    cr_assert_eq(h.refcount_table_clusters, 2);
    cr_assert_eq(qcow2_update_refcount_table(c.fd, c.reftable, 1), 0);

    cr_assert_eq(qcow2_update_l1(c.fd, 3ull << 29, 3, 8 * CLUSTER), 0);
    h = reread(&c);
    cr_assert_eq(h.size, 3ull << 29);
    cr_assert_eq(h.l1_entries, 3);
    cr_assert_eq(h.l1_offset, 8 * CLUSTER);
    cr_assert_eq(qcow2_update_l1(c.fd, 20 * CLUSTER, 1, c.l1), 0);
    assert_only(&c, before, 0, 0);
    cr_assert_eq(n_writes, 9);
    cr_assert_eq(n_syncs, 9);
    close(c.fd);
}

Test(qcow2_update, version_2_has_no_features)
{
    craft c = craft_new(2, 16, 0);
    cr_assert_eq(qcow2_update_autoclear(c.fd, 1), 0);
    cr_assert_eq(qcow2_update_incompatible(c.fd, 0, 1), 0);
    cr_assert_eq(qcow2_update_incompatible(c.fd, 1, 0), -ENOTSUP);
    cr_assert_eq(n_writes, 0);
    close(c.fd);
}

Test(qcow2_update, what_is_no_image_stays_as_it_is)
{
    craft c = craft_new(3, 16, 0);
    put_field(&c, 0, QCOW2_MAGIC + 1);
    cr_assert_eq(qcow2_update_autoclear(c.fd, 1), -EIO);
    cr_assert_eq(qcow2_update_incompatible(c.fd, 1, 0), -EIO);
    cr_assert_eq(qcow2_update_size(c.fd, 1), -EIO);
    cr_assert_eq(qcow2_update_l1(c.fd, 1, 1, 1), -EIO);
    cr_assert_eq(qcow2_update_refcount_table(c.fd, 1, 1), -EIO);
    put_field(&c, 0, QCOW2_MAGIC);
    cr_assert_eq(ftruncate(c.fd, 511), 0);
    cr_assert_eq(qcow2_update_size(c.fd, 1), -EIO);
    cr_assert_eq(n_writes, 0);
    close(c.fd);
}

Test(qcow2_update, a_write_that_fails_is_told)
{
    craft c = craft_new(3, 16, 0);
    next_error = -ENOSPC;
    cr_assert_eq(qcow2_update_size(c.fd, 1), -ENOSPC);
    cr_assert_eq(n_syncs, 0);
    close(c.fd);
}
