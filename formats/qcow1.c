/*
 * qcow1.c: QCOW version 1: header, tables, and the plain and zlib clusters of the images
 * that libqcow reads wrongly.
 *
 * The format (all of it big-endian): a header of 48 bytes; an L1 table, one entry for
 * each L2 table; L2 tables of 2^l2_bits entries, one for each cluster. An entry of 0 is
 * unallocated. Bit 63 of an L2 entry means compressed: the cluster_bits bits below it are
 * the length in bytes, the rest is the offset. There are no refcounts, no zero clusters
 * and no alignment but what QEMU happens to do.
 *
 * The L1 table is bounded and read at open; L2 entries are read when they are asked for,
 * a stack buffer at a time, and checked at each use (O3): nothing here changes after
 * open, so any number of threads may read.
 */
#include "formats/qcow-libqcow.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define MAGIC             0x514649fbu
#define HEADER_BYTES      48u
#define CLUSTER_BITS_MIN  9
#define CLUSTER_BITS_MAX  16
#define CLUSTER_BYTES_MAX (1u << CLUSTER_BITS_MAX)
#define L2_BITS_MIN       6
#define L2_BITS_MAX       13
#define BACKING_MAX       1023u
#define L1_BYTES_MAX      (32u << 20)
#define COMPRESSED        ((uint64_t)1 << 63)
#define ENTRIES_AT_ONCE   512u

typedef struct qcow1_image {
    image base; /* first */
    int fd;
    qcow1_header header; /* without backing_file */
    uint64_t file_size;
    uint64_t *l1; /* host order */
} qcow1_image;

/* Where one cluster lies. */
typedef struct qcow1_cluster {
    image_extent_kind kind;
    uint64_t host_offset;
    uint32_t compressed_length;
} qcow1_cluster;

static uint64_t be64_at(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return GUINT64_FROM_BE(value);
}

static uint32_t be32_at(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return GUINT32_FROM_BE(value);
}

static bool refuse(GError **error, const char *filename, image_error code,
                   const char *reason)
{
    g_set_error(error, IMAGE_ERROR, code, "%s: %s", filename, reason);
    return false;
}

static bool refuse_errno(GError **error, const char *filename, int code)
{
    return refuse(error, filename, IMAGE_ERROR_IO, g_strerror(-code));
}

/* ---- header ----------------------------------------------------------------------- */

static uint64_t l1_entries(const qcow1_header *header)
{
    unsigned shift = header->cluster_bits + header->l2_bits;
    return (header->size >> shift) + ((header->size & (((uint64_t)1 << shift) - 1)) != 0);
}

/* Rules of the fields alone: NULL, or what is wrong. */
static const char *header_fault(const qcow1_header *header, uint64_t file_size)
{
    if (header->size == 0 || header->size > IMAGE_SIZE_MAX)
        return "disk size out of range";
    if (header->cluster_bits < CLUSTER_BITS_MIN ||
        header->cluster_bits > CLUSTER_BITS_MAX)
        return "cluster size out of range (512 bytes to 64 KiB)";
    if (header->l2_bits < L2_BITS_MIN || header->l2_bits > L2_BITS_MAX)
        return "level 2 table size out of range (512 bytes to 64 KiB)";
    uint64_t entries = l1_entries(header);
    if (entries > L1_BYTES_MAX / 8)
        return "level 1 table too large";
    if (header->l1_offset < HEADER_BYTES || header->l1_offset > file_size ||
        8 * entries > file_size - header->l1_offset)
        return "level 1 table outside of the file";
    return NULL;
}

