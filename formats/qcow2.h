/*
 * qcow2.h: the native qcow2 driver and the check that stands before every decoder.
 */
#ifndef FORMATS_QCOW2_H
#define FORMATS_QCOW2_H

#include "formats/qcow2-header.h"

/* What the walk over L1 and L2 found. Bounded: at most `budget` bytes of L2 tables are
 * read, so that no image can make an open slow (QCOW2_CHECK_BYTES_MAX is for a whole
 * chain); `complete` says whether that sufficed (what was not looked at is still checked
 * at each lookup). */
#define QCOW2_CHECK_BYTES_MAX (64u << 20)
typedef struct qcow2_check {
    bool complete;
    bool has_zero_clusters; /* any L2 entry with the zero flag (or subcluster zeroes) */
    bool has_compressed;
    bool has_short_clusters;  /* a data cluster whose guest bytes (up to the virtual size)
                                 lie partly past the end of its file: zero there */
    uint64_t allocated_bytes; /* guest bytes in data or compressed clusters seen */
} qcow2_check;

/* Checks L1, L2 and where clusters lie: tables inside the file and aligned, no cluster or
 * table over the header, L1, L2, refcount table and blocks, snapshot table or a snapshot's
 * L1, no table used twice, no cluster wholly past the end of its file, reserved bits zero.
 * `data_size` is the size of the external data file; without one it does not matter.
 * *budget is what may be read, and is lowered by what was. Every image passes here before
 * any decoder sees it: libqcow is not memory-safe, and qcow2_open relies on it. */
bool qcow2_check_tables(int fd, uint64_t data_size, const qcow2_header *header,
                        const char *filename, uint64_t *budget, qcow2_check *ret_check,
                        GError **error);

/* Opens read-only. Takes over `fd` and `data_fd` (-1: none), also on failure. `header`
 * must come from qcow2_header_read on the same file, which qcow2_check_tables has let
 * through; what is needed is copied.
 * Refused: crypt_method other than 0 (AES is libqcow's). The backing file is the
 * caller's: unallocated clusters are reported by map and read as zeroes. */
image *qcow2_open(int fd, int data_fd, const qcow2_header *header, const char *filename,
                  GError **error);

/* Why an image with this header is never written here, with a hint; NULL: it can be.
 * Static. */
const char *qcow2_write_refusal(const qcow2_header *header);

/* The same for writing: both descriptors are open for reading and writing, and the header
 * is not refused. Changes nothing before image_begin_writing; writes are -EROFS until then. */
image *qcow2_open_writable(int fd, int data_fd, const qcow2_header *header,
                           const char *filename, GError **error);

/* Who is asked for what the image does not hold, where a write covers a cluster in part:
 * reads `length` bytes of the disk below, which is `size` bytes long; zeroes past its end. To
 * be called before image_begin_writing exactly if the image has a backing file. */
typedef int qcow2_read_below(void *opaque, void *buf, uint64_t offset, size_t length);
void qcow2_set_backing(image *im, qcow2_read_below *read, void *opaque, uint64_t size);

/* How many guest bytes hold data (qcow2_check.allocated_bytes), from where image_allocated
 * counts on. Before image_begin_writing; else it is not known. */
void qcow2_set_allocated(image *im, uint64_t bytes);

/* The same, for its map() only: AES images are taken too, read() is -ENOTSUP. */
image *qcow2_open_mapper(int fd, int data_fd, const qcow2_header *header,
                         const char *filename, GError **error);

#endif
