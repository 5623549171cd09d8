/*
 * qcow2-copied.c: the flags in the active L1 and L2 tables that say "refcount 1", made to
 * agree with refcounts that were counted anew.
 *
 * Invariants
 * - Nothing but bit 63 of an entry changes, and only words that change are written, with
 *   what lies between them. A crash leaves some flags corrected and others not.
 * - A cluster of which the caller cannot tell keeps its flag.
 */
#include "formats/file.h"
#include "formats/qcow2-internal.h"

#define PIECE_WORDS 8192u

/* A piece of a table in host order; words [from, to) were changed. */
typedef struct piece {
    uint64_t words[PIECE_WORDS];
    uint64_t offset;
    size_t from, to;
} piece;

typedef struct corrector {
    qcow2_references *references;
    const qcow2_layout *layout;
    int fd;
    qcow2_counted *counted;
    const void *user;
    piece l1, l2;
    GError **error;
} corrector;

static bool failed(const corrector *c, const char *what, int result)
{
    return qcow2_fail(c->error, IMAGE_ERROR_IO, c->references->filename,
                      "cannot %s a table: %s", what, g_strerror(-result));
}

static bool piece_read(const corrector *c, piece *p, uint64_t offset, size_t count)
{
    p->offset = offset;
    p->from = p->to = 0;
    if (!qcow2_references_charge(c->references, count * 8, c->error))
        return false;
    int result = qcow2_words_read(c->fd, offset, p->words, count);
    return result == 0 || failed(c, "read", result);
}

static void piece_put(piece *p, size_t index, uint64_t word)
{
    if (p->words[index] == word)
        return;
    p->words[index] = word;
    p->from = p->to ? p->from : index;
    p->to = index + 1;
}

/* Changes it to the order of the disk. */
static bool piece_write(const corrector *c, piece *p)
{
    if (p->to == 0)
        return true;
    for (size_t i = p->from; i < p->to; i++)
        p->words[i] = htobe64(p->words[i]);
    int result = file_write_full(c->fd, p->words + p->from, (p->to - p->from) * 8,
                                 p->offset + p->from * 8);
    return result == 0 || failed(c, "write", result);
}

static uint64_t flagged(uint64_t word, bool copied)
{
    return copied ? word | QCOW2_FLAG_COPIED : word & ~QCOW2_FLAG_COPIED;
}

/* In a data file there are no refcounts: each of its clusters has one user. */
static void correct_entry(corrector *c, size_t index, uint64_t guest, uint64_t bitmap)
{
    qcow2_entry entry;
    const qcow2_layout *layout = c->layout;
    uint64_t word = c->l2.words[index];
    bool one = true;
    if (!word || qcow2_entry_decode(layout, guest, word, bitmap, &entry))
        return;
    if (entry.compressed || !entry.has_host)
        return;
    if (layout->external ||
        c->counted(c->user, entry.host_offset >> layout->cluster_bits, &one))
        piece_put(&c->l2, index, flagged(word, one));
}

static bool correct_l2(corrector *c, uint64_t table, uint64_t guest)
{
    const qcow2_layout *layout = c->layout;
    size_t step = layout->entry_bits == 4 ? 2 : 1;
    size_t words = (size_t)MIN(PIECE_WORDS, layout->cluster_size / 8);
    for (uint64_t at = 0; at < layout->cluster_size; at += words * 8) {
        if (!piece_read(c, &c->l2, table + at, words))
            return false;
        for (size_t i = 0; i < words; i += step, guest += layout->cluster_size)
            correct_entry(c, i, guest, step == 2 ? c->l2.words[i + 1] : 0);
        if (!piece_write(c, &c->l2))
            return false;
    }
    return true;
}

static bool correct_l1_entry(corrector *c, uint32_t index, size_t at)
{
    const qcow2_layout *layout = c->layout;
    uint64_t word = c->l1.words[at], table = 0;
    bool one;
    if (qcow2_l1_decode(layout, word, &table) || table == 0)
        return true;
    if (c->counted(c->user, table >> layout->cluster_bits, &one))
        piece_put(&c->l1, at, flagged(word, one));
    return correct_l2(c, table,
                      (uint64_t)index << (layout->l2_bits + layout->cluster_bits));
}

static bool correct_l1(corrector *c)
{
    const qcow2_header *header = c->references->header;
    uint32_t n = header->l1_entries;
    for (uint32_t i = 0; i < n; i += PIECE_WORDS) {
        uint32_t count = MIN(PIECE_WORDS, n - i);
        if (!piece_read(c, &c->l1, header->l1_offset + (uint64_t)i * 8, count))
            return false;
        for (uint32_t k = 0; k < count; k++) {
            if (!correct_l1_entry(c, i + k, k))
                return false;
        }
        if (!piece_write(c, &c->l1))
            return false;
    }
    return true;
}

bool qcow2_copied_correct(qcow2_references *references, qcow2_counted *counted,
                          const void *user, GError **error)
{
    g_autofree corrector *c = g_new(corrector, 1);
    c->references = references;
    c->layout = references->layout;
    c->fd = references->fd;
    c->counted = counted;
    c->user = user;
    c->error = error;
    return correct_l1(c);
}
