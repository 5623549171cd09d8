/*
 * qcow2-write-support.h: one image that a test makes, opens for writing below the chain,
 * and looks at: "image.qcow2" in the scratch directory.
 */
#ifndef TESTS_QCOW2_WRITE_SUPPORT_H
#define TESTS_QCOW2_WRITE_SUPPORT_H

#include "tests/chain-support.h"
#include "tests/qcow2-open.h"
#include "tests/qcow2-variants.h"
#include <inttypes.h>
#include <sys/stat.h>

#define KIB 1024u
#define MIB (1024u * KIB)

static const char file[] = "image.qcow2";

static inline void make(const char *commands)
{
    qcow2_variant v = {.name = file, .size = 4 * MIB, .commands = commands};
    qcow2_variant_create(&v, file);
}

static inline image *open_unbegun(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = support_path("%s", file);
    image *im = qcow2_open_flags(qcow2_open_writable, O_RDWR, path, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    return im;
}

static inline void begin(image *im)
{
    g_autoptr(GError) error = NULL;
    cr_assert(image_begin_writing(im, &error), "%s", error ? error->message : "");
}

static inline image *open_written(void)
{
    image *im = open_unbegun();
    begin(im);
    return im;
}

static inline void close_clean(image *im)
{
    image_close(im);
    qcow2_assert_clean(file, file);
}

static inline void write_pattern(image *im, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *buf = g_malloc(length);
    support_pattern(buf, length, offset, tag);
    cr_assert_eq(image_write(im, buf, offset, length), 0);
}

static inline void assert_pattern(image *im, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *buf = g_malloc(length), *wanted = g_malloc(length);
    support_pattern(wanted, length, offset, tag);
    cr_assert_eq(image_read(im, buf, offset, length), 0);
    cr_assert_eq(memcmp(buf, wanted, length), 0, "%zu at %" PRIu64, length, offset);
}

static inline void assert_zero(image *im, uint64_t offset, size_t length)
{
    g_autofree uint8_t *buf = g_malloc(length), *wanted = g_malloc0(length);
    cr_assert_eq(image_read(im, buf, offset, length), 0);
    cr_assert_eq(memcmp(buf, wanted, length), 0, "%zu at %" PRIu64, length, offset);
}

static inline image_extent extent_at(image *im, uint64_t offset)
{
    image_extent extent;
    cr_assert_eq(image_map(im, offset, im->size - offset, &extent), 0);
    return extent;
}

static inline uint64_t host_of(image *im, uint64_t offset)
{
    image_extent extent = extent_at(im, offset);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA, "kind %d at %" PRIu64, extent.kind,
                 offset);
    return extent.host_offset;
}

static inline struct stat file_stat(void)
{
    struct stat st;
    g_autofree char *path = support_path("%s", file);
    cr_assert_eq(stat(path, &st), 0);
    return st;
}

#endif
