/*
 * manifest.h: the digests of a disk's voted data, to be checked again later against one
 * replica or more.
 *
 * The text, line by line:
 *
 *     quorumfs-manifest 1
 *     size 1073741824
 *     range 1048576
 *     digest sha256
 *     0 1048576 30e14955...          offset, length, SHA-256 in lower-case hex
 *     1048576 1048576 -              no majority there when the manifest was made
 *
 * Ranges follow each other without gaps, each `range` bytes long but for the last.
 * Threads: one per object.
 */
#ifndef FUSE_MANIFEST_H
#define FUSE_MANIFEST_H

#include "quorum/journal.h"
#include <stdio.h>

#define MANIFEST_RANGE_DEFAULT ((uint64_t)1 << 20)
#define MANIFEST_RANGE_MIN     512u
#define MANIFEST_RANGE_MAX     ((uint64_t)1 << 40)

#define MANIFEST_ERROR (manifest_error_quark())
GQuark manifest_error_quark(void);
typedef enum manifest_error {
    MANIFEST_ERROR_IO,
    MANIFEST_ERROR_INVALID,
} manifest_error;

/* Write errors are left to the stream's error flag. */
void manifest_write_header(FILE *stream, uint64_t size, uint64_t range);
/* sha256 NULL: unknown. */
void manifest_write_range(FILE *stream, uint64_t offset, uint64_t length,
                          const uint8_t *sha256);

typedef struct manifest_reader manifest_reader;

/* Opens a manifest and checks all of it, line by line, so that nothing is compared with
 * half of one. Messages start with the file's name and the line's number. */
manifest_reader *manifest_reader_open(const char *path, GError **error);
void manifest_reader_free(manifest_reader *reader); /* NULL is allowed */
uint64_t manifest_reader_size(const manifest_reader *reader);
uint64_t manifest_reader_range(const manifest_reader *reader);

typedef enum manifest_verdict {
    MANIFEST_EQUAL,
    MANIFEST_DIFFERENT,
    MANIFEST_UNKNOWN, /* no digest in the manifest */
    MANIFEST_CHANGED, /* the file is not what it was when it was opened */
} manifest_verdict;

/* Compares the next range, which must be at `offset`. */
manifest_verdict manifest_reader_compare(manifest_reader *reader, uint64_t offset,
                                         uint64_t length,
                                         const uint8_t sha256[JOURNAL_DIGEST_SIZE]);

#endif
