/*
 * qcow2-craft.h: qcow2 images made word by word, and what tests of the map assert.
 */
#ifndef TESTS_QCOW2_CRAFT_H
#define TESTS_QCOW2_CRAFT_H

#include "tests/qcow2-open.h"
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIB     1024u
#define MIB     (1024u * KIB)
#define COPIED  ((uint64_t)1 << 63) /* bits of entries */
#define PACKED  ((uint64_t)1 << 62)
#define CLUSTER (64u * KIB)

static inline image *open_image(const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = support_path("%s", name);
    image *im = qcow2_open_with(qcow2_open, path, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    return im;
}

static inline image_extent extent_at(image *im, uint64_t offset)
{
    image_extent extent;
    cr_assert_eq(image_map(im, offset, im->size - offset, &extent), 0);
    return extent;
}

static inline void assert_extent(image *im, uint64_t offset, image_extent_kind kind,
                                 uint64_t length)
{
    image_extent extent = extent_at(im, offset);
    cr_assert_eq(extent.kind, kind, "kind %d at %" PRIu64, extent.kind, offset);
    cr_assert_eq(extent.length, length, "length %" PRIu64 " at %" PRIu64, extent.length,
                 offset);
    cr_assert_eq(extent.fd >= 0, kind == IMAGE_EXTENT_DATA);
}

/* An image made by hand: header, one cluster each for refcount table, refcount block, L1
 * and L2, then data. Sparse, in memory, of any apparent size. */
typedef struct craft {
    int fd;
    uint32_t cluster_bits;
    uint64_t reftable, block, l1, l2, data; /* offsets */
} craft;

static inline void put_word(const craft *c, uint64_t offset, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    cr_assert_eq(pwrite(c->fd, &value, 8, (off_t)offset), 8);
}

static inline void put_field(const craft *c, uint64_t offset, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    cr_assert_eq(pwrite(c->fd, &value, 4, (off_t)offset), 4);
}

static inline void craft_geometry(craft *c, uint64_t size, uint32_t l1_entries)
{
    put_word(c, 24, size);
    put_field(c, 36, l1_entries);
}

static inline craft craft_new(uint32_t version, uint32_t cluster_bits,
                              uint64_t incompatible)
{
    uint64_t cluster = (uint64_t)1 << cluster_bits;
    craft c = {.fd = memfd_create("image", MFD_CLOEXEC),
               .cluster_bits = cluster_bits,
               .reftable = cluster,
               .block = 2 * cluster,
               .l1 = 3 * cluster,
               .l2 = 4 * cluster,
               .data = 5 * cluster};
    cr_assert_eq(ftruncate(c.fd, (off_t)(16 * cluster)), 0);
    put_field(&c, 0, QCOW2_MAGIC);
    put_field(&c, 4, version);
    put_field(&c, 20, cluster_bits);
    put_word(&c, 40, c.l1);
    put_word(&c, 48, c.reftable);
    put_field(&c, 56, 1);
    put_word(&c, 72, incompatible);
    put_field(&c, 96, 4);
    put_field(&c, 100, 104);
    put_word(&c, c.reftable, c.block);
    put_word(&c, c.l1, c.l2 | COPIED);
    craft_geometry(&c, 20 * cluster, 1);
    return c;
}

static inline image *craft_open(const craft *c, GError **error)
{
    qcow2_header h;
    if (!qcow2_header_read(c->fd, "/x", &h, error))
        return NULL;
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    image *im = NULL;
    if (qcow2_check_tables(c->fd, 0, &h, "/x", &budget, &check, error))
        im = qcow2_open(dup(c->fd), -1, &h, "/x", error);
    qcow2_header_clear(&h);
    return im;
}

static inline qcow2_check craft_check(const craft *c)
{
    qcow2_header h;
    qcow2_check check;
    g_autoptr(GError) error = NULL;
    cr_assert(qcow2_header_read(c->fd, "/x", &h, NULL));
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    cr_assert(qcow2_check_tables(c->fd, 0, &h, "/x", &budget, &check, &error), "%s",
              error ? error->message : "");
    qcow2_header_clear(&h);
    return check;
}

static inline void assert_refused(const craft *c, const char *text)
{
    g_autoptr(GError) error = NULL;
    image *im = craft_open(c, &error);
    cr_assert_null(im, "accepted: %s", text);
    cr_assert_eq(error->code, IMAGE_ERROR_INVALID, "%s", error->message);
    cr_assert(strstr(error->message, text), "'%s' is not in: %s", text, error->message);
    cr_assert_null(strchr(error->message, '\n'));
}

#endif
