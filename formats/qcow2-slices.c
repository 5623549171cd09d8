/*
 * qcow2-slices.c: slices of L2 tables and refcount blocks in memory, as they are on disk
 * (big-endian), with those that are newer than the disk.
 *
 * State of a slice        meaning                                 leaves it by
 *   clean                 equals the disk; may be dropped         dirty
 *   dirty                 newer than the disk, must be written    take
 *   clean, writing > 0    a copy of it is on its way to disk      taken: clean; failed: dirty
 *   dirty, writing > 0    changed again since that copy           taken: dirty
 *
 * Invariants, under the image's lock, which every function here needs
 * - An offset is in at most one slice. What is dirty or being written is never dropped: a
 *   reader could else load from the disk what is older than what was in memory.
 * - `generation` changes whenever the disk changed under an offset that may not be cached,
 *   so whoever read without the lock can tell that what it has may be old (fill).
 * - A slice stays where it is until the lock is let go or the next get or fill.
 * - There are more than `max` slices only where so many were dirty, and until the next
 *   batch has ended; who makes slices dirty has them written in time (qcow2-writer.c).
 */
#include "formats/qcow2-internal.h"

struct qcow2_slices {
    int fd;
    size_t bytes;
    size_t max;
    GPtrArray *all; /* of qcow2_slice */
    guint hand;
    size_t n_dirty;
    unsigned bucket_bits;
    qcow2_slice **buckets;
    uint64_t generation;
};

qcow2_slices *qcow2_slices_new(int fd, size_t slice_bytes, size_t max)
{
    qcow2_slices *s = g_new0(qcow2_slices, 1);
    s->fd = fd;
    s->bytes = slice_bytes;
    s->max = max;
    s->all = g_ptr_array_new_with_free_func(g_free);
    s->bucket_bits = 4;
    while (((size_t)1 << s->bucket_bits) < max)
        s->bucket_bits++;
    s->buckets = g_new0(qcow2_slice *, (size_t)1 << s->bucket_bits);
    return s;
}

void qcow2_slices_free(qcow2_slices *s)
{
    if (!s)
        return;
    g_ptr_array_unref(s->all);
    g_free(s->buckets);
    g_free(s);
}

static qcow2_slice **bucket_of(const qcow2_slices *s, uint64_t offset)
{
    return &s->buckets[offset * 0x9e3779b97f4a7c15u >> (64 - s->bucket_bits)];
}

qcow2_slice *qcow2_slices_find(const qcow2_slices *s, uint64_t offset)
{
    qcow2_slice *slice = *bucket_of(s, offset);
    while (slice && slice->offset != offset)
        slice = slice->next;
    if (slice)
        slice->recent = true;
    return slice;
}

static void unhash(qcow2_slices *s, qcow2_slice *slice)
{
    qcow2_slice **link = bucket_of(s, slice->offset);
    while (*link != slice)
        link = &(*link)->next;
    *link = slice->next;
}

/* A slice that nothing depends on, taken out of the hash: two turns of the clock hand, for
 * the first may only clear the marks. NULL: there is none. */
static qcow2_slice *evict(qcow2_slices *s)
{
    for (guint i = 0; i < 2 * s->all->len; i++) {
        qcow2_slice *slice = s->all->pdata[s->hand];
        s->hand = (s->hand + 1) % s->all->len;
        if (slice->dirty || slice->writing > 0)
            continue;
        if (!slice->recent) {
            unhash(s, slice);
            return slice;
        }
        slice->recent = false;
    }
    return NULL;
}

static qcow2_slice *add(qcow2_slices *s, uint64_t offset, const void *bytes)
{
    qcow2_slice *slice = s->all->len < s->max ? NULL : evict(s);
    if (!slice) {
        slice = g_malloc0(sizeof *slice + s->bytes);
        g_ptr_array_add(s->all, slice);
    }
    memcpy(slice->bytes, bytes, s->bytes);
    slice->offset = offset;
    slice->recent = true;
    slice->next = *bucket_of(s, offset);
    *bucket_of(s, offset) = slice;
    return slice;
}

int qcow2_slices_get(qcow2_slices *s, uint64_t offset, qcow2_slice **ret_slice)
{
    uint8_t bytes[QCOW2_SLICE_BYTES_MAX];
    *ret_slice = qcow2_slices_find(s, offset);
    if (*ret_slice)
        return 0;
    int error = file_read_exact(s->fd, bytes, s->bytes, offset);
    if (!error)
        *ret_slice = add(s, offset, bytes);
    return error;
}

uint64_t qcow2_slices_generation(const qcow2_slices *s)
{
    return s->generation;
}

void qcow2_slices_fill(qcow2_slices *s, uint64_t offset, const void *bytes,
                       uint64_t generation)
{
    if (s->generation == generation && !qcow2_slices_find(s, offset))
        add(s, offset, bytes);
}

