/*
 * qcow2.c: the native qcow2 driver: opens, and translates the driver's methods.
 *
 * Invariants
 * - Nothing is opened that qcow2_check_tables did not let through: the caller sees to it.
 * - map() gives plain data with the descriptor and offset to read it at, so that callers
 *   read it in their own way; only compressed clusters need read(). A cluster's tail that
 *   lay past the end of its file when it was opened is a zero extent.
 * - Without a writer there is no state but the caches: read and map run on any number of
 *   threads, and so they do beside a writer, which has one lock for all tables.
 * - A compressed cluster is looked up and read under decode_lock: its place may be freed by
 *   a write to another part of it.
 * - The descriptors belong to the image from the moment of the call, also on failure.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>
#include <unistd.h>

typedef struct qcow2_image {
    image base;
    int fd;
    int data_fd; /* where data clusters lie: fd, or the data file's */
    bool encrypted;
    bool map_only;
    qcow2_map *map;
    qcow2_decoder *decoder;
    /* For writing. */
    qcow2_header header;
    qcow2_writer *writer; /* NULL: not begun */
    qcow2_read_below *read_below;
    void *below;
    uint64_t below_size;
    uint64_t allocated; /* at begin; UINT64_MAX: unknown */
} qcow2_image;

static qcow2_image *from_image(image *im)
{
    return (qcow2_image *)im;
}

static void qcow2_close(image *im)
{
    qcow2_image *q = from_image(im);
    qcow2_writer_free(q->writer);
    qcow2_decoder_free(q->decoder);
    qcow2_map_free(q->map);
    qcow2_header_clear(&q->header);
    if (q->data_fd != q->fd)
        file_close(q->data_fd);
    file_close(q->fd);
    g_free(q->base.filename);
    g_free(q);
}

static unsigned qcow2_abandoned(const image *im)
{
    const qcow2_image *q = (const qcow2_image *)im;
    return io_abandoned(q->fd) + (q->data_fd != q->fd ? io_abandoned(q->data_fd) : 0);
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
                                  offset & (q->map->layout.cluster_size - 1), length);
    case IMAGE_EXTENT_UNALLOCATED:
    case IMAGE_EXTENT_ZERO:
        memset(buf, 0, length);
        return 0;
    }
    return -EIO;
}

/* The extent at `offset`, read. */
static int read_next(qcow2_image *q, void *buf, uint64_t offset, size_t length,
                     qcow2_extent *extent)
{
    int result = qcow2_map_lookup(q->map, offset, length, extent);
    return result < 0 ? result : read_extent(q, extent, buf, offset);
}

