/*
 * qcow2-header.h: what a qcow2 header says, checked. Pure: no I/O, no allocation but the
 * strings of the result. Rules come from QEMU's docs/interop/qcow2.txt and are cited as
 * "qcow2: <section>" where they are kept.
 */
#ifndef FORMATS_QCOW2_HEADER_H
#define FORMATS_QCOW2_HEADER_H

#include "formats/image.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

enum {
    QCOW2_INCOMPAT_DIRTY = 1u << 0,
    QCOW2_INCOMPAT_CORRUPT = 1u << 1,
    QCOW2_INCOMPAT_DATA_FILE = 1u << 2,
    QCOW2_INCOMPAT_COMPRESSION = 1u << 3,
    QCOW2_INCOMPAT_EXTL2 = 1u << 4,
};

enum {
    QCOW2_AUTOCLEAR_BITMAPS = 1u << 0,
    QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1u << 1,
};

typedef enum qcow2_compression {
    QCOW2_COMPRESSION_ZLIB = 0,
    QCOW2_COMPRESSION_ZSTD = 1,
} qcow2_compression;

typedef struct qcow2_header {
    uint32_t version; /* 2 or 3 */
    uint64_t size;    /* virtual size, bytes */
    uint32_t cluster_bits;
    uint32_t crypt_method; /* 0 none, 1 AES; 2 (LUKS) is refused by name */
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t refcount_order;
    uint32_t snapshot_count;
    uint64_t snapshot_offset;
    uint32_t header_length;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    qcow2_compression compression;
    char *backing_file;   /* NULL: none. As in the image, not resolved. */
    char *backing_format; /* NULL: no such extension */
    char *data_file;      /* NULL: none, or the name is missing */
    bool data_file_raw;   /* autoclear bit 1: the data file is a raw image of the disk */
    /* All 0 without the bitmaps extension, with its autoclear bit clear, and if what it
     * says is not valid: bitmaps are no reason not to read an image. */
    uint32_t bitmap_count;
    uint64_t bitmap_directory_offset;
    uint64_t bitmap_directory_size;
} qcow2_header;

/* How many bytes of the file's start qcow2_header_parse wants to see: header, extensions
 * and backing name all lie in the first cluster (qcow2: Header), at most 2 MiB; QEMU
 * writes far less. Less is given where the file is shorter. */
#define QCOW2_HEADER_BYTES_MAX (2u << 20)

/* Parses and checks. `buf` holds the first `length` bytes of a file of `file_size` bytes.
 * Every size, count and offset is checked against the rules and against file_size (O3).
 * `filename` is for messages only. On failure *ret_header is zeroed.
 * Errors: FORMAT (no magic), INVALID, UNSUPPORTED (LUKS and unknown incompatible
 * features, by name from the feature table). */
bool qcow2_header_parse(const uint8_t *buf, size_t length, uint64_t file_size,
                        const char *filename, qcow2_header *ret_header, GError **error);
void qcow2_header_clear(qcow2_header *header);
void qcow2_header_copy(qcow2_header *to, const qcow2_header *from); /* clear it */

/* Reads what is needed of fd and parses it. */
bool qcow2_header_read(int fd, const char *filename, qcow2_header *ret_header,
                       GError **error);

#endif
