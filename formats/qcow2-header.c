/*
 * qcow2-header.c: the first cluster of a qcow2 file, parsed and checked.
 *
 * Invariants
 * - No byte outside of [buf, buf + length) is read, and nothing is believed before it was
 *   compared with its bound: a caller may use every field of the result without another
 *   check. In particular the L1, refcount and snapshot tables start on cluster boundaries
 *   behind the header and end inside the file, and the L1 table covers the virtual size.
 * - The order of the checks matters. Whatever an unknown incompatible feature might
 *   redefine is looked at only after such features were refused, so that an image from
 *   the future is called unsupported and not broken.
 * - Text out of the image enters messages only through printable(). The names in the
 *   result are as in the image, but hold no NUL byte: what is checked is what open() sees.
 *
 * What stands in this file is what the header alone can tell; whether tables overlap is
 * qcow2-ranges.c's, since the length of the snapshot table must be read from it.
 */
#include "formats/qcow2-internal.h"
#include <stdarg.h>

#define HEADER_LENGTH_V2   72u
#define HEADER_LENGTH_V3   104u
#define COMPRESSION_OFFSET 104u /* present if header_length is larger */
#define CLUSTER_BITS_MIN   9u
#define CLUSTER_BITS_MAX   21u
#define EXTL2_BITS_MIN     14u
#define BACKING_NAME_MAX   1023u
#define BACKING_FORMAT_MAX 15u
#define DATA_FILE_NAME_MAX 4095u
#define FEATURE_ENTRY      48u
#define BITMAPS_LENGTH     24u
#define BITMAPS_MAX        65535u
#define DIRECTORY_MAX      (64u << 20)

enum {
    EXT_END = 0,
    EXT_BACKING_FORMAT = (int)0xe2792acau,
    EXT_FEATURE_NAMES = 0x6803f857,
    EXT_DATA_FILE = 0x44415441,
    EXT_BITMAPS = 0x23852875,
};

typedef struct parser {
    const uint8_t *buf;
    size_t length;
    uint64_t file_size;
    const char *filename;
    qcow2_header *header;
    uint64_t backing_offset;
    uint32_t backing_length;
    uint8_t compression;
    GError **error;
} parser;

typedef struct extension {
    uint32_t type;
    const uint8_t *data;
    uint32_t length;
} extension;

bool qcow2_fail(GError **error, image_error code, const char *filename,
                const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, IMAGE_ERROR, (int)code, "%s: %s", filename, text);
    return false;
}