static bool backing_read(int fd, const char *filename, uint64_t offset, uint32_t length,
                         uint64_t file_size, char **ret_name, GError **error)
{
    if (offset == 0 || length == 0)
        return true;
    if (length > BACKING_MAX)
        return refuse(error, filename, IMAGE_ERROR_INVALID, "backing file name too long");
    if (offset < HEADER_BYTES || offset > file_size || length > file_size - offset)
        return refuse(error, filename, IMAGE_ERROR_INVALID,
                      "backing file name outside of the file");
    g_autofree char *name = g_malloc0(length + 1);
    int failure = file_read_full(fd, name, length, offset);
    if (failure)
        return refuse_errno(error, filename, failure);
    if (strlen(name) != length)
        return refuse(error, filename, IMAGE_ERROR_INVALID,
                      "zero byte in the backing file name");
    *ret_name = g_steal_pointer(&name);
    return true;
}

static bool header_parse(int fd, const char *filename, const uint8_t *raw,
                         uint64_t file_size, qcow1_header *header, GError **error)
{
    if (file_size < HEADER_BYTES || be32_at(raw) != MAGIC || be32_at(raw + 4) != 1)
        return refuse(error, filename, IMAGE_ERROR_FORMAT,
                      "not a qcow image of version 1");
    header->size = be64_at(raw + 24);
    header->cluster_bits = raw[32];
    header->l2_bits = raw[33];
    header->crypt_method = be32_at(raw + 36);
    header->l1_offset = be64_at(raw + 40);
    if (header->crypt_method > 1)
        return refuse(error, filename, IMAGE_ERROR_UNSUPPORTED,
                      "unknown encryption method");
    const char *fault = header_fault(header, file_size);
    if (fault)
        return refuse(error, filename, IMAGE_ERROR_INVALID, fault);
    return backing_read(fd, filename, be64_at(raw + 8), be32_at(raw + 16), file_size,
                        &header->backing_file, error);
}

bool qcow1_header_read(int fd, const char *filename, qcow1_header *ret_header,
                       GError **error)
{
    uint8_t raw[HEADER_BYTES];
    *ret_header = (qcow1_header){.size = 0};
    uint64_t end = 0;
    int failure = file_seek(fd, 0, SEEK_END, &end);
    if (!failure)
        failure = file_read_full(fd, raw, sizeof raw, 0);
    if (failure)
        return refuse_errno(error, filename, failure);
    qcow1_header header = {.size = 0};
    if (!header_parse(fd, filename, raw, end, &header, error))
        return false;
    *ret_header = header;
    return true;
}

void qcow1_header_clear(qcow1_header *header)
{
    g_free(header->backing_file);
    *header = (qcow1_header){.size = 0};
}

/* ---- tables ----------------------------------------------------------------------- */

/* Reads and checks the L1 table. 0 or -errno; -EINVAL: an entry breaks a rule. */
static int l1_read(int fd, const qcow1_header *header, uint64_t file_size,
                   uint64_t **ret_l1)
{
    const uint64_t entries = l1_entries(header);
    const uint64_t l2_bytes = (uint64_t)8 << header->l2_bits;
    g_autofree uint64_t *l1 = g_new(uint64_t, entries);
    int error = file_read_full(fd, l1, entries * 8, header->l1_offset);
    if (error)
        return error;
    for (uint64_t i = 0; i < entries; i++) {
        l1[i] = GUINT64_FROM_BE(l1[i]);
        if (l1[i] == 0)
            continue;
        if (l1[i] < HEADER_BYTES || l1[i] > file_size || l2_bytes > file_size - l1[i])
            return -EINVAL;
        if (l1[i] < header->l1_offset + 8 * entries &&
            header->l1_offset < l1[i] + l2_bytes)
            return -EINVAL;
    }
    *ret_l1 = g_steal_pointer(&l1);
    return 0;
}

