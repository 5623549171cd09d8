/*
 * qcow2-grow.c: a larger refcount table, where the old one reaches no further. All of it
 * happens at one stretch, under both locks: it is rare, and it changes where everything else
 * is counted. The order is I6 of qcow2-alloc.c.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

static uint64_t cluster_size(const qcow2_writer *w)
{
    return w->map->layout.cluster_size;
}

static uint64_t offset_of(const qcow2_writer *w, uint64_t cluster)
{
    return cluster << w->map->layout.cluster_bits;
}

static bool is_refcount(const qcow2_slice *slice, const void *user)
{
    (void)user;
    return slice->kind == QCOW2_SLICE_REFCOUNT;
}

/* All refcounts as they are in memory; the caller syncs. */
static int write_refcounts(qcow2_writer *w)
{
    qcow2_batch *batch = qcow2_batch_new(w->map->slices);
    qcow2_batch_take(batch, w->map->slices, is_refcount, NULL);
    int error = qcow2_batch_write(batch, w->fd);
    qcow2_batch_end(batch, w->map->slices, !error);
    return error;
}

/* A larger refcount table and the blocks that count it, behind everything that the old one
 * reaches to: all of that is free, because nothing ever counted it. */
typedef struct larger_table {
    uint64_t first;   /* cluster: blocks, then the table */
    uint64_t blocks;  /* clusters */
    uint64_t entries; /* of the table */
    uint64_t clusters;
    uint64_t *words; /* host order */
} larger_table;

static int plan_larger_table(const qcow2_writer *w, larger_table *t)
{
    const qcow2_refcounts *r = &w->refcounts;
    unsigned entry_bits = w->map->layout.cluster_bits - 3;
    uint64_t wanted =
        MIN(r->entries + r->entries / 2, QCOW2_REFCOUNT_TABLE_BYTES_MAX / 8);
    t->first = r->entries << r->block_bits;
    t->blocks = 1;
    for (;;) {
        uint64_t entries = MAX(wanted, r->entries + t->blocks + 1);
        t->entries = qcow2_round_up(entries, (uint64_t)1 << entry_bits);
        t->clusters = t->entries >> entry_bits;
        uint64_t counted = t->blocks << r->block_bits;
        if (counted >= t->blocks + t->clusters)
            break;
        t->blocks++;
    }
    return t->clusters * cluster_size(w) > QCOW2_REFCOUNT_TABLE_BYTES_MAX ? -EFBIG : 0;
}

static int write_larger_table(qcow2_writer *w, const larger_table *t)
{
    const qcow2_refcounts *r = &w->refcounts;
    uint64_t used = t->blocks + t->clusters;
    g_autofree uint8_t *blocks = g_malloc0(t->blocks * cluster_size(w));
    g_autofree uint64_t *words = g_new(uint64_t, t->entries);
    for (uint64_t i = 0; i < used; i++)
        qcow2_refword_set(blocks, i, r->order, 1);
    for (uint64_t i = 0; i < t->entries; i++)
        words[i] = htobe64(t->words[i]);
    int error = qcow2_alloc_extend(w, offset_of(w, t->first + used));
    for (uint64_t i = 0; i < used && !error; i++)
        error = qcow2_alloc_check_free(w, t->first + i);
    if (!error)
        error = write_refcounts(w);
    if (!error)
        error = file_write_full(w->fd, blocks, t->blocks * cluster_size(w),
                                offset_of(w, t->first));
    if (!error)
        error = file_write_full(w->fd, words, t->entries * 8,
                                offset_of(w, t->first + t->blocks));
    if (error)
        return qcow2_writer_note(w, error);
    error = file_sync(w->fd); /* I6 */
    if (!error)
        error = qcow2_update_refcount_table(w->fd, offset_of(w, t->first + t->blocks),
                                            (uint32_t)t->clusters);
    return error ? qcow2_writer_unsure(w, error) : 0;
}

/* The header names the new table now. */
static void adopt_larger_table(qcow2_writer *w, larger_table *t)
{
    qcow2_refcounts *r = &w->refcounts;
    uint64_t used = t->blocks + t->clusters;
    qcow2_run old = {r->offset >> w->map->layout.cluster_bits,
                     w->header.refcount_table_clusters};
    qcow2_slices_replaced(w->map->slices, offset_of(w, t->first),
                          t->blocks * cluster_size(w));
    for (uint64_t i = 0; i < t->blocks; i++)
        qcow2_overlap_add(w->map->overlap, offset_of(w, t->first + i),
                          QCOW2_TABLE_REFCOUNT);
    g_free(r->table);
    r->table = g_steal_pointer(&t->words);
    r->entries = t->entries;
    r->offset = offset_of(w, t->first + t->blocks);
    g_array_set_size(r->new_blocks, 0);
    w->header.refcount_table_offset = r->offset;
    w->header.refcount_table_clusters = (uint32_t)t->clusters;
    w->fresh_from = MAX(w->fresh_from, t->first + used);
    qcow2_ranges_replace(&w->map->ranges, offset_of(w, old.cluster), r->offset,
                         t->clusters * cluster_size(w), "the refcount table");
    qcow2_alloc_undo(w, old);
}

static int grow_table(qcow2_writer *w)
{
    larger_table t;
    int error = qcow2_writer_check(w);
    if (!error)
        error = plan_larger_table(w, &t);
    if (error)
        return error;
    t.words = g_new0(uint64_t, t.entries);
    memcpy(t.words, w->refcounts.table, w->refcounts.entries * 8);
    for (uint64_t i = 0; i < t.blocks; i++)
        t.words[w->refcounts.entries + i] = offset_of(w, t.first + i);
    error = write_larger_table(w, &t);
    if (!error)
        adopt_larger_table(w, &t);
    g_free(t.words);
    return error;
}

/* Not beside a flush, whose copies of slices would be older than what is written here. */
int qcow2_alloc_grow(qcow2_writer *w)
{
    pthread_mutex_lock(&w->flush_lock);
    pthread_mutex_lock(&w->map->lock);
    int error = grow_table(w);
    pthread_mutex_unlock(&w->map->lock);
    pthread_mutex_unlock(&w->flush_lock);
    return error;
}
