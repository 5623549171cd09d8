/*
 * raw.c: a regular file or block device whose bytes are the disk's.
 *
 * A file that somebody truncated while it was open gives -EIO past its end, never zeroes:
 * the vote must see a failed replica, not a different one.
 */
#include "formats/raw.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct raw_image {
    image im;
    int fd;
    bool is_device;
} raw_image;

static raw_image *raw_of(image *im)
{
    return (raw_image *)im;
}

static void raw_close(image *im)
{
    raw_image *raw = raw_of(im);
    file_close(raw->fd);
    g_free(im->filename);
    g_free(raw);
}

static int raw_read(image *im, void *buf, uint64_t offset, size_t length)
{
    return file_read_exact(raw_of(im)->fd, buf, length, offset);
}

/* One op, but for lengths that none can have. */
static int raw_prepare_write(image *im, const void *buf, uint64_t offset, size_t length,
                             unsigned owner, io_list *list, image_change **ret_change)
{
    *ret_change = NULL;
    for (size_t done = 0, part; done < length; done += part) {
        part = MIN(length - done, IO_BYTES_MAX);
        io_list_add(list, (io_op){.fd = raw_of(im)->fd,
                                  .write = true,
                                  .owner = owner,
                                  .buf = (uint8_t *)buf + done,
                                  .length = part,
                                  .offset = offset + done});
    }
    return 0;
}

/* Where there is no more data the file ends or has a hole; past its end it is not zero. */
static int map_no_data(const raw_image *raw, uint64_t offset, image_extent *extent)
{
    uint64_t size;
    int error = file_get_size(raw->fd, &size, NULL);
    if (error || size <= offset)
        return error;
    extent->kind = IMAGE_EXTENT_ZERO;
    extent->length = MIN(extent->length, size - offset);
    return 0;
}

/* A file system that cannot tell has data everywhere. */
static int map_file(const raw_image *raw, uint64_t offset, image_extent *extent)
{
    uint64_t found;
    int error = file_seek(raw->fd, offset, SEEK_DATA, &found);
    if (error == -ENXIO)
        return map_no_data(raw, offset, extent);
    if (!error && found > offset)
        extent->kind = IMAGE_EXTENT_ZERO;
    else if (!error)
        error = file_seek(raw->fd, offset, SEEK_HOLE, &found);
    if (!error && found > offset)
        extent->length = MIN(extent->length, found - offset);
    return error == -ETIMEDOUT ? error : 0;
}

static int raw_map(image *im, uint64_t offset, uint64_t length, image_extent *ret_extent)
{
    const raw_image *raw = raw_of(im);
    *ret_extent = (image_extent){.kind = IMAGE_EXTENT_DATA,
                                 .length = length,
                                 .fd = raw->fd,
                                 .host_offset = offset};
    return raw->is_device ? 0 : map_file(raw, offset, ret_extent);
}

static int raw_write_zeroes(image *im, uint64_t offset, uint64_t length)
{
    int fd = raw_of(im)->fd;
    int error = file_allocate_zero(fd, offset, length);
    return error == -ENOTSUP ? file_punch(fd, offset, length) : error;
}

static int raw_discard(image *im, uint64_t offset, uint64_t length)
{
    return file_punch(raw_of(im)->fd, offset, length);
}

static int raw_resize(image *im, uint64_t size)
{
    return size == im->size ? 0 : file_resize(raw_of(im)->fd, size);
}

static int raw_flush_step(image *im, image_flush_state *flush, unsigned owner,
                          io_list *list)
{
    if (flush->step++ > 0)
        return file_sync_error(flush->result);
    io_list_add(list, (io_op){.fd = raw_of(im)->fd, .flush = true, .owner = owner});
    return 1;
}

/* A device does not tell. Of a file that may hang what is known without asking: people look at
 * this figure, and are not to wait for it (R5). */
static uint64_t raw_allocated(image *im)
{
    const raw_image *raw = raw_of(im);
    struct statx st;
    if (raw->is_device ||
        statx(raw->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BLOCKS, &st) != 0)
        return UINT64_MAX;
    return st.stx_blocks * 512;
}

static unsigned raw_abandoned(const image *im)
{
    return io_abandoned(((const raw_image *)im)->fd);
}

static const image_driver file_driver = {
    .name = "raw",
    .close = raw_close,
    .read = raw_read,
    .map = raw_map,
    .prepare_write = raw_prepare_write,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .resize = raw_resize,
    .flush_step = raw_flush_step,
    .allocated = raw_allocated,
    .abandoned = raw_abandoned,
};

/* Has no resize at all, so that a disk can tell before it resizes any replica. */
static const image_driver device_driver = {
    .name = "raw",
    .close = raw_close,
    .read = raw_read,
    .map = raw_map,
    .prepare_write = raw_prepare_write,
    .write_zeroes = raw_write_zeroes,
    .discard = raw_discard,
    .flush_step = raw_flush_step,
    .allocated = raw_allocated,
    .abandoned = raw_abandoned,
};

image *raw_open(int fd, const char *filename, bool writable, GError **error)
{
    uint64_t size = 0;
    bool is_device = false;
    int failed = file_get_size(fd, &size, &is_device);
    if (failed) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", filename,
                    g_strerror(-failed));
    } else if (size > IMAGE_SIZE_MAX) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_INVALID, "%s: larger than 2^62 bytes",
                    filename);
    } else {
        raw_image *raw = g_new0(raw_image, 1);
        raw->im = (image){is_device ? &device_driver : &file_driver, g_strdup(filename),
                          size, !writable};
        raw->fd = fd;
        raw->is_device = is_device;
        return &raw->im;
    }
    close(fd);
    return NULL;
}