/* What an L2 entry says. 0, or -EIO if that cannot be. */
static int cluster_decode(const qcow1_header *header, uint64_t file_size, uint64_t entry,
                          qcow1_cluster *ret_cluster)
{
    const uint64_t cluster_size = (uint64_t)1 << header->cluster_bits;
    *ret_cluster = (qcow1_cluster){.kind = IMAGE_EXTENT_UNALLOCATED};
    if (entry == 0)
        return 0;
    ret_cluster->kind = IMAGE_EXTENT_DATA;
    ret_cluster->host_offset = entry;
    if (entry & COMPRESSED) {
        const unsigned shift = 63 - header->cluster_bits;
        ret_cluster->kind = IMAGE_EXTENT_COMPRESSED;
        ret_cluster->compressed_length = (entry >> shift) & (cluster_size - 1);
        ret_cluster->host_offset = entry & (((uint64_t)1 << shift) - 1);
        if (ret_cluster->compressed_length == 0 ||
            ret_cluster->compressed_length > file_size)
            return -EIO;
        file_size -= ret_cluster->compressed_length - 1;
    }
    if (ret_cluster->host_offset < HEADER_BYTES || ret_cluster->host_offset >= file_size)
        return -EIO;
    return 0;
}

/* ---- mapping ---------------------------------------------------------------------- */

/* Whether `next`, `distance` bytes after `first`, goes on with the same extent. */
static bool extent_continues(const qcow1_cluster *first, const qcow1_cluster *next,
                             uint64_t distance)
{
    if (next->kind != first->kind)
        return false;
    switch (first->kind) {
    case IMAGE_EXTENT_UNALLOCATED:
        return true;
    case IMAGE_EXTENT_DATA:
        return next->host_offset == first->host_offset + distance;
    default:
        return false; /* compressed clusters are read one by one */
    }
}

/* What the open found past the end of the file is zeroes. Said here, so that data is read
 * exactly: what is missing of it was cut off since, and is an error. */
static void clip_to_file(const qcow1_image *q, uint64_t start, qcow1_cluster *cluster,
                         uint64_t *length)
{
    uint64_t host = cluster->host_offset + start;
    if (host >= q->file_size)
        *cluster = (qcow1_cluster){.kind = IMAGE_EXTENT_ZERO};
    else
        *length = MIN(*length, q->file_size - host);
}

/* The extent at `offset`, with compressed_length for the reader. */
static int extent_find(const qcow1_image *q, uint64_t offset, uint64_t length,
                       qcow1_cluster *ret_cluster, uint64_t *ret_length)
{
    const unsigned bits = q->header.cluster_bits;
    const uint64_t cluster_size = (uint64_t)1 << bits;
    const uint64_t l2_entries = (uint64_t)1 << q->header.l2_bits;
    const uint64_t index = (offset >> bits) & (l2_entries - 1);
    const uint64_t l2_offset = q->l1[offset >> (bits + q->header.l2_bits)];
    const uint64_t start = offset & (cluster_size - 1);
    /* Clusters asked for, within this L2 table and this call. */
    uint64_t n = MIN((start + length + cluster_size - 1) >> bits, l2_entries - index);
    if (l2_offset == 0) {
        *ret_cluster = (qcow1_cluster){.kind = IMAGE_EXTENT_UNALLOCATED};
        *ret_length = MIN(length, (n << bits) - start);
        return 0;
    }
    uint64_t entries[ENTRIES_AT_ONCE];
    n = MIN(n, ENTRIES_AT_ONCE);
    int error = file_read_full(q->fd, entries, n * 8, l2_offset + 8 * index);
    if (!error)
        error = cluster_decode(&q->header, q->file_size, GUINT64_FROM_BE(entries[0]),
                               ret_cluster);
    if (error)
        return error;
    uint64_t same = 1;
    qcow1_cluster next;
    while (same < n &&
           cluster_decode(&q->header, q->file_size, GUINT64_FROM_BE(entries[same]),
                          &next) == 0 &&
           extent_continues(ret_cluster, &next, same << bits))
        same++;
    *ret_length = MIN(length, (same << bits) - start);
    if (ret_cluster->kind == IMAGE_EXTENT_DATA)
        clip_to_file(q, start, ret_cluster, ret_length);
    return 0;
}

