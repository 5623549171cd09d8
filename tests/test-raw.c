/*
 * Raw files: bytes are bytes, holes are zero, a truncated file is an error.
 */
#include "formats/raw.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static image *open_raw(const char *name, bool writable)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    GError *error = NULL;
    image *im = raw_open(fd, path, writable, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    return im;
}

static image *make_raw(const char *name, size_t size, bool writable)
{
    g_autofree char *path = support_path("%s", name);
    g_autofree uint8_t *bytes = g_malloc(size + 1);
    support_pattern(bytes, size, 0, 1);
    support_save(path, bytes, size);
    return open_raw(name, writable);
}

static bool is_pattern(image *im, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *got = g_malloc(length);
    g_autofree uint8_t *expected = g_malloc(length);
    cr_assert_eq(image_read(im, got, offset, length), 0);
    support_pattern(expected, length, offset, tag);
    return !memcmp(got, expected, length);
}

static bool is_zero(image *im, uint64_t offset, size_t length)
{
    g_autofree uint8_t *got = g_malloc(length);
    g_autofree uint8_t *zeroes = g_malloc0(length);
    cr_assert_eq(image_read(im, got, offset, length), 0);
    return !memcmp(got, zeroes, length);
}

Test(raw, odd_sizes_are_exact_to_the_byte)
{
    image *im = make_raw("odd.raw", 12345, true);
    uint8_t buf[32];
    cr_assert_eq(im->size, 12345);
    cr_assert(is_pattern(im, 0, 12345, 1));
    cr_assert(is_pattern(im, 12344, 1, 1));
    cr_assert_eq(image_read(im, buf, 12344, 2), -EINVAL);
    support_pattern(buf, 3, 12342, 2);
    cr_assert_eq(image_write(im, buf, 12342, 3), 0);
    cr_assert_eq(image_write(im, buf, 12343, 3), -EINVAL);
    cr_assert(is_pattern(im, 12342, 3, 2));
    cr_assert(is_pattern(im, 0, 12342, 1));
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    g_autofree char *path = support_path("odd.raw");
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    cr_assert_eq(length, 12345);
    cr_assert_neq(memcmp(bytes + 12342, bytes, 3), 0);
}

Test(raw, an_empty_file_is_an_empty_image)
{
    image *im = make_raw("empty.raw", 0, true);
    uint8_t byte;
    cr_assert_eq(im->size, 0);
    cr_assert_eq(image_read(im, &byte, 0, 0), 0);
    cr_assert_eq(image_read(im, &byte, 0, 1), -EINVAL);
    image_close(im);
}

Test(raw, a_read_only_image_refuses_writes)
{
    image *im = make_raw("ro.raw", 4096, false);
    cr_assert_eq(image_write(im, "x", 0, 1), -EROFS);
    cr_assert_eq(image_discard(im, 0, 512), -EROFS);
    cr_assert_eq(image_resize(im, 0), -EROFS);
    image_close(im);
}

