/*
 * libqcow-open.h: for the tests of the decoder process: files of the scratch directory
 * opened as a run of layers, and compared with what qemu-img makes of them.
 */
#ifndef TESTS_LIBQCOW_OPEN_H
#define TESTS_LIBQCOW_OPEN_H

#include "formats/libqcow-wire.h"
#include "formats/qcow-libqcow.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static inline int scratch_open(const char *name)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0, "cannot open %s", name);
    return fd;
}

/* Also of images that lie about themselves: nothing but the version is asserted. */
static inline libqcow_layer layer_describe(const char *name)
{
    libqcow_layer layer = {.fd = scratch_open(name), .filename = name};
    uint8_t start[8] = {0};
    cr_assert_eq(pread(layer.fd, start, sizeof start, 0), (ssize_t)sizeof start);
    layer.version = start[7];
    if (layer.version == 1) {
        qcow1_header header;
        GError *error = NULL;
        cr_assert(qcow1_header_read(layer.fd, name, &header, &error));
        layer.size = header.size;
        layer.cluster_size = 1u << header.cluster_bits;
        layer.has_backing = header.backing_file != NULL;
        qcow1_header_clear(&header);
    } else {
        qcow2_header header;
        GError *error = NULL;
        cr_assert(qcow2_header_read(layer.fd, name, &header, &error), "%s",
                  error ? error->message : "");
        layer.size = header.size;
        layer.cluster_size = 1u << header.cluster_bits;
        layer.has_backing = header.backing_file != NULL;
        qcow2_header_clear(&header);
    }
    return layer;
}

/* `names`: the files, top first, separated by blanks. */
static inline image *run_try(const char *names, const libqcow_options *options,
                             GError **error)
{
    g_auto(GStrv) parts = g_strsplit(names, " ", -1);
    libqcow_layer layers[8];
    unsigned n = 0;
    for (; parts[n]; n++)
        layers[n] = layer_describe(parts[n]);
    return libqcow_open(layers, n, options, error);
}

static inline image *run_open_with(const char *names, const libqcow_options *options)
{
    GError *error = NULL;
    image *im = run_try(names, options, &error);
    cr_assert_not_null(im, "%s: %s", names, error ? error->message : "");
    return im;
}

static inline image *run_open(const char *names)
{
    return run_open_with(names, NULL);
}

/* The image against the bytes of a raw file: all of it in pieces, then at random. */
static inline void assert_reads(image *im, const char *raw, uint64_t *seed)
{
    g_autofree char *path = support_path("%s", raw);
    size_t length = 0;
    g_autofree uint8_t *want = support_load(path, &length);
    g_autofree uint8_t *got = g_malloc(length + 1);
    cr_assert_eq(im->size, length, "size of %s", im->filename);
    cr_assert_eq(image_read(im, got, 0, length), 0, "%s", im->filename);
    cr_assert_eq(memcmp(got, want, length), 0, "%s differs", im->filename);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t offset = support_random(seed) % length;
        size_t part = support_random(seed) % (i % 2 ? 5000 : 400000);
        part = MIN(part, length - offset);
        memset(got, 0xee, part + 1);
        cr_assert_eq(image_read(im, got, offset, part), 0, "%s", im->filename);
        cr_assert_eq(memcmp(got, want + offset, part), 0, "%s differs at %zu+%zu",
                     im->filename, (size_t)offset, part);
        cr_assert_eq(got[part], 0xee);
    }
}

/* 2 MiB and a half cluster and a sector: data that does and does not compress, zeroes. */
static inline void source_make(const char *name)
{
    const size_t length = (2u << 20) + 32768 + 512;
    g_autofree uint8_t *data = g_malloc0(length);
    support_pattern(data, length, 0, 7);
    memset(data + 300000, 0, 400000);
    for (size_t i = 900000; i < 1500000; i++)
        data[i] = (uint8_t)(i >> 12);
    g_autofree char *path = support_path("%s", name);
    support_save(path, data, length);
}

#endif
