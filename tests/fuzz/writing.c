/*
 * writing.c: a script of operations on a qcow2 image, and a model of what they mean.
 *
 * The model knows a window of the disk: what its bytes are, and which of its sectors cannot
 * be known (an operation on them failed, or they could not be read). Where the image has
 * nothing, a disk below stands in, whose bytes are told by their offset.
 *
 * What must hold depends on the image
 * - Any image: no crash, no hang, and an error where something cannot be done.
 * - An image whose refcounts and copied flags are right before the first write (or that
 *   claimed to be dirty, and was repaired): what was written is read back, also by a reader
 *   that sees the files as a crash would leave them, where a flush came between; refcounts
 *   are never too small on disk, and after a close nothing is leaked that was not before.
 *   Of an image whose refcounts are wrong nothing of this can be asked: two clusters may be
 *   one there.
 */
#include "tests/fuzz/writing.h"
#include "tests/fuzz/audit.h"
#include "tests/fuzz/reading.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME       "image"
#define WINDOW     ((uint64_t)768 << 10)
#define SECTOR     512u
#define PIECE      ((uint64_t)64 << 10)
#define SECTORS    (WINDOW / SECTOR)
#define OP_BYTES   8u
#define AUDITS_MAX 4u
#define GROW_MAX   ((uint64_t)4 << 30)

typedef struct model {
    uint8_t bytes[WINDOW];
    bool unknown[SECTORS];
} model;

typedef struct writer {
    const packed *p;
    image *im;
    uint64_t cluster;
    uint64_t below_size;
    bool trusted; /* refcounts were right */
    bool leaks;   /* some were there before, or an operation failed */
    unsigned audits;
    uint64_t base;    /* of the window */
    model now;        /* what a read gives */
    model on_disk;    /* what a crash leaves: of the last flush, and unknown since */
    uint8_t *scratch; /* WINDOW */
} writer;

typedef struct operation {
    uint64_t offset, length; /* within the window and the disk */
    uint8_t tag;
    uint8_t amount;
} operation;

static int read_below(void *user, void *buf, uint64_t offset, size_t length)
{
    const writer *w = user;
    uint8_t *at = buf;
    while (length > 0) {
        size_t part = MIN(length, SECTOR - offset % SECTOR);
        memset(at, offset < w->below_size ? (int)(offset / SECTOR % 251 + 1) : 0, part);
        at += part;
        offset += part;
        length -= part;
    }
    return 0;
}

/* A sector's part or more, as whoever reads the whole chain does. */
static int read_through(const writer *w, image *im, uint8_t *buf, uint64_t offset,
                        uint64_t length)
{
    while (length > 0) {
        image_extent extent;
        int result = image_map(im, offset, length, &extent);
        if (result == 0 && extent.kind == IMAGE_EXTENT_UNALLOCATED)
            result = read_below((void *)w, buf, offset, (size_t)extent.length);
        else if (result == 0)
            result = image_read(im, buf, offset, (size_t)extent.length);
        if (result < 0)
            return result;
        buf += extent.length;
        offset += extent.length;
        length -= extent.length;
    }
    return 0;
}

/* ---- The model ---- */

/* The window's bytes that the disk has. */
static uint64_t visible(const writer *w)
{
    return w->im->size <= w->base ? 0 : MIN(WINDOW, w->im->size - w->base);
}

static void set_unknown(model *m, uint64_t start, uint64_t length)
{
    for (uint64_t i = start / SECTOR; length && i <= (start + length - 1) / SECTOR; i++)
        m->unknown[i] = true;
}

/* Takes as the truth what a read gives. */
static void learn(writer *w, uint64_t start, uint64_t length)
{
    uint64_t at = start - start % SECTOR, end = MIN(start + length, visible(w));
    while (at < end) {
        uint64_t part = MIN(PIECE, visible(w) - at);
        int result = read_through(w, w->im, w->now.bytes + at, w->base + at, part);
        if (result < 0) { /* find out where */
            part = MIN(SECTOR, part);
            result = read_through(w, w->im, w->now.bytes + at, w->base + at, part);
        }
        for (uint64_t i = at; i < at + part; i += SECTOR)
            w->now.unknown[i / SECTOR] = result < 0;
        at += part;
    }
}

static void tell_difference(const writer *w, const model *m, uint64_t at,
                            const char *when)
{
    uint64_t i = 0;
    while (w->scratch[i] == m->bytes[at + i])
        i++;
    must(false, "%s: %u, not %u, at %" PRIu64, when, w->scratch[i], m->bytes[at + i],
         w->base + at + i);
}