#define fail(p, code, ...)                                                               \
    qcow2_fail((p)->error, IMAGE_ERROR_##code, (p)->filename, __VA_ARGS__)

static char *printable(const uint8_t *text, size_t length)
{
    char *result = g_strndup((const char *)text, length);
    for (char *at = result; *at; at++) {
        if (!g_ascii_isprint(*at))
            *at = '?';
    }
    return result;
}

static uint64_t cluster_size(const parser *p)
{
    return (uint64_t)1 << p->header->cluster_bits;
}

/* Magic, version and the fields that both versions have. */
static bool read_fixed_fields(parser *p)
{
    const uint8_t *buf = p->buf;
    qcow2_header *h = p->header;
    if (p->length < 8 || qcow2_be32(buf) != QCOW2_MAGIC)
        return fail(p, FORMAT, "not a qcow2 image (bad magic)");
    h->version = qcow2_be32(buf + 4);
    if (h->version == 1)
        return fail(p, FORMAT, "a qcow image of version 1, not qcow2 (name it qcow)");
    if (h->version != 2 && h->version != 3)
        return fail(p, UNSUPPORTED, "qcow2 version %u is not supported", h->version);
    if (p->length < (h->version == 2 ? HEADER_LENGTH_V2 : HEADER_LENGTH_V3))
        return fail(p, INVALID, "the file ends within the qcow2 header");
    p->backing_offset = qcow2_be64(buf + 8);
    p->backing_length = qcow2_be32(buf + 16);
    h->cluster_bits = qcow2_be32(buf + 20);
    h->size = qcow2_be64(buf + 24);
    h->crypt_method = qcow2_be32(buf + 32);
    h->l1_entries = qcow2_be32(buf + 36);
    h->l1_offset = qcow2_be64(buf + 40);
    h->refcount_table_offset = qcow2_be64(buf + 48);
    h->refcount_table_clusters = qcow2_be32(buf + 56);
    h->snapshot_count = qcow2_be32(buf + 60);
    h->snapshot_offset = qcow2_be64(buf + 64);
    h->header_length = HEADER_LENGTH_V2;
    h->refcount_order = 4;
    if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
        return fail(p, INVALID, "cluster_bits is %u, not %u to %u", h->cluster_bits,
                    CLUSTER_BITS_MIN, CLUSTER_BITS_MAX);
    return true;
}

/* qcow2: Header, the fields that version 3 added. */
static bool read_v3_fields(parser *p)
{
    qcow2_header *h = p->header;
    h->incompatible = qcow2_be64(p->buf + 72);
    h->compatible = qcow2_be64(p->buf + 80);
    h->autoclear = qcow2_be64(p->buf + 88);
    h->refcount_order = qcow2_be32(p->buf + 96);
    h->header_length = qcow2_be32(p->buf + 100);
    if (h->header_length < HEADER_LENGTH_V3 || h->header_length % 8 != 0 ||
        h->header_length > cluster_size(p))
        return fail(p, INVALID, "header length %u is not valid", h->header_length);
    if (h->header_length > p->length)
        return fail(p, INVALID, "the file ends within the qcow2 header");
    if (h->header_length > COMPRESSION_OFFSET)
        p->compression = p->buf[COMPRESSION_OFFSET];
    return true;
}

/* Where the extensions (and nothing else) may lie: behind the header and before the
 * backing name, or the end of the first cluster. */
static size_t extension_area_end(const parser *p)
{
    uint64_t end = cluster_size(p);
    if (p->backing_offset != 0 && p->backing_offset < end)
        end = p->backing_offset;
    return MIN(end, p->length);
}

/* Takes the extension at *at and moves *at behind it. 1: there is one; 0: the end;
 * -1: it reaches out of the area. */
static int next_extension(const parser *p, size_t *at, extension *ret)
{
    size_t end = extension_area_end(p);
    if (*at >= end || end - *at < 8)
        return 0;
    ret->type = qcow2_be32(p->buf + *at);
    ret->length = qcow2_be32(p->buf + *at + 4);
    ret->data = p->buf + *at + 8;
    if (ret->type == EXT_END)
        return 0;
    size_t left = end - *at - 8;
    if (ret->length > left)
        return -1;
    *at += 8 + (size_t)MIN(qcow2_round_up(ret->length, 8), left);
    return 1;
}

/* qcow2: Feature name table. The name of an incompatible bit, made printable. */
static char *feature_name(const parser *p, unsigned bit)
{
    extension ext;
    size_t at = p->header->header_length;
    while (next_extension(p, &at, &ext) > 0) {
        if (ext.type != (uint32_t)EXT_FEATURE_NAMES)
            continue;
        for (size_t i = 0; i + FEATURE_ENTRY <= ext.length; i += FEATURE_ENTRY) {
            const uint8_t *entry = ext.data + i;
            if (entry[0] == 0 && entry[1] == bit && entry[2] != 0)
                return printable(entry + 2, FEATURE_ENTRY - 2);
        }
    }
    return g_strdup_printf("bit %u", bit);
}

static bool check_features(const parser *p)
{
    const uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |
                           QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION |
                           QCOW2_INCOMPAT_EXTL2;
    uint64_t unknown = p->header->incompatible & ~known;
    if (!unknown)
        return true;
    g_autoptr(GString) names = g_string_new(NULL);
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(unknown >> bit & 1))
            continue;
        g_autofree char *name = feature_name(p, bit);
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
    }
    return fail(p, UNSUPPORTED, "unsupported qcow2 feature: %s", names->str);
}