Test(raw, a_truncated_file_is_an_error_not_zeroes)
{
    image *im = make_raw("cut.raw", 1 << 20, true);
    g_autofree char *path = support_path("cut.raw");
    cr_assert_eq(truncate(path, 65536 + 100), 0);
    uint8_t buf[512];
    image_extent extent;
    cr_assert(is_pattern(im, 65536, 100, 1));
    cr_assert_eq(image_read(im, buf, 65536, 101), -EIO);
    cr_assert_eq(image_read(im, buf, 1 << 19, 512), -EIO);
    cr_assert_eq(image_map(im, 1 << 19, 512, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    image_close(im);
}

Test(raw, map_finds_holes_and_data)
{
    support_run("truncate -s 1000000 holes.raw && "
                "printf x | dd of=holes.raw bs=64k seek=4 conv=notrunc status=none");
    image *im = open_raw("holes.raw", false);
    image_extent extent;
    uint64_t at = 0, data = 0;
    for (; at < im->size; at += extent.length) {
        cr_assert_eq(image_map(im, at, im->size - at, &extent), 0);
        cr_assert_gt(extent.length, 0);
        if (extent.kind == IMAGE_EXTENT_ZERO) {
            cr_assert_eq(extent.fd, -1);
            continue;
        }
        cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
        cr_assert_geq(extent.fd, 0);
        cr_assert_eq(extent.host_offset, at);
        cr_assert_leq(at, 4 * 65536);
        cr_assert_gt(at + extent.length, 4 * 65536);
        data += extent.length;
    }
    cr_assert_eq(at, im->size);
    cr_assert_gt(data, 0);
    cr_assert_lt(data, 300000);
    cr_assert_eq(image_map(im, 7, 9, &extent), 0);
    cr_assert_eq(extent.length, 9);
    image_close(im);
}

Test(raw, zeroing_and_discarding_read_back_as_zeroes)
{
    image *im = make_raw("zero.raw", 1 << 20, true);
    cr_assert_eq(image_write_zeroes(im, 70001, 200003), 0);
    cr_assert_eq(image_discard(im, 500001, 300007), 0);
    cr_assert(is_zero(im, 70001, 200003));
    cr_assert(is_zero(im, 500001, 300007));
    cr_assert(is_pattern(im, 0, 70001, 1));
    cr_assert(is_pattern(im, 270004, 500001 - 270004, 1));
    cr_assert(is_pattern(im, 800008, (1 << 20) - 800008, 1));
    cr_assert_eq(im->size, 1 << 20);
    image_close(im);
}

Test(raw, resize_grows_with_zeroes_and_shrinks)
{
    image *im = make_raw("resize.raw", 10000, true);
    cr_assert_eq(image_resize(im, 30001), 0);
    cr_assert(is_pattern(im, 0, 10000, 1));
    cr_assert(is_zero(im, 10000, 20001));
    cr_assert_eq(image_resize(im, 99), 0);
    cr_assert_eq(im->size, 99);
    cr_assert_eq(image_resize(im, 20000), 0);
    cr_assert(is_pattern(im, 0, 99, 1));
    cr_assert(is_zero(im, 99, 19901));
    image_close(im);
}

Test(raw, what_is_no_file_is_refused)
{
    GError *error = NULL;
    cr_assert_null(
        raw_open(open("/dev/zero", O_RDONLY | O_CLOEXEC), "/dev/zero", false, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_IO));
    cr_assert(g_str_has_prefix(error->message, "/dev/zero: "));
    g_clear_error(&error);
    cr_assert_null(raw_open(open("/", O_RDONLY | O_CLOEXEC), "/", false, &error));
    g_clear_error(&error);
}

Test(raw, a_block_device_has_its_own_size_and_keeps_it)
{
    support_run("head -c 1048576 /dev/urandom >disk.raw");
    if (support_try("losetup --show -f disk.raw >loop 2>/dev/null") != 0)
        cr_skip_test("no loop device to be had");
    g_autofree char *device = g_strstrip(support_output("cat loop"));
    int fd = open(device, O_RDWR | O_CLOEXEC);
    image *im = raw_open(fd, device, true, NULL);
    support_run("losetup -d %s", device); /* goes when it is closed */
    cr_assert_not_null(im);
    image_extent extent;
    uint8_t buf[512];
    cr_assert_eq(im->size, 1 << 20);
    cr_assert_eq(image_map(im, 0, im->size, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    support_pattern(buf, sizeof buf, 4096, 3);
    cr_assert_eq(image_write(im, buf, 4096, sizeof buf), 0);
    cr_assert(is_pattern(im, 4096, 512, 3));
    cr_assert_eq(image_write_zeroes(im, 8192, 65536), 0);
    cr_assert(is_zero(im, 8192, 65536));
    cr_assert_eq(image_discard(im, 100001, 65537), 0);
    cr_assert(is_zero(im, 100001, 65537));
    cr_assert_eq(image_flush(im), 0);
    cr_assert_eq(image_resize(im, 2 << 20), -ENOTSUP);
    image_close(im);
}