void qcow2_slices_replaced(qcow2_slices *s, uint64_t offset, uint64_t length)
{
    s->generation++;
    for (uint64_t at = offset; at < offset + length; at += s->bytes) {
        qcow2_slice *slice = qcow2_slices_find(s, at);
        if (!slice)
            continue;
        g_assert(slice->writing == 0);
        unhash(s, slice);
        s->n_dirty -= slice->dirty;
        g_ptr_array_remove_fast(s->all, slice);
        s->hand = 0;
    }
}

void qcow2_slices_mark(qcow2_slices *s, qcow2_slice *slice, qcow2_slice_kind kind,
                       uint64_t table)
{
    s->n_dirty += !slice->dirty;
    slice->dirty = true;
    slice->kind = kind;
    slice->table = table;
}

size_t qcow2_slices_dirty(const qcow2_slices *s)
{
    return s->n_dirty;
}

void qcow2_slices_set_max(qcow2_slices *s, size_t max)
{
    s->max = MAX(s->max, max);
    while (((size_t)1 << s->bucket_bits) < s->max)
        s->bucket_bits++;
    g_free(s->buckets);
    s->buckets = g_new0(qcow2_slice *, (size_t)1 << s->bucket_bits);
    for (guint i = 0; i < s->all->len; i++) {
        qcow2_slice *slice = s->all->pdata[i];
        slice->next = *bucket_of(s, slice->offset);
        *bucket_of(s, slice->offset) = slice;
    }
}

/* ---- Batches -------------------------------------------------------------------------- */

struct qcow2_batch {
    size_t bytes; /* of each copy */
    size_t count;
    size_t capacity;
    qcow2_slice **slices;
    uint8_t *copies; /* in the order of the slices */
};

qcow2_batch *qcow2_batch_new(const qcow2_slices *s)
{
    qcow2_batch *batch = g_new0(qcow2_batch, 1);
    batch->bytes = s->bytes;
    return batch;
}

static int compare_slices(const void *a, const void *b)
{
    const qcow2_slice *left = *(qcow2_slice *const *)a;
    const qcow2_slice *right = *(qcow2_slice *const *)b;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

void qcow2_batch_take(qcow2_batch *batch, qcow2_slices *s, qcow2_batch_filter *filter,
                      const void *user)
{
    for (guint i = 0; i < s->all->len && s->n_dirty > 0; i++) {
        qcow2_slice *slice = s->all->pdata[i];
        if (!slice->dirty || !filter(slice, user))
            continue;
        if (batch->count == batch->capacity) {
            batch->capacity = MAX(16, 2 * batch->capacity);
            batch->slices = g_renew(qcow2_slice *, batch->slices, batch->capacity);
        }
        batch->slices[batch->count++] = slice;
        slice->dirty = false;
        slice->writing++;
        s->n_dirty--;
    }
    if (batch->count == 0)
        return;
    qsort(batch->slices, batch->count, sizeof(qcow2_slice *), compare_slices);
    batch->copies = g_realloc(batch->copies, batch->count * batch->bytes);
    for (size_t i = 0; i < batch->count; i++)
        memcpy(batch->copies + i * batch->bytes, batch->slices[i]->bytes, batch->bytes);
}

/* An offset does not change while writing > 0, so no lock is needed. */
int qcow2_batch_write(const qcow2_batch *batch, int fd)
{
    int error = 0;
    for (size_t i = 0, run; i < batch->count && !error; i += run) {
        uint64_t offset = batch->slices[i]->offset;
        for (run = 1; i + run < batch->count; run++)
            if (batch->slices[i + run]->offset != offset + run * batch->bytes)
                break;
        error = file_write_full(fd, batch->copies + i * batch->bytes, run * batch->bytes,
                                offset);
    }
    return error;
}

/* What is clean goes until there are as many as there may be. */
static void shrink(qcow2_slices *s)
{
    for (guint i = s->all->len; i-- > 0 && s->all->len > s->max;) {
        qcow2_slice *slice = s->all->pdata[i];
        if (slice->dirty || slice->writing > 0)
            continue;
        unhash(s, slice);
        g_ptr_array_remove_index_fast(s->all, i);
        s->hand = 0;
    }
}

void qcow2_batch_end(qcow2_batch *batch, qcow2_slices *s, bool stable)
{
    s->generation += batch->count > 0;
    for (size_t i = 0; i < batch->count; i++) {
        qcow2_slice *slice = batch->slices[i];
        slice->writing--;
        if (!stable && !slice->dirty) {
            slice->dirty = true;
            s->n_dirty++;
        }
    }
    shrink(s);
    g_free(batch->slices);
    g_free(batch->copies);
    g_free(batch);
}