static int qcow1_map(image *im, uint64_t offset, uint64_t length,
                     image_extent *ret_extent)
{
    const qcow1_image *q = (const qcow1_image *)im;
    qcow1_cluster cluster;
    image_extent extent = {.fd = -1};
    int error = extent_find(q, offset, length, &cluster, &extent.length);
    if (error)
        return error;
    extent.kind = cluster.kind;
    extent.host_offset = cluster.host_offset;
    if (cluster.kind == IMAGE_EXTENT_DATA && q->header.crypt_method == 0) {
        extent.fd = q->fd;
        extent.host_offset += offset & (((uint64_t)1 << q->header.cluster_bits) - 1);
    }
    *ret_extent = extent;
    return 0;
}

/* ---- reading ---------------------------------------------------------------------- */

/* Raw deflate of exactly one cluster; some writers leave out the final block, so that a
 * full output is success too. */
static int cluster_inflate(const uint8_t *data, uint32_t length, uint8_t *cluster,
                           uint32_t cluster_size)
{
    z_stream stream = {.next_in = (uint8_t *)data,
                       .avail_in = length,
                       .next_out = cluster,
                       .avail_out = cluster_size};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
        return -ENOMEM;
    int status = inflate(&stream, Z_FINISH);
    inflateEnd(&stream);
    bool ended = status == Z_STREAM_END || status == Z_BUF_ERROR;
    return ended && stream.avail_out == 0 ? 0 : -EIO;
}

static int compressed_read(const qcow1_image *q, const qcow1_cluster *cluster, void *buf,
                           uint64_t start, uint64_t length)
{
    uint8_t data[CLUSTER_BYTES_MAX], plain[CLUSTER_BYTES_MAX];
    int error =
        file_read_full(q->fd, data, cluster->compressed_length, cluster->host_offset);
    if (!error)
        error = cluster_inflate(data, cluster->compressed_length, plain,
                                1u << q->header.cluster_bits);
    if (!error)
        memcpy(buf, plain + start, length);
    return error;
}

static int extent_read(const qcow1_image *q, const qcow1_cluster *cluster, void *buf,
                       uint64_t offset, uint64_t length)
{
    const uint64_t start = offset & (((uint64_t)1 << q->header.cluster_bits) - 1);
    switch (cluster->kind) {
    case IMAGE_EXTENT_DATA:
        return file_read_exact(q->fd, buf, length, cluster->host_offset + start);
    case IMAGE_EXTENT_COMPRESSED:
        return compressed_read(q, cluster, buf, start, length);
    default:
        memset(buf, 0, length);
        return 0;
    }
}

static int qcow1_read(image *im, void *buf, uint64_t offset, size_t length)
{
    const qcow1_image *q = (const qcow1_image *)im;
    uint8_t *bytes = buf;
    for (uint64_t done = 0, part; done < length; done += part) {
        qcow1_cluster cluster;
        int error = extent_find(q, offset + done, length - done, &cluster, &part);
        if (!error)
            error = extent_read(q, &cluster, bytes + done, offset + done, part);
        if (error)
            return error;
    }
    return 0;
}

static int mapper_read(image *im, void *buf, uint64_t offset, size_t length)
{
    (void)im, (void)buf, (void)offset, (void)length;
    return -ENOTSUP;
}

/* ---- opening ---------------------------------------------------------------------- */

static unsigned qcow1_abandoned(const image *im)
{
    return io_abandoned(((const qcow1_image *)im)->fd);
}

static void qcow1_close(image *im)
{
    qcow1_image *q = (qcow1_image *)im;
    file_close(q->fd);
    g_free(q->l1);
    g_free(q->base.filename);
    g_free(q);
}

static const image_driver qcow1_driver = {
    .name = "qcow",
    .close = qcow1_close,
    .read = qcow1_read,
    .map = qcow1_map,
    .abandoned = qcow1_abandoned,
};

static const image_driver qcow1_mapper = {
    .name = "qcow",
    .close = qcow1_close,
    .read = mapper_read,
    .map = qcow1_map,
    .abandoned = qcow1_abandoned,
};

