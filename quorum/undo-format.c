/*
 * undo-format.c: see undo-format.h.
 */
#include "quorum/undo-format.h"
#include <endian.h>
#include <string.h>

#define HEADER_MAGIC UINT64_C(0x6f646e7573667171) /* "qqfsundo" */
#define RECORD_MAGIC UINT64_C(0x6365727366716675) /* "ufqfsrec" */
#define VERSION      1u

/* The header. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_LENGTH = 12,
    AT_SUM = 16, /* of all of it, with zeroes here */
    AT_ID = 48,
    AT_SIZE = 64,
    AT_N = 72,
    AT_REPLICAS = 80, /* for each: two lengths, name, source */
};

/* A record's first sector. */
enum {
    AT_RECORD_SUM = 16, /* of the rest of it, with the file's id here, and its place */
    AT_OFFSET = 48,
    AT_OLD_LENGTH = 56,
    AT_REPLICA = 60,
    AT_FLAGS = 64,
    AT_PLACE = 72,
    AT_OLD = 80,
    AT_NEW = AT_OLD + JOURNAL_DIGEST_SIZE,
    AT_SYNCED = AT_NEW + JOURNAL_DIGEST_SIZE,
    FLAG_STALE = 1,
    FLAG_UNREADABLE = 2,
    FLAG_END = 4,
    FLAGS_KNOWN = 7,
};

static void put32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

/* ---- Header -------------------------------------------------------------------------- */

static void sum_header(const uint8_t *bytes, size_t length, uint8_t *ret_sum)
{
    g_autofree uint8_t *copy = g_memdup2(bytes, length);
    memset(copy + AT_SUM, 0, JOURNAL_DIGEST_SIZE);
    journal_digest(copy, length, ret_sum);
}

bool undo_encode_header(const undo_header *header, GByteArray *out)
{
    uint8_t fixed[AT_REPLICAS] = {0}, lengths[8];
    static const uint8_t zeroes[UNDO_SECTOR];
    put64(fixed + AT_MAGIC, HEADER_MAGIC);
    put32(fixed + AT_VERSION, VERSION);
    memcpy(fixed + AT_ID, header->id, UNDO_ID_SIZE);
    put64(fixed + AT_SIZE, header->about.size);
    put32(fixed + AT_N, header->about.n);
    guint start = out->len;
    g_byte_array_append(out, fixed, sizeof fixed);
    for (unsigned i = 0; i < header->about.n; i++) {
        size_t name = strlen(header->about.names[i]);
        size_t source = strlen(header->about.sources[i]);
        if (name + source > UNDO_HEADER_MAX - (out->len - start))
            return false;
        put32(lengths, (uint32_t)name);
        put32(lengths + 4, (uint32_t)source);
        g_byte_array_append(out, lengths, sizeof lengths);
        g_byte_array_append(out, (const uint8_t *)header->about.names[i], (guint)name);
        g_byte_array_append(out, (const uint8_t *)header->about.sources[i],
                            (guint)source);
    }
    guint over = (out->len - start) % UNDO_SECTOR;
    g_byte_array_append(out, zeroes, over ? UNDO_SECTOR - over : 0);
    if (out->len - start > UNDO_HEADER_MAX)
        return false;
    put32(out->data + start + AT_LENGTH, out->len - start);
    sum_header(out->data + start, out->len - start, out->data + start + AT_SUM);
    return true;
}

uint32_t undo_header_length(const uint8_t sector[UNDO_SECTOR])
{
    uint32_t length = get32(sector + AT_LENGTH);
    bool known = get64(sector + AT_MAGIC) == HEADER_MAGIC &&
                 get32(sector + AT_VERSION) == VERSION && length >= UNDO_SECTOR &&
                 length <= UNDO_HEADER_MAX && length % UNDO_SECTOR == 0;
    return known ? length : 0;
}

/* One string of `length` at *at, which moves on; NULL: it leaves the header. */
static const char *take_string(const uint8_t *bytes, size_t end, size_t *at,
                               uint32_t length, GStringChunk *strings)
{
    if (length > end - *at || memchr(bytes + *at, 0, length))
        return NULL;
    const char *text =
        g_string_chunk_insert_len(strings, (const char *)bytes + *at, length);
    *at += length;
    return text;
}