static void compare(const writer *w, image *im, const model *m, uint64_t start,
                    uint64_t length, const char *when)
{
    uint64_t end = start + length;
    for (uint64_t at = start, part; at < end; at += part) {
        bool unknown = m->unknown[at / SECTOR];
        part = MIN(SECTOR - at % SECTOR, end - at);
        while (at + part < end && part < PIECE &&
               m->unknown[(at + part) / SECTOR] == unknown)
            part += MIN(SECTOR, end - at - part);
        if (unknown)
            continue;
        int result = read_through(w, im, w->scratch, w->base + at, part);
        must(result == 0, "%s: error %d from %" PRIu64, when, result, w->base + at);
        if (memcmp(w->scratch, m->bytes + at, part) != 0)
            tell_difference(w, m, at, when);
    }
}

/* An operation succeeded: its range is full of `byte`. */
static void set_bytes(writer *w, const operation *op, uint8_t byte)
{
    uint64_t start = op->offset - w->base;
    memset(w->now.bytes + start, byte, op->length);
    for (uint64_t i = (start + SECTOR - 1) / SECTOR;
         (i + 1) * SECTOR <= start + op->length; i++)
        w->now.unknown[i] = false;
    set_unknown(&w->on_disk, start, op->length);
    if (w->trusted)
        compare(w, w->im, &w->now, start, op->length, "after a write");
}

static void failed(writer *w, const operation *op)
{
    uint64_t start = op->offset - w->base;
    w->leaks = true;
    set_unknown(&w->on_disk, start, op->length);
    learn(w, start, op->length);
}

/* ---- Operations ---- */

static void check_audit(writer *w, const char *when)
{
    if (!w->trusted || w->audits++ >= AUDITS_MAX)
        return;
    audit a = audit_file(w->p->fd);
    must(a.dirty || a.verdict != AUDIT_BAD, "%s: %s at 0x%" PRIx64, when, a.reason, a.at);
    must(!a.corrupt, "%s: marked corrupt", when);
}

static void do_write(writer *w, const operation *op)
{
    memset(w->scratch, op->tag, op->length);
    if (image_write(w->im, w->scratch, op->offset, op->length) == 0)
        set_bytes(w, op, op->tag);
    else
        failed(w, op);
}

/* The driver is told that the host file took nothing. */
static void do_broken_write(writer *w, const operation *op)
{
    io_list list = {0};
    image_change *change;
    memset(w->scratch, op->tag, op->length);
    int result =
        image_prepare_write(w->im, w->scratch, op->offset, op->length, 0, &list, &change);
    if (result == 0)
        must(image_finish_write(w->im, change, -EIO) < 0, "a broken write succeeded");
    io_list_free(&list);
    failed(w, op);
}

static void do_zeroes(writer *w, const operation *op, bool discard)
{
    int result = discard ? image_discard(w->im, op->offset, op->length)
                         : image_write_zeroes(w->im, op->offset, op->length);
    if (result == 0)
        set_bytes(w, op, 0);
    else
        failed(w, op);
}

static void do_flush(writer *w)
{
    if (image_flush(w->im) == 0)
        w->on_disk = w->now;
    else
        w->leaks = true;
    check_audit(w, "after a flush");
}

static void do_resize(writer *w, const operation *op)
{
    uint64_t before = w->im->size, seen = visible(w), size;
    switch (op->tag % 4) {
    case 0:
        size = before + op->amount;
        break;
    case 1:
        size = before - MIN(before, op->amount * 64u);
        break;
    case 2:
        size = op->offset;
        break;
    default:
        size = before + op->amount * w->cluster * 3;
    }
    if (size > before + GROW_MAX || image_resize(w->im, size) < 0)
        return;
    must(w->im->size == size, "the size is another");
    if (visible(w) > seen) {
        memset(w->now.bytes + seen, 0, visible(w) - seen);
        for (uint64_t i = (seen + SECTOR - 1) / SECTOR; i < SECTORS; i++)
            w->now.unknown[i] = false;
    }
    uint64_t kept = MIN(seen, visible(w)); /* what was cut off and is back is unknown */
    set_unknown(&w->on_disk, kept, WINDOW - kept);
}

/* FUZZ_TRACE=1 tells what is done: for whoever looks at one input. */
static void trace(const writer *w, unsigned kind, const operation *op)
{
    static const char *const names[16] = {
        [6] = "zeroes", [7] = "discard", [8] = "discard", [9] = "flush",
        [10] = "flush", [11] = "resize", [12] = "broken", [13] = "audit",
    };
    fprintf(stderr, "%s %" PRIu64 "+%" PRIu64 " tag %u amount %u size %" PRIu64 "\n",
            names[kind] ? names[kind] : "write", op->offset, op->length, op->tag,
            op->amount, w->im->size);
}

static void do_operation(writer *w, unsigned kind, const operation *op)
{
    if (getenv("FUZZ_TRACE"))
        trace(w, kind % 16, op);
    switch (kind % 16) {
    case 6:
        do_zeroes(w, op, false);
        break;
    case 7:
    case 8:
        do_zeroes(w, op, true);
        break;
    case 9:
    case 10:
        do_flush(w);
        break;
    case 11:
        do_resize(w, op);
        break;
    case 12:
        do_broken_write(w, op);
        break;
    case 13:
        check_audit(w, "between writes");
        break;
    default:
        do_write(w, op);
    }
}