static int qcow2_read(image *im, void *buf, uint64_t offset, size_t length)
{
    qcow2_image *q = from_image(im);
    uint8_t *at = buf;
    if (q->map_only)
        return -ENOTSUP;
    while (length > 0) {
        qcow2_extent extent;
        if (q->writer)
            pthread_rwlock_rdlock(&q->writer->decode_lock);
        int result = read_next(q, at, offset, length, &extent);
        if (q->writer)
            pthread_rwlock_unlock(&q->writer->decode_lock);
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

/* ---- Writing ------------------------------------------------------------------------------ */

static int qcow2_prepare_write(image *im, const void *buf, uint64_t offset, size_t length,
                               unsigned owner, io_list *list, image_change **ret_change)
{
    return qcow2_write_prepare(from_image(im)->writer, buf, offset, length, owner, list,
                               ret_change);
}

static int qcow2_finish_write(image *im, image_change *change, int result)
{
    return qcow2_write_finish(from_image(im)->writer, change, result);
}

static int qcow2_write_zeroes(image *im, uint64_t offset, uint64_t length)
{
    return qcow2_zero_range(from_image(im)->writer, offset, length, QCOW2_ZERO_KEEP);
}

static int qcow2_discard(image *im, uint64_t offset, uint64_t length)
{
    return qcow2_zero_range(from_image(im)->writer, offset, length, QCOW2_ZERO_DISCARD);
}

static int qcow2_resize_image(image *im, uint64_t size)
{
    return qcow2_resize(from_image(im)->writer, size);
}

static int qcow2_image_flush(image *im, image_flush_state *flush, unsigned owner,
                             io_list *list)
{
    return qcow2_flush_step(from_image(im)->writer, flush, owner, list);
}

static uint64_t qcow2_allocated(image *im)
{
    const qcow2_image *q = from_image(im);
    if (!q->writer || q->allocated == UINT64_MAX)
        return q->allocated;
    int_fast64_t bytes = (int_fast64_t)q->allocated + atomic_load(&q->writer->allocated);
    return (uint64_t)MAX(bytes, 0);
}

/* Under the lock of all that changes the header. */
static int qcow2_image_mark(image *im, const qcow2_mark *mark)
{
    qcow2_writer *w = from_image(im)->writer;
    pthread_mutex_lock(&w->map->lock);
    int error = qcow2_writer_check(w);
    if (!error)
        error = qcow2_mark_write(w->fd, mark);
    if (error &&
        error != -ENOTSUP) /* a sync that failed may have lost what others wrote */
        error = qcow2_writer_unsure(w, error);
    pthread_mutex_unlock(&w->map->lock);
    return error;
}

static bool open_tables(qcow2_image *q, GError **error);

/* After an unclean end with lazy refcounts they are counted anew, and so are the flags in
 * the tables that depend on them. */
static bool repair(qcow2_image *q, GError **error)
{
    qcow2_layout layout = q->map->layout;
    if (!(q->header.incompatible & QCOW2_INCOMPAT_DIRTY))
        return true;
    if (!qcow2_repair_refcounts(q->fd, &q->header, &layout, q->base.filename, error))
        return false;
    qcow2_decoder_free(g_steal_pointer(&q->decoder));
    qcow2_map_free(g_steal_pointer(&q->map));
    return open_tables(q, error);
}

static bool qcow2_begin_writing(image *im, GError **error)
{
    qcow2_image *q = from_image(im);
    if (!repair(q, error))
        return false;
    q->writer =
        qcow2_writer_new(q->map, q->fd, q->data_fd, &q->header, im->filename, error);
    if (!q->writer)
        return false;
    q->writer->decoder = q->decoder;
    qcow2_decoder_set_written(q->decoder);
    q->writer->read_below = q->read_below;
    q->writer->below = q->below;
    q->writer->below_size = q->below_size;
    return true;
}

void qcow2_set_backing(image *im, qcow2_read_below *read, void *opaque, uint64_t size)
{
    qcow2_image *q = from_image(im);
    q->read_below = read;
    q->below = opaque;
    q->below_size = size;
}

void qcow2_set_allocated(image *im, uint64_t bytes)
{
    from_image(im)->allocated = bytes;
}

const char *qcow2_write_refusal(const qcow2_header *header)
{
    if (header->crypt_method != 0)
        return "encrypted images are read-only (decrypt with qemu-img convert)";
    if (header->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return "the image is marked corrupt (qemu-img check -r all)";
    /* Two states cannot have different bytes at one guest offset: QEMU makes none either. */
    if ((header->incompatible & QCOW2_INCOMPAT_DATA_FILE) && header->snapshot_count > 0)
        return "snapshots cannot share an external data file (qemu-img convert)";
    return NULL;
}

static const image_driver qcow2_driver = {
    .name = "qcow2",
    .close = qcow2_close,
    .read = qcow2_read,
    .map = qcow2_image_map,
    .abandoned = qcow2_abandoned,
};

static const image_driver qcow2_writable_driver = {
    .name = "qcow2",
    .close = qcow2_close,
    .read = qcow2_read,
    .map = qcow2_image_map,
    .begin_writing = qcow2_begin_writing,
    .prepare_write = qcow2_prepare_write,
    .finish_write = qcow2_finish_write,
    .write_zeroes = qcow2_write_zeroes,
    .discard = qcow2_discard,
    .resize = qcow2_resize_image,
    .flush_step = qcow2_image_flush,
    .allocated = qcow2_allocated,
    .abandoned = qcow2_abandoned,
    .write_mark = qcow2_image_mark,
};

/* ---- Opening ------------------------------------------------------------------------------ */

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

static bool open_tables(qcow2_image *q, GError **error)
{
    const char *filename = q->base.filename;
    qcow2_layout layout;
    uint64_t file_size = 0, data_size = 0;
    int result = file_get_size(q->fd, &file_size, NULL);
    if (result == 0)
        result = file_get_size(q->data_fd, &data_size, NULL);
    if (result < 0)
        return qcow2_fail(error, IMAGE_ERROR_IO, filename, "cannot stat: %s",
                          g_strerror(-result));
    qcow2_layout_init(&layout, &q->header, file_size, data_size);
    q->map = qcow2_map_new(q->fd, &q->header, &layout, filename, error);
    if (!q->map)
        return false;
    q->decoder = qcow2_decoder_new(q->fd, q->header.compression, q->header.cluster_bits);
    return true;
}

typedef enum open_mode { OPEN_READ, OPEN_MAP_ONLY, OPEN_WRITE } open_mode;

static image *open_image(int fd, int data_fd, const qcow2_header *header,
                         const char *filename, open_mode mode, GError **error)
{
    qcow2_image *q = g_new0(qcow2_image, 1);
    q->base.driver = mode == OPEN_WRITE ? &qcow2_writable_driver : &qcow2_driver;
    q->base.filename = g_strdup(filename);
    q->base.size = header->size;
    q->base.read_only = true;
    q->fd = fd;
    q->data_fd = data_fd >= 0 ? data_fd : fd;
    q->encrypted = header->crypt_method != 0;
    q->map_only = mode == OPEN_MAP_ONLY;
    q->allocated = UINT64_MAX;
    qcow2_header_copy(&q->header, header);
    if (check_options(q, header, data_fd, error) && open_tables(q, error))
        return &q->base;
    qcow2_close(&q->base);
    return NULL;
}

image *qcow2_open(int fd, int data_fd, const qcow2_header *header, const char *filename,
                  GError **error)
{
    return open_image(fd, data_fd, header, filename, OPEN_READ, error);
}

image *qcow2_open_writable(int fd, int data_fd, const qcow2_header *header,
                           const char *filename, GError **error)
{
    return open_image(fd, data_fd, header, filename, OPEN_WRITE, error);
}

image *qcow2_open_mapper(int fd, int data_fd, const qcow2_header *header,
                         const char *filename, GError **error)
{
    return open_image(fd, data_fd, header, filename, OPEN_MAP_ONLY, error);
}