bool undo_decode_header(const uint8_t *bytes, size_t length, undo_header *ret_header,
                        GStringChunk *strings)
{
    uint8_t sum[JOURNAL_DIGEST_SIZE];
    sum_header(bytes, length, sum);
    if (memcmp(sum, bytes + AT_SUM, sizeof sum) != 0)
        return false;
    *ret_header = (undo_header){0};
    memcpy(ret_header->id, bytes + AT_ID, UNDO_ID_SIZE);
    undo_disk *about = &ret_header->about;
    about->size = get64(bytes + AT_SIZE);
    about->n = get32(bytes + AT_N);
    if (about->n < 1 || about->n > VOTE_REPLICAS_MAX)
        return false;
    size_t at = AT_REPLICAS;
    for (unsigned i = 0; i < about->n; i++) {
        if (length - at < 8)
            return false;
        uint32_t name = get32(bytes + at), source = get32(bytes + at + 4);
        at += 8;
        about->names[i] = take_string(bytes, length, &at, name, strings);
        if (about->names[i])
            about->sources[i] = take_string(bytes, length, &at, source, strings);
        if (!about->sources[i])
            return false;
    }
    return true;
}

/* ---- Records ------------------------------------------------------------------------- */

static void sum_record(const undo_header *header, const uint8_t *sector, uint8_t *ret_sum)
{
    uint8_t copy[UNDO_SECTOR];
    memcpy(copy, sector, sizeof copy);
    memset(copy + AT_RECORD_SUM, 0, JOURNAL_DIGEST_SIZE);
    memcpy(copy + AT_RECORD_SUM, header->id, UNDO_ID_SIZE);
    journal_digest(copy, sizeof copy, ret_sum);
}

void undo_encode_record(const undo_header *header, const undo_record *record,
                        uint8_t ret_sector[UNDO_SECTOR])
{
    uint32_t flags = (record->stale ? FLAG_STALE : 0u) |
                     (record->unreadable ? FLAG_UNREADABLE : 0u) |
                     (record->end ? FLAG_END : 0u);
    memset(ret_sector, 0, UNDO_SECTOR);
    put64(ret_sector + AT_MAGIC, RECORD_MAGIC);
    put64(ret_sector + AT_OFFSET, record->offset);
    put32(ret_sector + AT_OLD_LENGTH, (uint32_t)record->length);
    put32(ret_sector + AT_REPLICA, record->replica);
    put32(ret_sector + AT_FLAGS, flags);
    put64(ret_sector + AT_PLACE, record->at);
    put64(ret_sector + AT_SYNCED, record->synced);
    memcpy(ret_sector + AT_OLD, record->old_sha256, JOURNAL_DIGEST_SIZE);
    memcpy(ret_sector + AT_NEW, record->new_sha256, JOURNAL_DIGEST_SIZE);
    sum_record(header, ret_sector, ret_sector + AT_RECORD_SUM);
}

static bool is_sane(const undo_header *header, const undo_record *record)
{
    if (record->end)
        return record->unreadable;
    return record->replica < header->about.n && record->length > 0 &&
           record->length <= UNDO_LENGTH_MAX && record->offset <= header->about.size &&
           record->length <= header->about.size - record->offset;
}

bool undo_decode_record(const undo_header *header, const uint8_t sector[UNDO_SECTOR],
                        uint64_t at, undo_record *ret_record)
{
    uint8_t sum[JOURNAL_DIGEST_SIZE];
    if (get64(sector + AT_MAGIC) != RECORD_MAGIC || get64(sector + AT_PLACE) != at)
        return false;
    sum_record(header, sector, sum);
    if (memcmp(sum, sector + AT_RECORD_SUM, sizeof sum) != 0)
        return false;
    uint32_t flags = get32(sector + AT_FLAGS);
    *ret_record = (undo_record){
        .replica = get32(sector + AT_REPLICA),
        .stale = flags & FLAG_STALE,
        .unreadable = flags & FLAG_UNREADABLE,
        .end = flags & FLAG_END,
        .offset = get64(sector + AT_OFFSET),
        .length = get32(sector + AT_OLD_LENGTH),
        .at = at,
        .synced = get64(sector + AT_SYNCED),
    };
    memcpy(ret_record->old_sha256, sector + AT_OLD, JOURNAL_DIGEST_SIZE);
    memcpy(ret_record->new_sha256, sector + AT_NEW, JOURNAL_DIGEST_SIZE);
    return !(flags & ~(uint32_t)FLAGS_KNOWN) && is_sane(header, ret_record);
}

uint64_t undo_payload(const undo_record *record)
{
    if (record->unreadable)
        return 0;
    return (record->length + UNDO_SECTOR - 1) & ~(uint64_t)(UNDO_SECTOR - 1);
}