static uint64_t unit_of(const writer *w, unsigned which)
{
    const uint64_t units[] = {1, SECTOR, 4096, w->cluster};
    return units[which % 4];
}

/* Eight bytes: kind, tag, three of the offset, two of the length, one of their units. */
static void do_script(writer *w)
{
    for (size_t i = 0; i + OP_BYTES <= w->p->script_length; i += OP_BYTES) {
        const uint8_t *at = w->p->script + i;
        uint64_t room = visible(w), unit = unit_of(w, at[7]);
        if (room == 0)
            return;
        uint64_t offset = ((uint64_t)at[2] << 16 | at[3] << 8 | at[4]) * unit % room;
        uint64_t length = ((at[5] << 8 | at[6]) % 600u + 1) * unit_of(w, at[7] >> 2);
        length = MIN(MIN(length, 4 * w->cluster + 1000), room - offset);
        operation op = {w->base + offset, length, at[1], at[6]};
        do_operation(w, at[0], &op);
    }
}

/* ---- Opening and closing ---- */

static int data_fd_of(const packed *p, const qcow2_header *header)
{
    return header->incompatible & QCOW2_INCOMPAT_DATA_FILE ? dup(p->data_fd) : -1;
}

image *writing_reopen(const packed *p, GError **error)
{
    qcow2_header header;
    qcow2_check check;
    image *im = NULL;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    uint64_t data_size = (uint64_t)lseek(p->data_fd, 0, SEEK_END);
    if (!qcow2_header_read(p->fd, NAME, &header, error))
        return NULL;
    if (qcow2_check_tables(p->fd, data_size, &header, NAME, &budget, &check, error))
        im = qcow2_open(dup(p->fd), data_fd_of(p, &header), &header, NAME, error);
    qcow2_header_clear(&header);
    return im;
}

static void look_again(writer *w, const model *m, uint64_t length, const char *when)
{
    g_autoptr(GError) error = NULL;
    if (!w->trusted)
        return;
    image *im = writing_reopen(w->p, &error);
    must(im, "%s: %s", when, error->message);
    if (im->size >= w->base)
        compare(w, im, m, 0, MIN(length, im->size - w->base), when);
    image_close(im);
}

static void begin(writer *w, const qcow2_header *header, audit before)
{
    g_autoptr(GError) error = NULL;
    if (!image_begin_writing(w->im, &error)) {
        reading_error(error);
        return;
    }
    audit a = audit_file(w->p->fd);
    if (header->incompatible & QCOW2_INCOMPAT_DIRTY)
        must(a.verdict == AUDIT_CLEAN || a.verdict == AUDIT_UNKNOWN,
             "after a repair: %s at 0x%" PRIx64, a.reason, a.at);
    else
        must(a.verdict != AUDIT_BAD || before.verdict == AUDIT_BAD,
             "before the first write: %s", a.reason);
    w->trusted = a.verdict == AUDIT_CLEAN || a.verdict == AUDIT_LEAKS;
    w->leaks = a.verdict == AUDIT_LEAKS;
    w->base = w->p->script_length % 3 && w->im->size > WINDOW ? w->im->size - WINDOW : 0;
    learn(w, 0, WINDOW);
    w->on_disk = w->now;
    do_script(w);
    look_again(w, &w->on_disk, visible(w), "as after a crash");
}

static void check_closed(writer *w, uint64_t length)
{
    audit a = audit_file(w->p->fd);
    if (!w->trusted || a.verdict == AUDIT_UNKNOWN)
        return;
    must(a.verdict != AUDIT_BAD && !a.dirty && !a.corrupt,
         "after the close: %s at 0x%" PRIx64, a.reason, a.at);
    must(a.verdict == AUDIT_CLEAN || w->leaks, "after the close: %s at 0x%" PRIx64,
         a.reason, a.at);
    look_again(w, &w->now, length, "after the close");
}

void writing_run(const packed *p, const qcow2_header *header)
{
    g_autoptr(GError) error = NULL;
    if (qcow2_write_refusal(header))
        return;
    audit before = audit_file(p->fd);
    image *im =
        qcow2_open_writable(dup(p->fd), data_fd_of(p, header), header, NAME, &error);
    if (!im) {
        reading_error(error);
        return;
    }
    writer *w = g_new0(writer, 1);
    w->p = p;
    w->im = im;
    w->cluster = (uint64_t)1 << header->cluster_bits;
    w->scratch = g_malloc(WINDOW);
    if (header->backing_file) {
        w->below_size = header->size - MIN(header->size, 1024);
        qcow2_set_backing(im, read_below, w, w->below_size);
    }
    begin(w, header, before);
    uint64_t length = visible(w);
    image_close(im);
    check_closed(w, length);
    g_free(w->scratch);
    g_free(w);
}
