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

/* There is no file to write to: all of it is done here. */
static int memory_prepare_write(image *im, const void *buf, uint64_t offset,
                                size_t length, unsigned owner, io_list *list,
                                image_change **ret_change)
{
    (void)owner;
    (void)list;
    *ret_change = NULL;
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

static int memory_flush_step(image *im, image_flush_state *flush, unsigned owner,
                             io_list *list)
{
    (void)flush;
    (void)owner;
    (void)list;
    ((memory_image *)im)->flushes++;
    return 0;
}

static const image_driver full_driver = {
    .name = "memory",
    .close = memory_close,
    .read = memory_read,
    .read_ahead = memory_read_ahead,
    .map = memory_map,
    .prepare_write = memory_prepare_write,
    .write_zeroes = memory_write_zeroes,
    .discard = memory_discard,
    .resize = memory_resize,
    .flush_step = memory_flush_step,
};
static const image_driver read_driver = {
    .name = "memory", .close = memory_close, .read = memory_read};
static const image_driver write_driver = {.name = "memory",
                                          .close = memory_close,
                                          .read = memory_read,
                                          .prepare_write = memory_prepare_write};

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

/* ---- Split writes and flushes, against a driver of two files --------------------------- */

/* A write goes to both files; what became of it is counted when it is finished. A flush
 * syncs one file after the other. */
typedef struct twin_image {
    image im;
    int fd[2];
    int prepare_error, finish_result;
    unsigned open, finished, begun, synced[2];
} twin_image;

struct image_change {
    uint64_t offset;
};

static twin_image twin;

static bool twin_begin(image *im, GError **error)
{
    twin_image *t = (twin_image *)im;
    if (t->begun++ > 0)
        return true;
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_INVALID, "twin: not yet");
    return false;
}

static void twin_add(twin_image *t, unsigned which, const void *buf, uint64_t offset,
                     size_t length, unsigned owner, io_list *list)
{
    io_list_add(list, (io_op){.fd = t->fd[which],
                              .write = true,
                              .owner = owner,
                              .buf = (void *)buf,
                              .length = length,
                              .offset = offset});
}

static int twin_prepare(image *im, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change)
{
    twin_image *t = (twin_image *)im;
    *ret_change = g_new(image_change, 1);
    (*ret_change)->offset = offset;
    twin_add(t, 0, buf, offset, length, owner, list);
    if (t->prepare_error) {
        g_free(*ret_change);
        return t->prepare_error;
    }
    twin_add(t, 1, buf, offset, length, owner, list);
    t->open++;
    return 0;
}

static int twin_finish(image *im, image_change *change, int result)
{
    twin_image *t = (twin_image *)im;
    t->open--;
    t->finished++;
    t->finish_result = result;
    g_free(change);
    return result;
}

static int twin_flush(image *im, image_flush_state *flush, unsigned owner, io_list *list)
{
    twin_image *t = (twin_image *)im;
    if (flush->result || flush->step == 2)
        return flush->result;
    t->synced[flush->step]++;
    io_list_add(list, (io_op){.fd = t->fd[flush->step++], .flush = true, .owner = owner});
    return 1;
}

static uint64_t twin_allocated(image *im)
{
    return im->size / 2;
}

static const image_driver twin_driver = {
    .name = "twin",
    .close = memory_close,
    .read = memory_read,
    .begin_writing = twin_begin,
    .prepare_write = twin_prepare,
    .finish_write = twin_finish,
    .flush_step = twin_flush,
    .allocated = twin_allocated,
};

static int scratch_file(const char *name)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    return fd;
}

static image *open_twin(void)
{
    twin = (twin_image){.im = {.driver = &twin_driver, .size = 4096, .read_only = true}};
    twin.fd[0] = scratch_file("one");
    twin.fd[1] = scratch_file("two");
    return &twin.im;
}

static image *open_begun_twin(void)
{
    image *im = open_twin();
    twin.begun = 1;
    cr_assert(image_begin_writing(im, NULL));
    return im;
}

static void close_twin(void)
{
    close(twin.fd[0]);
    close(twin.fd[1]);
}

static bool twin_holds(unsigned which, uint64_t offset, const char *text)
{
    char buf[16];
    return file_read_exact(twin.fd[which], buf, strlen(text), offset) == 0 &&
           memcmp(buf, text, strlen(text)) == 0;
}

Test(image, no_change_passes_before_writing_has_begun)
{
    image *im = open_twin();
    io_list list = {0};
    image_change *change;
    image_flush_state flush = {0};
    g_autoptr(GError) error = NULL;
    cr_assert_eq(image_prepare_write(im, "abc", 0, 3, 0, &list, &change), -EROFS);
    cr_assert_null(change);
    cr_assert_eq(image_write(im, "abc", 0, 3), -EROFS);
    cr_assert_eq(image_flush_step(im, &flush, 0, &list), 0);
    cr_assert(!image_begin_writing(im, &error));
    cr_assert_not_null(error);
    cr_assert_eq(image_write(im, "abc", 0, 3), -EROFS);
    cr_assert(image_begin_writing(im, NULL));
    cr_assert_eq(image_write(im, "abc", 0, 3), 0);
    cr_assert_eq(list.count, 0);
    /* A driver without the method has nothing to wait for, and stays as it is. */
    im = open_memory(&full_driver);
    im->read_only = true;
    cr_assert(image_begin_writing(im, NULL));
    cr_assert(im->read_only);
    close_twin();
}

