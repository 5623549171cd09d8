/*
 * qcow2-resize.c: growing and shrinking. Nothing else is under way (image.h).
 *
 * The size in the header is written last, after a sync of all that it depends on, so a crash
 * leaves the old size; what was cut off or cleared by then was beyond what the caller wanted
 * to keep, or beyond the old end.
 * - Grown space reads as zeroes, whatever an earlier, larger size, a virtual machine's state
 *   or a longer file below has left there.
 * - A larger L1 table is written to a new place (I6 of qcow2-alloc.c).
 * - What is cut off is freed, and its L2 tables; the rest of the last cluster is cleared,
 *   for whoever grows the image again.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

static uint64_t l1_needed(const qcow2_writer *w, uint64_t size)
{
    qcow2_layout layout = w->map->layout;
    layout.size = size;
    return qcow2_layout_l1_needed(&layout);
}

/* The end of the cluster in which the byte before `size` lies. */
static uint64_t cluster_end(const qcow2_writer *w, uint64_t size)
{
    return qcow2_round_up(size, w->map->layout.cluster_size);
}

static void set_size(qcow2_writer *w, uint64_t size)
{
    pthread_mutex_lock(&w->map->lock);
    w->map->layout.size = size;
    pthread_mutex_unlock(&w->map->lock);
}

/* Everything before it is stable. */
static int publish_size(qcow2_writer *w, uint64_t size)
{
    int error = qcow2_writer_flush(w);
    if (error)
        return error;
    pthread_mutex_lock(&w->map->lock);
    error = qcow2_update_size(w->fd, size);
    if (error)
        error = qcow2_writer_unsure(w, error);
    else
        w->header.size = size;
    pthread_mutex_unlock(&w->map->lock);
    return error;
}

/* ---- The L1 table --------------------------------------------------------------------------- */

static int allocate_l1(qcow2_writer *w, uint64_t clusters, uint64_t *ret_cluster)
{
    int error;
    do {
        error = qcow2_writer_enter(w);
        if (error)
            return error;
        error = qcow2_alloc_table(w, clusters, ret_cluster);
        pthread_mutex_unlock(&w->map->lock);
    } while (error && (error = qcow2_alloc_retry(w, error)) == 0);
    return error;
}

static void adopt_l1(qcow2_writer *w, uint64_t offset, uint64_t entries)
{
    qcow2_map *map = w->map;
    unsigned bits = map->layout.cluster_bits;
    uint64_t old_bytes = qcow2_round_up(map->l1_entries * 8, map->layout.cluster_size);
    qcow2_run old = {w->header.l1_offset >> bits, old_bytes >> bits};
    map->l1 = g_renew(uint64_t, map->l1, entries);
    memset(map->l1 + map->l1_entries, 0, (entries - map->l1_entries) * 8);
    map->l1_entries = entries;
    qcow2_ranges_replace(&map->ranges, w->header.l1_offset, offset,
                         qcow2_round_up(entries * 8, map->layout.cluster_size),
                         "the L1 table");
    w->header.l1_offset = offset;
    w->header.l1_entries = (uint32_t)entries;
    qcow2_alloc_undo(w, old);
}

/* Nothing of L1 is dirty, and its new place is counted on disk. */
static int move_l1(qcow2_writer *w, uint64_t cluster, uint64_t entries)
{
    uint64_t offset = cluster << w->map->layout.cluster_bits;
    uint64_t bytes = qcow2_round_up(entries * 8, w->map->layout.cluster_size);
    g_autofree uint64_t *words = g_malloc0(bytes);
    for (uint64_t i = 0; i < w->map->l1_entries; i++)
        words[i] = htobe64(w->map->l1[i]);
    int error = qcow2_writer_note(w, file_write_full(w->fd, words, bytes, offset));
    if (!error)
        error = qcow2_writer_flush(w);
    pthread_mutex_lock(&w->map->lock);
    if (!error) {
        error = qcow2_update_l1(w->fd, w->header.size, (uint32_t)entries, offset);
        if (error)
            error = qcow2_writer_unsure(w, error);
    }
    if (error)
        qcow2_alloc_undo(w, (qcow2_run){cluster, bytes >> w->map->layout.cluster_bits});
    else
        adopt_l1(w, offset, entries);
    pthread_mutex_unlock(&w->map->lock);
    return error;
}

