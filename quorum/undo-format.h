/*
 * undo-format.h: the bytes of an undo file (undo.h). Pure; private to undo*.c and its test.
 *
 * A header, then records, all in whole sectors of 512 bytes, numbers little-endian. A record is
 * one sector that describes it and the old bytes, padded with zeroes. Each of these
 * descriptions has a sum over itself, its place and the file's random id, so that what the
 * file's blocks held before, or old bytes that look like a record, are never taken for one.
 */
#ifndef QUORUM_UNDO_FORMAT_H
#define QUORUM_UNDO_FORMAT_H

#include "quorum/undo.h"

#define UNDO_SECTOR     512u
#define UNDO_HEADER_MAX (512u << 10)
#define UNDO_ID_SIZE    16u

typedef struct undo_header {
    uint8_t id[UNDO_ID_SIZE];
    undo_disk about;
} undo_header;

/* Appends the header to `out`. False: it would be larger than UNDO_HEADER_MAX. */
bool undo_encode_header(const undo_header *header, GByteArray *out);
/* The header's length by its first sector; 0: this is no undo file. */
uint32_t undo_header_length(const uint8_t sector[UNDO_SECTOR]);
/* Strings are put into `strings`. False: it is damaged. `bytes` has undo_header_length. */
bool undo_decode_header(const uint8_t *bytes, size_t length, undo_header *ret_header,
                        GStringChunk *strings);

/* `record->at` is its place in the file, `record->synced` where the file was synced up to when
 * it was written. */
void undo_encode_record(const undo_header *header, const undo_record *record,
                        uint8_t ret_sector[UNDO_SECTOR]);
/* False: there is no record of this file at `at`. */
bool undo_decode_record(const undo_header *header, const uint8_t sector[UNDO_SECTOR],
                        uint64_t at, undo_record *ret_record);
/* What the record's old bytes take in the file. */
uint64_t undo_payload(const undo_record *record);

#endif