/* qcow2: Header, compression_type: the feature bit stands exactly if it is not zlib. */
static bool check_compression(const parser *p)
{
    qcow2_header *h = p->header;
    bool flagged = (h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != 0;
    if (p->compression > QCOW2_COMPRESSION_ZSTD)
        return fail(p, UNSUPPORTED, "compression type %u is not supported",
                    p->compression);
    if (flagged != (p->compression != QCOW2_COMPRESSION_ZLIB))
        return fail(p, INVALID, "compression type %u contradicts the feature bits",
                    p->compression);
    h->compression = p->compression;
    return true;
}

static bool check_crypt(const parser *p)
{
    switch (p->header->crypt_method) {
    case 0:
    case 1:
        return true;
    case 2:
        return fail(p, UNSUPPORTED,
                    "LUKS encryption is not supported (serve it with exec:qemu-nbd)");
    default:
        return fail(p, INVALID, "encryption method %u is not valid",
                    p->header->crypt_method);
    }
}

/* A table of `bytes` bytes: on a cluster boundary, behind the header, inside the file. */
static bool check_table(const parser *p, const char *what, uint64_t offset,
                        uint64_t bytes)
{
    if (offset < cluster_size(p) || offset % cluster_size(p) != 0)
        return fail(p, INVALID, "the %s's offset 0x%" PRIx64 " is not valid", what,
                    offset);
    if (bytes > p->file_size || offset > p->file_size - bytes)
        return fail(p, INVALID, "the %s lies outside of the file", what);
    return true;
}

static bool check_l1(const parser *p)
{
    const qcow2_header *h = p->header;
    qcow2_layout layout;
    if (h->size > IMAGE_SIZE_MAX)
        return fail(p, INVALID, "virtual size %" PRIu64 " is too large", h->size);
    if (h->l1_entries > QCOW2_L1_BYTES_MAX / 8)
        return fail(p, INVALID, "the L1 table is too large (%u entries)", h->l1_entries);
    qcow2_layout_init(&layout, h, p->file_size, p->file_size);
    if (h->l1_entries < qcow2_layout_l1_needed(&layout))
        return fail(p, INVALID,
                    "the L1 table is too small (%u entries for %" PRIu64 " bytes)",
                    h->l1_entries, h->size);
    if (h->l1_entries == 0)
        return true;
    return check_table(p, "L1 table", h->l1_offset, (uint64_t)h->l1_entries * 8);
}

static bool check_refcounts(const parser *p)
{
    const qcow2_header *h = p->header;
    if (h->refcount_order > 6)
        return fail(p, INVALID, "refcount order %u is larger than 6", h->refcount_order);
    if (h->refcount_table_clusters == 0)
        return fail(p, INVALID, "the image has no refcount table");
    if (h->refcount_table_clusters > QCOW2_REFCOUNT_TABLE_BYTES_MAX >> h->cluster_bits)
        return fail(p, INVALID, "the refcount table is too large (%u clusters)",
                    h->refcount_table_clusters);
    return check_table(p, "refcount table", h->refcount_table_offset,
                       (uint64_t)h->refcount_table_clusters << h->cluster_bits);
}

static bool check_snapshots(const parser *p)
{
    const qcow2_header *h = p->header;
    if (h->snapshot_count > QCOW2_SNAPSHOTS_MAX)
        return fail(p, INVALID, "too many snapshots (%u)", h->snapshot_count);
    if (h->snapshot_count == 0)
        return true;
    return check_table(p, "snapshot table", h->snapshot_offset,
                       (uint64_t)h->snapshot_count * QCOW2_SNAPSHOT_HEADER);
}

static bool take_text(const parser *p, const char *what, const uint8_t *text,
                      size_t length, size_t max, char **slot)
{
    if (length > max)
        return fail(p, INVALID, "the %s is too long (%zu bytes)", what, length);
    if (memchr(text, 0, length))
        return fail(p, INVALID, "the %s holds a NUL byte", what);
    if (length > 0)
        *slot = g_strndup((const char *)text, length);
    return true;
}

/* qcow2: Bitmaps extension. What is not valid is left out of the result. */
static void take_bitmaps(const parser *p, const extension *ext)
{
    qcow2_header *h = p->header;
    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) || ext->length != BITMAPS_LENGTH)
        return;
    uint32_t count = qcow2_be32(ext->data), reserved = qcow2_be32(ext->data + 4);
    uint64_t size = qcow2_be64(ext->data + 8), offset = qcow2_be64(ext->data + 16);
    if (count == 0 || count > BITMAPS_MAX || reserved != 0)
        return;
    if (size == 0 || size > DIRECTORY_MAX || offset < cluster_size(p) ||
        offset % cluster_size(p) != 0 || offset > p->file_size ||
        size > p->file_size - offset)
        return;
    h->bitmap_count = count;
    h->bitmap_directory_size = size;
    h->bitmap_directory_offset = offset;
}

static void forget_bitmaps(qcow2_header *h)
{
    h->bitmap_count = 0;
    h->bitmap_directory_size = h->bitmap_directory_offset = 0;
}

/* qcow2: Header extensions. Each type stands at most once; unknown ones are skipped. */
static bool read_extensions(const parser *p)
{
    qcow2_header *h = p->header;
    bool seen_format = false, seen_data_file = false, seen_bitmaps = false;
    extension ext;
    size_t at = h->header_length;
    int more;
    while ((more = next_extension(p, &at, &ext)) > 0) {
        if (ext.type == EXT_BITMAPS) {
            take_bitmaps(p, &ext);
            if (seen_bitmaps)
                forget_bitmaps(h);
            seen_bitmaps = true;
        }
        bool *seen = ext.type == (uint32_t)EXT_BACKING_FORMAT ? &seen_format
                     : ext.type == (uint32_t)EXT_DATA_FILE    ? &seen_data_file
                                                              : NULL;
        if (!seen)
            continue;
        if (*seen)
            return fail(p, INVALID, "header extension 0x%x stands twice", ext.type);
        *seen = true;
        if (seen == &seen_format && !take_text(p, "backing format", ext.data, ext.length,
                                               BACKING_FORMAT_MAX, &h->backing_format))
            return false;
        if (seen == &seen_data_file &&
            !take_text(p, "data file name", ext.data, ext.length, DATA_FILE_NAME_MAX,
                       &h->data_file))
            return false;
    }
    if (more < 0)
        return fail(p, INVALID, "header extension 0x%x reaches out of the header",
                    ext.type);
    return true;
}

