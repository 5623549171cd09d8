/*
 * image.c: what every driver may rely on.
 *
 * Before a method runs: the range lies within the image, the length is not 0, and an image
 * that is read-only sees no write. After map: the extent is not empty, not longer than
 * what was asked for, and has a host file only where its kind allows one. After a
 * prepare_write that failed, or a flush_step that ends, the caller's list is as it was.
 *
 * Writes that are done at once have a list of this thread's own: no method of a driver is
 * given it while another of the same thread uses it.
 */
#include "formats/image.h"
#include <errno.h>

#define ZEROES_CHUNK (64u << 10)

GQuark image_error_quark(void)
{
    return g_quark_from_static_string("quorumfs-image-error-quark");
}

static GPrivate this_list = G_PRIVATE_INIT(io_list_destroy);

static bool range_valid(const image *im, uint64_t offset, uint64_t length)
{
    return offset <= im->size && length <= im->size - offset;
}

/* 1: go on; 0: nothing to do; -errno. */
static int check_range(const image *im, uint64_t offset, uint64_t length)
{
    if (!range_valid(im, offset, length))
        return -EINVAL;
    return length > 0;
}

static int check_write(const image *im, uint64_t offset, uint64_t length)
{
    if (im->read_only)
        return -EROFS;
    return check_range(im, offset, length);
}

void image_close(image *im)
{
    if (im)
        im->driver->close(im);
}

int image_read(image *im, void *buf, uint64_t offset, size_t length)
{
    int todo = check_range(im, offset, length);
    return todo <= 0 ? todo : im->driver->read(im, buf, offset, length);
}

void image_read_ahead(image *im, void *buf, uint64_t offset, size_t length)
{
    if (im->driver->read_ahead && check_range(im, offset, length) > 0)
        im->driver->read_ahead(im, buf, offset, length);
}

uint8_t *image_lend(image *im, size_t length)
{
    return im->driver->lend ? im->driver->lend(im, length) : NULL;
}

int image_map(image *im, uint64_t offset, uint64_t length, image_extent *ret_extent)
{
    image_extent extent = {.kind = IMAGE_EXTENT_DATA, .length = length, .fd = -1};
    int todo = check_range(im, offset, length);
    if (todo < 0)
        return todo;
    if (todo > 0 && im->driver->map) {
        int error = im->driver->map(im, offset, length, &extent);
        if (error)
            return error;
        if (extent.length == 0)
            return -EIO;
    }
    extent.length = MIN(extent.length, length);
    if (extent.kind != IMAGE_EXTENT_DATA)
        extent.fd = -1;
    if (extent.kind != IMAGE_EXTENT_COMPRESSED && extent.fd < 0)
        extent.host_offset = 0;
    *ret_extent = extent;
    return 0;
}

bool image_begin_writing(image *im, GError **error)
{
    if (!im->driver->begin_writing)
        return true;
    if (!im->driver->begin_writing(im, error))
        return false;
    im->read_only = false;
    return true;
}

int image_prepare_write(image *im, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change)
{
    *ret_change = NULL;
    if (!im->driver->prepare_write)
        return -EROFS;
    int todo = check_write(im, offset, length);
    if (todo <= 0)
        return todo;
    size_t queued = list->count;
    int error =
        im->driver->prepare_write(im, buf, offset, length, owner, list, ret_change);
    if (error) {
        list->count = queued;
        *ret_change = NULL;
    }
    return error;
}

int image_finish_write(image *im, image_change *change, int result)
{
    return change ? im->driver->finish_write(im, change, result) : result;
}

int image_write(image *im, const void *buf, uint64_t offset, size_t length)
{
    image_change *change;
    io_list *list = io_list_own(&this_list);
    int error = image_prepare_write(im, buf, offset, length, 0, list, &change);
    if (error)
        return error;
    io_list_run(list);
    return image_finish_write(im, change, io_list_error(list));
}

static int write_zero_bytes(image *im, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[ZEROES_CHUNK];
    while (length > 0) {
        size_t part = sizeof zeroes - offset % sizeof zeroes; /* tears no sector */
        part = MIN(part, length);
        int error = image_write(im, zeroes, offset, part);
        if (error)
            return error;
        offset += part;
        length -= part;
    }
    return 0;
}

/* For a range that was checked. */
static int zero_range(image *im, uint64_t offset, uint64_t length)
{
    int error = -ENOTSUP;
    if (im->driver->write_zeroes)
        error = im->driver->write_zeroes(im, offset, length);
    return error == -ENOTSUP ? write_zero_bytes(im, offset, length) : error;
}

int image_write_zeroes(image *im, uint64_t offset, uint64_t length)
{
    int todo = check_write(im, offset, length);
    return todo <= 0 ? todo : zero_range(im, offset, length);
}

int image_discard(image *im, uint64_t offset, uint64_t length)
{
    int todo = check_write(im, offset, length);
    if (todo <= 0)
        return todo;
    int error = -ENOTSUP;
    if (im->driver->discard)
        error = im->driver->discard(im, offset, length);
    return error == -ENOTSUP ? zero_range(im, offset, length) : error;
}

int image_resize(image *im, uint64_t size)
{
    if (im->read_only)
        return -EROFS;
    if (size > IMAGE_SIZE_MAX)
        return -EFBIG;
    if (!im->driver->resize)
        return -ENOTSUP;
    int error = im->driver->resize(im, size);
    if (!error)
        im->size = size;
    return error;
}

int image_flush_step(image *im, image_flush_state *flush, unsigned owner, io_list *list)
{
    if (im->read_only || !im->driver->flush_step)
        return 0;
    size_t queued = list->count;
    int more = im->driver->flush_step(im, flush, owner, list);
    if (more <= 0)
        list->count = queued;
    return more;
}

int image_flush(image *im)
{
    image_flush_state flush = {0};
    io_list *list = io_list_own(&this_list);
    int more;
    while ((more = image_flush_step(im, &flush, 0, list)) > 0) {
        io_list_run(list);
        flush.result = io_list_error(list);
        io_list_clear(list);
    }
    return more;
}

uint64_t image_allocated(image *im)
{
    return im->driver->allocated ? im->driver->allocated(im) : UINT64_MAX;
}

int image_write_mark(image *im, const qcow2_mark *mark)
{
    if (im->read_only)
        return -EROFS;
    return im->driver->write_mark ? im->driver->write_mark(im, mark) : -ENOTSUP;
}

unsigned image_abandoned(const image *im)
{
    return im && im->driver->abandoned ? im->driver->abandoned(im) : 0;
}