static int grow_l1(qcow2_writer *w, uint64_t needed)
{
    uint64_t bytes = qcow2_round_up(needed * 8, w->map->layout.cluster_size);
    uint64_t cluster;
    int error = qcow2_writer_flush(w);
    if (!error)
        error = allocate_l1(w, bytes >> w->map->layout.cluster_bits, &cluster);
    return error ? error : move_l1(w, cluster, MIN(bytes, QCOW2_L1_BYTES_MAX) / 8);
}

/* ---- Growing -------------------------------------------------------------------------------- */

static int clear_grown(qcow2_writer *w, uint64_t old, uint64_t size)
{
    uint64_t from = MIN(cluster_end(w, old), size);
    int error = qcow2_zero_data_file(w, old, from, QCOW2_ZERO_DISCARD);
    if (!error && from > old)
        error = qcow2_zero_part(w, old, from - old);
    if (!error && from < size)
        error = qcow2_zero_range(w, from, size - from, QCOW2_ZERO_DISCARD);
    return error;
}

static int grow(qcow2_writer *w, uint64_t size)
{
    uint64_t old = w->map->layout.size, needed = l1_needed(w, size);
    int error = 0;
    if (needed > w->map->l1_entries)
        error = grow_l1(w, needed);
    if (error)
        return error;
    set_size(w, size);
    if (w->external && !w->data_fd_is_device)
        error = qcow2_alloc_extend_data(w, size);
    if (!error)
        error = clear_grown(w, old, size);
    if (!error)
        error = publish_size(w, size);
    if (error)
        set_size(w, old);
    return error;
}

/* ---- Shrinking ------------------------------------------------------------------------------ */

/* Nothing is dirty, and no entry of these tables names anything. */
static void drop_l2_tables(qcow2_writer *w, uint64_t first, uint64_t end)
{
    qcow2_map *map = w->map;
    for (uint64_t i = first; i < end; i++) {
        uint64_t table = map->l1[i] & QCOW2_OFFSET_MASK;
        if (table == 0)
            continue;
        qcow2_slices_replaced(map->slices, table, map->layout.cluster_size);
        qcow2_overlap_remove(map->overlap, table);
        map->l1[i] = 0;
        g_array_append_val(w->l1_dirty, i);
        qcow2_alloc_unlink(w, table, map->layout.cluster_size, QCOW2_UNLINK_OWN);
    }
}

/* Up to the end of the last table, which may name clusters behind the old size too. */
static int clear_cut(qcow2_writer *w, uint64_t old, uint64_t size)
{
    const qcow2_layout *layout = &w->map->layout;
    uint64_t from = cluster_end(w, size);
    uint64_t end = l1_needed(w, old) << (layout->l2_bits + layout->cluster_bits);
    uint64_t part = MIN(from, old) - size;
    int error = part ? qcow2_zero_part(w, size, part) : 0;
    if (!error && from < end)
        error = qcow2_zero_range(w, from, end - from, QCOW2_ZERO_DROP);
    if (!error)
        error = qcow2_writer_flush(w);
    return error;
}

static int shrink(qcow2_writer *w, uint64_t size)
{
    uint64_t old = w->map->layout.size;
    int error = clear_cut(w, old, size);
    if (!error)
        error = qcow2_writer_enter(w);
    if (error)
        return error;
    drop_l2_tables(w, l1_needed(w, size), l1_needed(w, old));
    pthread_mutex_unlock(&w->map->lock);
    error = publish_size(w, size);
    if (error)
        return error;
    set_size(w, size);
    if (!w->external || w->data_fd_is_device || w->map->layout.data_size <= size)
        return 0;
    /* The image says already that the disk is smaller: a data file that stays as long as it
     * was is no failure of that. */
    if (qcow2_writer_note(w, file_resize(w->data_fd, size)) == 0)
        w->map->layout.data_size = size;
    return 0;
}

int qcow2_resize(qcow2_writer *w, uint64_t size)
{
    if (l1_needed(w, size) > QCOW2_L1_BYTES_MAX / 8)
        return -EFBIG;
    /* Version 2 snapshots do not tell their disk's size: it is taken to be this one. */
    if (w->header.snapshot_count > 0 && w->header.version < 3)
        return -ENOTSUP;
    if (size == w->map->layout.size)
        return 0;
    return size > w->map->layout.size ? grow(w, size) : shrink(w, size);
}