static image *open_with(const image_driver *driver, int fd, const qcow1_header *header,
                        const char *filename, GError **error)
{
    qcow1_image *q = g_new0(qcow1_image, 1);
    q->base = (image){.driver = driver,
                      .filename = g_strdup(filename),
                      .size = header->size,
                      .read_only = true};
    q->fd = fd;
    q->header = *header;
    q->header.backing_file = NULL;
    int failure = file_seek(fd, 0, SEEK_END, &q->file_size);
    if (!failure)
        failure = l1_read(fd, header, q->file_size, &q->l1);
    if (failure == -EINVAL)
        refuse(error, filename, IMAGE_ERROR_INVALID,
               "a level 2 table lies outside of the file or over another table");
    else if (failure)
        refuse_errno(error, filename, failure);
    if (!failure)
        return &q->base;
    qcow1_close(&q->base);
    return NULL;
}

image *qcow1_open_mapper(int fd, const qcow1_header *header, const char *filename,
                         GError **error)
{
    return open_with(&qcow1_mapper, fd, header, filename, error);
}

image *qcow1_open(int fd, const qcow1_header *header, const char *filename,
                  GError **error)
{
    if (header->crypt_method == 0)
        return open_with(&qcow1_driver, fd, header, filename, error);
    close(fd);
    refuse(error, filename, IMAGE_ERROR_UNSUPPORTED,
           "encrypted, and of a layout that libqcow does not read (qemu-img convert)");
    return NULL;
}

/* ---- what libqcow reads rightly --------------------------------------------------- */

static const char *cluster_reason(const qcow1_header *header, uint64_t file_size,
                                  uint64_t entry)
{
    const uint64_t cluster_size = (uint64_t)1 << header->cluster_bits;
    qcow1_cluster cluster;
    if (cluster_decode(header, file_size, entry, &cluster) < 0)
        return "cluster outside of the file";
    if (cluster.kind == IMAGE_EXTENT_COMPRESSED && header->crypt_method != 0)
        return "compressed clusters in an encrypted image";
    if (cluster.kind != IMAGE_EXTENT_DATA)
        return NULL;
    if (cluster.host_offset & (cluster_size - 1))
        return "clusters that are not aligned";
    return cluster_size > file_size - cluster.host_offset
               ? "cluster past the end of the file"
               : NULL;
}

static const char *l2_reason(int fd, const qcow1_header *header, uint64_t file_size,
                             uint64_t l2_offset)
{
    const uint64_t l2_entries = (uint64_t)1 << header->l2_bits;
    uint64_t entries[ENTRIES_AT_ONCE];
    if (l2_offset & (8 * l2_entries - 1))
        return "level 2 tables that are not aligned";
    for (uint64_t done = 0, n; done < l2_entries; done += n) {
        n = MIN(l2_entries - done, ENTRIES_AT_ONCE);
        if (file_read_full(fd, entries, n * 8, l2_offset + 8 * done) < 0)
            return "unreadable tables";
        for (uint64_t i = 0; i < n; i++) {
            const char *reason =
                cluster_reason(header, file_size, GUINT64_FROM_BE(entries[i]));
            if (reason)
                return reason;
        }
    }
    return NULL;
}

const char *libqcow_refuses_qcow1(int fd, const qcow1_header *header, uint64_t *budget)
{
    const uint64_t l2_bytes = (uint64_t)8 << header->l2_bits;
    uint64_t end = 0;
    g_autofree uint64_t *l1 = NULL;
    if (file_seek(fd, 0, SEEK_END, &end) < 0 || l1_read(fd, header, end, &l1) < 0)
        return "unreadable tables";
    for (uint64_t i = 0; i < l1_entries(header); i++) {
        if (l1[i] == 0)
            continue;
        if (*budget < l2_bytes)
            return "tables too large to check beforehand";
        *budget -= l2_bytes;
        const char *reason = l2_reason(fd, header, end, l1[i]);
        if (reason)
            return reason;
    }
    return NULL;
}