Test(image, a_write_is_prepared_then_run_then_finished)
{
    image *im = open_begun_twin();
    io_list list = {0};
    image_change *change;
    cr_assert_eq(image_prepare_write(im, "abc", 7, 3, 5, &list, &change), 0);
    cr_assert_not_null(change);
    cr_assert_eq(list.count, 2);
    cr_assert_eq(list.ops[0].owner, 5);
    cr_assert_eq(list.ops[1].owner, 5);
    cr_assert(!twin_holds(0, 7, "abc"));
    io_list_run(&list);
    cr_assert_eq(image_finish_write(im, change, io_list_error(&list)), 0);
    cr_assert(twin_holds(0, 7, "abc") && twin_holds(1, 7, "abc"));
    cr_assert_eq(image_write(im, "xyz", 100, 3), 0);
    cr_assert(twin_holds(0, 100, "xyz") && twin_holds(1, 100, "xyz"));
    cr_assert_eq(twin.finished, 2);
    cr_assert_eq(twin.open, 0);
    cr_assert_eq(image_finish_write(im, NULL, -EIO), -EIO);
    cr_assert_eq(image_finish_write(im, NULL, 0), 0);
    io_list_free(&list);
    close_twin();
}

Test(image, a_failed_prepare_leaves_the_list_alone)
{
    image *im = open_begun_twin();
    io_list list = {0};
    image_change *change;
    cr_assert_eq(image_prepare_write(im, "abc", 0, 3, 0, &list, &change), 0);
    image_change *first = change;
    twin.prepare_error = -ENOSPC;
    cr_assert_eq(image_prepare_write(im, "xyz", 0, 3, 1, &list, &change), -ENOSPC);
    cr_assert_null(change);
    cr_assert_eq(list.count, 2);
    cr_assert_eq(image_prepare_write(im, "xyz", 4095, 2, 1, &list, &change), -EINVAL);
    cr_assert_null(change);
    cr_assert_eq(image_prepare_write(im, "xyz", 4096, 0, 1, &list, &change), 0);
    cr_assert_null(change);
    cr_assert_eq(list.count, 2);
    io_list_run(&list);
    cr_assert_eq(image_finish_write(im, first, io_list_error(&list)), 0);
    cr_assert(twin_holds(1, 0, "abc"));
    cr_assert_eq(image_write(im, "xyz", 0, 3), -ENOSPC);
    cr_assert_eq(twin.open, 0);
    io_list_free(&list);
    close_twin();
}

Test(image, a_write_is_finished_although_an_op_failed)
{
    image *im = open_begun_twin();
    close(twin.fd[1]);
    twin.fd[1] = open("/dev/full", O_WRONLY | O_CLOEXEC);
    cr_assert_eq(image_write(im, "abc", 0, 3), -ENOSPC);
    cr_assert_eq(twin.finish_result, -ENOSPC);
    cr_assert_eq(twin.finished, 1);
    cr_assert_eq(twin.open, 0);
    close_twin();
}

Test(image, a_flush_goes_on_step_by_step_to_its_end)
{
    image *im = open_begun_twin();
    io_list list = {0};
    image_flush_state flush = {0};
    for (unsigned step = 0; step < 2; step++) {
        io_list_clear(&list);
        cr_assert_eq(image_flush_step(im, &flush, 3, &list), 1);
        cr_assert_eq(list.count, 1);
        cr_assert_eq(list.ops[0].owner, 3);
        cr_assert(list.ops[0].flush);
        io_list_run(&list);
        flush.result = io_list_error(&list);
        cr_assert_eq(flush.result, 0);
    }
    cr_assert_eq(image_flush_step(im, &flush, 3, &list), 0);
    cr_assert_eq(image_flush(im), 0);
    cr_assert_eq(twin.synced[0], 2);
    cr_assert_eq(twin.synced[1], 2);
    int pipes[2];
    cr_assert_eq(pipe(pipes), 0);
    close(twin.fd[0]);
    twin.fd[0] = pipes[1];
    cr_assert_eq(image_flush(im), -EINVAL);
    cr_assert_eq(twin.synced[1], 2);
    close(pipes[0]);
    io_list_free(&list);
    close_twin();
}

Test(image, what_no_driver_counts_is_not_known)
{
    cr_assert_eq(image_allocated(open_memory(&full_driver)), UINT64_MAX);
    cr_assert_eq(image_allocated(open_twin()), 2048);
    close_twin();
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
