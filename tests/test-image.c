/*
 * What image.c promises to drivers and callers, against a driver that records its calls.
 */
#include "formats/image.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MEMORY_SIZE (200u << 10)

typedef struct memory_image {
    image im;
    uint8_t bytes[MEMORY_SIZE];
    unsigned reads, reads_ahead, writes, zeroings, discards, flushes, closes;
    int zero_result;
    image_extent extent;
} memory_image;

static memory_image memory;

static void memory_close(image *im)
{
    ((memory_image *)im)->closes++;
}

static int memory_read(image *im, void *buf, uint64_t offset, size_t length)
{
    memory_image *m = (memory_image *)im;
    m->reads++;
    memcpy(buf, m->bytes + offset, length);
    return 0;
}

static void memory_read_ahead(image *im, void *buf, uint64_t offset, size_t length)
{
    (void)buf;
    (void)offset;
    (void)length;
    ((memory_image *)im)->reads_ahead++;
}

static int memory_write(image *im, const void *buf, uint64_t offset, size_t length)
{
    memory_image *m = (memory_image *)im;
    m->writes++;
    memcpy(m->bytes + offset, buf, length);
    return 0;
}

static int memory_write_zeroes(image *im, uint64_t offset, uint64_t length)
{
    memory_image *m = (memory_image *)im;
    m->zeroings++;
    if (m->zero_result == 0)
        memset(m->bytes + offset, 0, length);
    return m->zero_result;
}

static int memory_discard(image *im, uint64_t offset, uint64_t length)
{
    (void)offset;
    (void)length;
    ((memory_image *)im)->discards++;
    return -ENOTSUP;
}

static int memory_map(image *im, uint64_t offset, uint64_t length, image_extent *ret)
{
    (void)offset;
    (void)length;
    *ret = ((memory_image *)im)->extent;
    return 0;
}

static int memory_resize(image *im, uint64_t size)
{
    (void)im;
    return size <= MEMORY_SIZE ? 0 : -ENOSPC;
}

static int memory_flush(image *im)
{
    ((memory_image *)im)->flushes++;
    return 0;
}

static const image_driver full_driver = {
    .name = "memory",
    .close = memory_close,
    .read = memory_read,
    .read_ahead = memory_read_ahead,
    .map = memory_map,
    .write = memory_write,
    .write_zeroes = memory_write_zeroes,
    .discard = memory_discard,
    .resize = memory_resize,
    .flush = memory_flush,
};
static const image_driver read_driver = {
    .name = "memory", .close = memory_close, .read = memory_read};
static const image_driver write_driver = {
    .name = "memory", .close = memory_close, .read = memory_read, .write = memory_write};

static image *open_memory(const image_driver *driver)
{
    memory = (memory_image){.im = {.driver = driver, .size = MEMORY_SIZE}};
    memset(memory.bytes, 0xa5, sizeof memory.bytes);
    return &memory.im;
}

Test(image, close_takes_null_and_calls_the_driver)
{
    image_close(NULL);
    image_close(open_memory(&read_driver));
    cr_assert_eq(memory.closes, 1);
}

Test(image, ranges_that_leave_the_image_never_reach_the_driver)
{
    image *im = open_memory(&full_driver);
    static const uint64_t bad[][2] = {
        {MEMORY_SIZE, 1},     {0, MEMORY_SIZE + 1}, {MEMORY_SIZE - 1, 2},
        {MEMORY_SIZE + 1, 0}, {UINT64_MAX, 2},      {UINT64_MAX - 1, UINT64_MAX},
        {1, UINT64_MAX},
    };
    uint8_t byte = 0;
    image_extent extent;
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint64_t offset = bad[i][0], length = bad[i][1];
        cr_assert_eq(image_read(im, &byte, offset, length), -EINVAL);
        cr_assert_eq(image_write(im, &byte, offset, length), -EINVAL);
        cr_assert_eq(image_write_zeroes(im, offset, length), -EINVAL);
        cr_assert_eq(image_discard(im, offset, length), -EINVAL);
        cr_assert_eq(image_map(im, offset, length, &extent), -EINVAL);
        image_read_ahead(im, &byte, offset, length);
    }
    cr_assert_eq(memory.reads + memory.reads_ahead + memory.writes + memory.zeroings +
                     memory.discards,
                 0);
}

