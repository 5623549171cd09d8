/*
 * qcow2.c: the native qcow2 driver: opens, and answers map() and read().
 *
 * Invariants
 * - Nothing is opened that qcow2_check_tables did not let through: the caller sees to it.
 * - map() gives plain data with the descriptor and offset to read it at, so that callers
 *   read it in their own way; only compressed clusters need read(). A cluster's tail that
 *   lay past the end of its file when it was opened is a zero extent.
 * - Without writes there is no state but the caches, which lock for themselves: read and
 *   map run on any number of threads.
 * - The descriptors belong to the image from the moment of the call, also on failure.
 */
#include "formats/qcow2-internal.h"
#include <errno.h>
#include <unistd.h>

typedef struct qcow2_image {
    image base;
    int fd;
    int data_fd; /* where data clusters lie: fd, or the data file's */
    bool encrypted;
    bool map_only;
    qcow2_layout layout;
    qcow2_map *map;
    qcow2_decoder *decoder;
} qcow2_image;

static qcow2_image *from_image(image *im)
{
    return (qcow2_image *)im;
}

static void qcow2_close(image *im)
{
    qcow2_image *q = from_image(im);
    qcow2_decoder_free(q->decoder);
    qcow2_map_free(q->map);
    if (q->data_fd >= 0 && q->data_fd != q->fd)
        close(q->data_fd);
    close(q->fd);
    g_free(q->base.filename);
    g_free(q);
}

static int read_extent(qcow2_image *q, const qcow2_extent *extent, void *buf,
                       uint64_t offset)
{
    size_t length = (size_t)extent->length;
    switch (extent->kind) {
    case IMAGE_EXTENT_DATA:
        return file_read_exact(q->data_fd, buf, length, extent->host_offset);
    case IMAGE_EXTENT_COMPRESSED:
        return qcow2_decoder_read(q->decoder, extent->host_offset,
                                  extent->compressed_size, buf,
                                  offset & (q->layout.cluster_size - 1), length);
    case IMAGE_EXTENT_UNALLOCATED:
    case IMAGE_EXTENT_ZERO:
        memset(buf, 0, length);
        return 0;
    }
    return -EIO;
}

static int qcow2_read(image *im, void *buf, uint64_t offset, size_t length)
{
    qcow2_image *q = from_image(im);
    uint8_t *at = buf;
    if (q->map_only)
        return -ENOTSUP;
    while (length > 0) {
        qcow2_extent extent;
        int result = qcow2_map_lookup(q->map, offset, length, &extent);
        if (result == 0)
            result = read_extent(q, &extent, at, offset);
        if (result < 0)
            return result;
        at += extent.length;
        offset += extent.length;
        length -= (size_t)extent.length;
    }
    return 0;
}

static int qcow2_image_map(image *im, uint64_t offset, uint64_t length,
                           image_extent *ret_extent)
{
    qcow2_image *q = from_image(im);
    qcow2_extent extent;
    int result = qcow2_map_lookup(q->map, offset, length, &extent);
    if (result < 0)
        return result;
    bool plain = extent.kind == IMAGE_EXTENT_DATA && !q->encrypted;
    bool placed = plain || extent.kind == IMAGE_EXTENT_COMPRESSED;
    *ret_extent = (image_extent){.kind = extent.kind,
                                 .length = extent.length,
                                 .fd = plain ? q->data_fd : -1,
                                 .host_offset = placed ? extent.host_offset : 0};
    return 0;
}

static const image_driver qcow2_driver = {
    .name = "qcow2",
    .close = qcow2_close,
    .read = qcow2_read,
    .map = qcow2_image_map,
};

static bool check_options(const qcow2_image *q, const qcow2_header *header, int data_fd,
                          GError **error)
{
    const char *filename = q->base.filename;
    bool external = (header->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
    if (header->crypt_method != 0 && !q->map_only)
        return qcow2_fail(error, IMAGE_ERROR_UNSUPPORTED, filename,
                          "the native decoder does not decrypt (use decoder=libqcow)");
    if (external && data_fd < 0)
        return qcow2_fail(error, IMAGE_ERROR_INVALID, filename,
                          "the image needs its data file");
    if (!external && data_fd >= 0)
        return qcow2_fail(error, IMAGE_ERROR_INVALID, filename,
                          "the image has no data file, but one was given");
    return true;
}

static bool open_tables(qcow2_image *q, const qcow2_header *header, GError **error)
{
    const char *filename = q->base.filename;
    uint64_t file_size = 0, data_size = 0;
    int result = file_get_size(q->fd, &file_size, NULL);
    if (result == 0)
        result = file_get_size(q->data_fd, &data_size, NULL);
    if (result < 0)
        return qcow2_fail(error, IMAGE_ERROR_IO, filename, "cannot stat: %s",
                          g_strerror(-result));
    qcow2_layout_init(&q->layout, header, file_size, data_size);
    q->map = qcow2_map_new(q->fd, header, &q->layout, filename, error);
    if (!q->map)
        return false;
    q->decoder = qcow2_decoder_new(q->fd, header->compression, header->cluster_bits);
    return true;
}

static image *open_image(int fd, int data_fd, const qcow2_header *header,
                         const char *filename, bool map_only, GError **error)
{
    qcow2_image *q = g_new0(qcow2_image, 1);
    q->base.driver = &qcow2_driver;
    q->base.filename = g_strdup(filename);
    q->base.size = header->size;
    q->base.read_only = true;
    q->fd = fd;
    q->data_fd = data_fd >= 0 ? data_fd : fd;
    q->encrypted = header->crypt_method != 0;
    q->map_only = map_only;
    if (check_options(q, header, data_fd, error) && open_tables(q, header, error))
        return &q->base;
    qcow2_close(&q->base);
    return NULL;
}

image *qcow2_open(int fd, int data_fd, const qcow2_header *header, const char *filename,
                  GError **error)
{
    return open_image(fd, data_fd, header, filename, false, error);
}

image *qcow2_open_mapper(int fd, int data_fd, const qcow2_header *header,
                         const char *filename, GError **error)
{
    return open_image(fd, data_fd, header, filename, true, error);
}
