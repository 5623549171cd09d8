/*
 * qcow2-mark.c: see qcow2-mark.h.
 *
 * How an extension comes into a header that is in use, so that every state in between is a
 * valid image: extensions end at a marker of eight zero bytes, and what lies between that and
 * the backing file's name means nothing. If the name stands where the extension is to be, it
 * is copied further back, clear of itself, and the header led to the copy. Then the body and
 * a new end marker are written behind the old one, and at last the old one becomes the
 * extension's head: eight bytes on a multiple of eight, which lie in one sector. A sync
 * stands between any two of these steps.
 *
 * There must be room behind it for the longest name that a backing file can have: whoever
 * rebases the image later is not to find its header full because of us.
 */
#include "formats/qcow2-mark.h"
#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include <errno.h>

#define TYPE         0x71766d6bu
#define HEAD         8u
#define SLOT         64u
#define BODY         (2 * SLOT)
#define SLOT_VERSION 1u
#define NAME_MAX_LEN 1023u

enum {
    AT_BACKING_OFFSET = 8, /* of the file */
    AT_BACKING_LENGTH = 16,
    AT_CLUSTER_BITS = 20,
    AT_HEADER_LENGTH = 100,
    AT_FLAGS = 4, /* of a slot */
    AT_SET = 8,
    AT_REPLICA = 24,
    AT_GENERATION = 32,
    AT_SEQUENCE = 40,
    AT_SUM = 48,
    SUM_SIZE = 16,
    FLAG_CLEAN = 1,
};

/* Where things are in a header. */
typedef struct place {
    uint64_t cluster_size, backing_offset;
    uint32_t backing_length;
    size_t body; /* of the mark; 0: there is none */
    size_t end;  /* the end marker, where there is no mark */
    const char *why;
} place;

/* ---- Slots ------------------------------------------------------------------------------ */