Test(image, length_zero_succeeds_without_the_driver)
{
    image *im = open_memory(&full_driver);
    image_extent extent;
    cr_assert_eq(image_read(im, NULL, MEMORY_SIZE, 0), 0);
    cr_assert_eq(image_write(im, NULL, 0, 0), 0);
    cr_assert_eq(image_write_zeroes(im, 0, 0), 0);
    cr_assert_eq(image_discard(im, 0, 0), 0);
    cr_assert_eq(image_map(im, 0, 0, &extent), 0);
    cr_assert_eq(memory.reads + memory.writes + memory.zeroings + memory.discards, 0);
}

Test(image, read_only_refuses_writes_before_the_driver)
{
    image *im = open_memory(&full_driver);
    im->read_only = true;
    uint8_t byte = 0;
    cr_assert_eq(image_write(im, &byte, 0, 1), -EROFS);
    cr_assert_eq(image_write_zeroes(im, 0, 1), -EROFS);
    cr_assert_eq(image_discard(im, 0, 1), -EROFS);
    cr_assert_eq(image_resize(im, 512), -EROFS);
    cr_assert_eq(image_flush(im), 0);
    cr_assert_eq(memory.writes + memory.zeroings + memory.discards + memory.flushes, 0);
}

Test(image, missing_methods_have_their_documented_answers)
{
    image *im = open_memory(&read_driver);
    uint8_t byte = 0;
    cr_assert_eq(image_write(im, &byte, 0, 1), -EROFS);
    cr_assert_eq(image_write_zeroes(im, 0, 1), -EROFS);
    cr_assert_eq(image_discard(im, 0, 1), -EROFS);
    cr_assert_eq(image_resize(im, 512), -ENOTSUP);
    cr_assert_eq(image_flush(im), 0);
    image_read_ahead(im, &byte, 0, 1);
    cr_assert_null(image_lend(im, 1));
    image_extent extent;
    cr_assert_eq(image_map(im, 5, 100, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(extent.length, 100);
    cr_assert_eq(extent.fd, -1);
    cr_assert_eq(extent.host_offset, 0);
}

Test(image, zeroing_falls_back_to_writing_zeroes)
{
    image *im = open_memory(&write_driver);
    cr_assert_eq(image_discard(im, 1, MEMORY_SIZE - 2), 0);
    cr_assert_gt(memory.writes, 1);
    cr_assert_eq(memory.bytes[0], 0xa5);
    cr_assert_eq(memory.bytes[MEMORY_SIZE - 1], 0xa5);
    for (size_t i = 1; i < MEMORY_SIZE - 1; i++)
        cr_assert_eq(memory.bytes[i], 0);
}

Test(image, discard_that_is_not_supported_becomes_write_zeroes_then_writes)
{
    image *im = open_memory(&full_driver);
    cr_assert_eq(image_discard(im, 0, 4096), 0);
    cr_assert_eq(memory.discards, 1);
    cr_assert_eq(memory.zeroings, 1);
    cr_assert_eq(memory.writes, 0);
    memory.zero_result = -ENOTSUP;
    cr_assert_eq(image_discard(im, 4096, 4096), 0);
    cr_assert_eq(memory.writes, 1);
    cr_assert_eq(memory.bytes[8191], 0);
    memory.zero_result = -EIO;
    cr_assert_eq(image_discard(im, 8192, 4096), -EIO);
    cr_assert_eq(memory.bytes[8192], 0xa5);
}

Test(image, map_results_are_bounded)
{
    image *im = open_memory(&full_driver);
    image_extent extent;
    memory.extent = (image_extent){IMAGE_EXTENT_ZERO, 1u << 30, 7, 99};
    cr_assert_eq(image_map(im, 0, 4096, &extent), 0);
    cr_assert_eq(extent.length, 4096);
    cr_assert_eq(extent.fd, -1);
    cr_assert_eq(extent.host_offset, 0);
    memory.extent = (image_extent){IMAGE_EXTENT_COMPRESSED, 512, 7, 99};
    cr_assert_eq(image_map(im, 0, 4096, &extent), 0);
    cr_assert_eq(extent.fd, -1);
    cr_assert_eq(extent.host_offset, 99);
    memory.extent = (image_extent){IMAGE_EXTENT_DATA, 512, 7, 99};
    cr_assert_eq(image_map(im, 0, 4096, &extent), 0);
    cr_assert_eq(extent.fd, 7);
    cr_assert_eq(extent.host_offset, 99);
    memory.extent.length = 0;
    cr_assert_eq(image_map(im, 0, 4096, &extent), -EIO);
}

Test(image, resize_updates_the_size_only_on_success)
{
    image *im = open_memory(&full_driver);
    cr_assert_eq(image_resize(im, 4096), 0);
    cr_assert_eq(im->size, 4096);
    cr_assert_eq(image_resize(im, MEMORY_SIZE + 1), -ENOSPC);
    cr_assert_eq(im->size, 4096);
    cr_assert_eq(image_resize(im, IMAGE_SIZE_MAX + 1), -EFBIG);
    cr_assert_eq(im->size, 4096);
}

static int temporary_file(const void *data, size_t length)
{
    g_autofree char *path = support_path("file");
    support_save(path, data, length);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    return fd;
}

Test(image, file_read_full_fills_past_the_end_and_exact_refuses)
{
    int fd = temporary_file("abc", 3);
    char buf[6] = "xxxxxx";
    cr_assert_eq(file_read_full(fd, buf, 5, 1), 0);
    cr_assert_eq(memcmp(buf, "bc\0\0\0x", 6), 0);
    cr_assert_eq(file_read_full(fd, buf, 2, 1000), 0);
    cr_assert_eq(memcmp(buf, "\0\0", 2), 0);
    cr_assert_eq(file_read_exact(fd, buf, 2, 1), 0);
    cr_assert_eq(memcmp(buf, "bc", 2), 0);
    cr_assert_eq(file_read_exact(fd, buf, 3, 1), -EIO);
    cr_assert_eq(file_read_full(-1, buf, 1, 0), -EBADF);
    cr_assert_eq(file_read_exact(-1, buf, 1, 0), -EBADF);
    close(fd);
}

/* In front of the C library's: what a file system says of a bad checksum. */
static int bad_fd = -2; /* none */
ssize_t pread(int fd, void *buf, size_t length, off_t offset)
{
    if (fd != bad_fd)
        return syscall(SYS_pread64, fd, buf, length, offset);
    errno = EBADMSG;
    return -1;
}

/* EBADMSG is what decoder=both says of decoders that differ (chain.h). */
Test(image, a_bad_checksum_of_the_file_system_is_not_a_bad_message)
{
    char buf[2];
    bad_fd = temporary_file("ab", 2);
    cr_assert_eq(file_read_full(bad_fd, buf, 2, 0), -EIO);
    cr_assert_eq(file_read_exact(bad_fd, buf, 2, 0), -EIO);
    close(bad_fd);
    bad_fd = -2;
}

Test(image, file_write_full_writes_all_or_says_why)
{
    int fd = temporary_file("", 0);
    cr_assert_eq(file_write_full(fd, "hello", 5, 3), 0);
    char buf[8];
    cr_assert_eq(file_read_exact(fd, buf, 8, 0), 0);
    cr_assert_eq(memcmp(buf, "\0\0\0hello", 8), 0);
    close(fd);
    cr_assert_eq(file_write_full(-1, "x", 1, 0), -EBADF);
    cr_assert_eq(file_write_full(-1, "x", 0, 0), 0);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    cr_assert_eq(file_write_full(full, "x", 1, 0), -ENOSPC);
    close(full);
}