static bool read_backing_name(const parser *p)
{
    if (p->backing_offset == 0)
        return true;
    uint64_t end = MIN(cluster_size(p), p->length);
    if (p->backing_offset < p->header->header_length || p->backing_offset > end)
        return fail(p, INVALID,
                    "the backing file name's offset 0x%" PRIx64 " is not valid",
                    p->backing_offset);
    if (p->backing_length > BACKING_NAME_MAX)
        return fail(p, INVALID, "the backing file name is too long (%u bytes)",
                    p->backing_length);
    if (p->backing_length > end - p->backing_offset)
        return fail(p, INVALID, "the backing file name reaches out of the header");
    return take_text(p, "backing file name", p->buf + p->backing_offset,
                     p->backing_length, BACKING_NAME_MAX, &p->header->backing_file);
}

static bool parse(parser *p)
{
    qcow2_header *h = p->header;
    if (!read_fixed_fields(p) || (h->version == 3 && !read_v3_fields(p)) ||
        !check_features(p))
        return false;
    if ((h->incompatible & QCOW2_INCOMPAT_EXTL2) && h->cluster_bits < EXTL2_BITS_MIN)
        return fail(p, INVALID, "extended L2 entries with cluster_bits %u, less than %u",
                    h->cluster_bits, EXTL2_BITS_MIN);
    h->data_file_raw = (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) &&
                       (h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
    return check_compression(p) && check_crypt(p) && check_l1(p) && check_refcounts(p) &&
           check_snapshots(p) && read_backing_name(p) && read_extensions(p);
}

bool qcow2_header_parse(const uint8_t *buf, size_t length, uint64_t file_size,
                        const char *filename, qcow2_header *ret_header, GError **error)
{
    memset(ret_header, 0, sizeof *ret_header);
    parser p = {.buf = buf,
                .length = length,
                .file_size = file_size,
                .filename = filename,
                .header = ret_header,
                .error = error};
    if (parse(&p))
        return true;
    qcow2_header_clear(ret_header);
    return false;
}

void qcow2_header_copy(qcow2_header *to, const qcow2_header *from)
{
    *to = *from;
    to->backing_file = g_strdup(from->backing_file);
    to->backing_format = g_strdup(from->backing_format);
    to->data_file = g_strdup(from->data_file);
}

void qcow2_header_clear(qcow2_header *header)
{
    g_free(header->backing_file);
    g_free(header->backing_format);
    g_free(header->data_file);
    memset(header, 0, sizeof *header);
}

/* The first cluster: as long as cluster_bits says, and never more than the file. */
static int read_first_cluster(int fd, uint64_t file_size, uint8_t **ret_buf,
                              size_t *ret_length)
{
    uint8_t start[HEADER_LENGTH_V3];
    int result = file_read_full(fd, start, sizeof start, 0);
    if (result < 0)
        return result;
    uint32_t bits = CLAMP(qcow2_be32(start + 20), CLUSTER_BITS_MIN, CLUSTER_BITS_MAX);
    size_t length = (size_t)MIN((uint64_t)1 << bits, file_size);
    g_autofree uint8_t *buf = g_malloc0(MAX(length, sizeof start));
    result = file_read_full(fd, buf, length, 0);
    if (result < 0)
        return result;
    *ret_buf = g_steal_pointer(&buf);
    *ret_length = length;
    return 0;
}

bool qcow2_header_read(int fd, const char *filename, qcow2_header *ret_header,
                       GError **error)
{
    uint64_t file_size = 0;
    size_t length = 0;
    g_autofree uint8_t *buf = NULL;
    memset(ret_header, 0, sizeof *ret_header);
    int result = file_get_size(fd, &file_size, NULL);
    if (result == 0)
        result = read_first_cluster(fd, file_size, &buf, &length);
    if (result < 0)
        return qcow2_fail(error, IMAGE_ERROR_IO, filename,
                          "cannot read the qcow2 header: %s", g_strerror(-result));
    return qcow2_header_parse(buf, length, file_size, filename, ret_header, error);
}