static void put32(uint8_t *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

static void sum_slot(const uint8_t *slot, uint8_t ret_sum[SUM_SIZE])
{
    uint8_t digest[32];
    gsize length = sizeof digest;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(sum, slot, AT_SUM);
    g_checksum_get_digest(sum, digest, &length);
    memcpy(ret_sum, digest, SUM_SIZE);
}

/* 0: the slot is not valid. */
static uint64_t slot_sequence(const uint8_t *slot)
{
    uint8_t sum[SUM_SIZE];
    sum_slot(slot, sum);
    bool valid =
        qcow2_be32(slot) == SLOT_VERSION && memcmp(sum, slot + AT_SUM, SUM_SIZE) == 0;
    return valid ? qcow2_be64(slot + AT_SEQUENCE) : 0;
}

static void decode_slot(const uint8_t *slot, qcow2_mark *mark)
{
    memcpy(mark->set_id, slot + AT_SET, sizeof mark->set_id);
    mark->replica = qcow2_be64(slot + AT_REPLICA);
    mark->generation = qcow2_be64(slot + AT_GENERATION);
    mark->clean = qcow2_be32(slot + AT_FLAGS) & FLAG_CLEAN;
}

static void encode_slot(const qcow2_mark *mark, uint64_t sequence, uint8_t *slot)
{
    memset(slot, 0, SLOT);
    put32(slot, SLOT_VERSION);
    put32(slot + AT_FLAGS, mark->clean ? FLAG_CLEAN : 0);
    memcpy(slot + AT_SET, mark->set_id, sizeof mark->set_id);
    put64(slot + AT_REPLICA, mark->replica);
    put64(slot + AT_GENERATION, mark->generation);
    put64(slot + AT_SEQUENCE, sequence);
    sum_slot(slot, slot + AT_SUM);
}

bool qcow2_mark_equal(const qcow2_mark *a, const qcow2_mark *b)
{
    return a->present == b->present &&
           memcmp(a->set_id, b->set_id, sizeof a->set_id) == 0 &&
           a->replica == b->replica && a->generation == b->generation &&
           a->clean == b->clean;
}

/* ---- Finding it ------------------------------------------------------------------------- */

static const char *read_fields(const uint8_t *header, size_t length, place *p)
{
    uint32_t version = length >= 104 ? qcow2_be32(header + 4) : 0;
    if (version < 2 || version > 3 || qcow2_be32(header) != QCOW2_MAGIC)
        return "is not a qcow2 image of version 2 or 3";
    uint32_t bits = qcow2_be32(header + AT_CLUSTER_BITS);
    p->end = version == 2 ? 72 : qcow2_be32(header + AT_HEADER_LENGTH);
    if (bits < 9 || bits > 21 || p->end % 8 != 0)
        return "its header is not valid";
    p->cluster_size = UINT64_C(1) << bits;
    p->backing_offset = qcow2_be64(header + AT_BACKING_OFFSET);
    p->backing_length = qcow2_be32(header + AT_BACKING_LENGTH);
    return NULL;
}

/* Walks to the mark, or to the end marker. */
static const char *walk(const uint8_t *header, size_t length, place *p)
{
    size_t limit = (size_t)MIN(p->cluster_size, MIN(length, QCOW2_MARK_END));
    if (p->backing_offset != 0 && p->backing_offset < limit)
        limit = (size_t)p->backing_offset;
    while (p->end <= limit && limit - p->end >= HEAD) {
        uint32_t type = qcow2_be32(header + p->end),
                 size = qcow2_be32(header + p->end + 4);
        size_t left = limit - p->end - HEAD;
        if (type == 0)
            return size == 0 ? NULL : "the end of its header extensions is not valid";
        if (type == TYPE && (size != BODY || left < BODY || p->body))
            return "its header holds a mark of another kind";
        if (type == TYPE)
            p->body = p->end + HEAD;
        if (size > left)
            break;
        p->end += HEAD + (size_t)qcow2_round_up(size, 8);
    }
    return p->body ? NULL : "its header extensions have no end within 4 KiB";
}

static void find_place(const uint8_t *header, size_t length, place *p)
{
    *p = (place){0};
    p->why = read_fields(header, length, p);
    if (!p->why)
        p->why = walk(header, length, p);
    if (p->why || p->body)
        return;
    uint64_t need = p->end + HEAD + BODY + HEAD + NAME_MAX_LEN;
    if (need > MIN(p->cluster_size, QCOW2_MARK_END))
        p->why = "its header has no room for it";
    else if (p->backing_offset > p->cluster_size || p->backing_length > NAME_MAX_LEN ||
             p->backing_length > p->cluster_size - p->backing_offset)
        p->why = "its header is not valid";
}

static const uint8_t *newest_slot(const uint8_t *body)
{
    uint64_t first = slot_sequence(body), second = slot_sequence(body + SLOT);
    if (first == 0 && second == 0)
        return NULL;
    return first >= second ? body : body + SLOT;
}

void qcow2_mark_find(const uint8_t *header, size_t length, qcow2_mark *ret_mark,
                     const char **ret_why)
{
    place p;
    find_place(header, length, &p);
    *ret_mark = (qcow2_mark){.present = p.body != 0};
    const uint8_t *slot = p.body ? newest_slot(header + p.body) : NULL;
    if (slot && !p.why)
        decode_slot(slot, ret_mark);
    if (ret_why)
        *ret_why = p.why;
}

static int read_start(int fd, uint8_t *header)
{
    return file_read_full(fd, header, QCOW2_MARK_END, 0);
}

int qcow2_mark_read(int fd, qcow2_mark *ret_mark, const char **ret_why)
{
    uint8_t header[QCOW2_MARK_END];
    int error = read_start(fd, header);
    if (!error)
        qcow2_mark_find(header, sizeof header, ret_mark, ret_why);
    return error;
}

/* ---- Writing it ------------------------------------------------------------------------- */

static int write_synced(int fd, const void *bytes, size_t length, uint64_t offset)
{
    int error = file_write_full(fd, bytes, length, offset);
    return error ? error : file_sync(fd);
}

static int update(int fd, const uint8_t *body, uint64_t offset, const qcow2_mark *mark)
{
    uint8_t fresh[SLOT];
    const uint8_t *newest = newest_slot(body);
    uint64_t sequence = newest ? slot_sequence(newest) : 0;
    uint64_t at = newest == body ? SLOT : 0;
    encode_slot(mark, sequence + 1, fresh);
    return write_synced(fd, fresh, sizeof fresh, offset + at);
}

/* The backing file's name, out of the way. */
static int move_name(int fd, const place *p)
{
    uint8_t name[NAME_MAX_LEN];
    uint64_t behind = p->end + HEAD + BODY + HEAD;
    if (p->backing_offset == 0 || p->backing_offset >= behind)
        return 0;
    uint64_t to = qcow2_round_up(MAX(behind, p->backing_offset + p->backing_length), 8);
    if (to + p->backing_length > p->cluster_size)
        return -ENOTSUP;
    int error = file_read_exact(fd, name, p->backing_length, p->backing_offset);
    if (!error)
        error = write_synced(fd, name, p->backing_length, to);
    return error ? error : qcow2_update_backing_offset(fd, to);
}

static int insert(int fd, const place *p, const qcow2_mark *mark)
{
    uint8_t body[BODY + HEAD] = {0}, head[HEAD];
    int error = move_name(fd, p);
    encode_slot(mark, 1, body);
    if (!error)
        error = write_synced(fd, body, sizeof body, p->end + HEAD);
    put32(head, TYPE);
    put32(head + 4, BODY);
    return error ? error : write_synced(fd, head, sizeof head, p->end);
}

int qcow2_mark_write(int fd, const qcow2_mark *mark)
{
    uint8_t header[QCOW2_MARK_END];
    place p;
    int error = read_start(fd, header);
    if (error)
        return error;
    find_place(header, sizeof header, &p);
    if (p.why)
        return -ENOTSUP;
    return p.body ? update(fd, header + p.body, p.body, mark) : insert(fd, &p, mark);
}
