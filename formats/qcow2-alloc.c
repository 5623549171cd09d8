/*
 * qcow2-alloc.c: which host clusters are given out and taken back, and with qcow2-flush.c
 * the order in which everything reaches the disk.
 *
 * After a crash at any moment the image must open, hold all that a completed flush covered,
 * and have leaked clusters at worst. Sectors of 512 bytes are taken to be written wholly or
 * not at all; all else that was written since the last sync may be there or not, in any
 * combination. What follows from that:
 *
 * I1. An entry of an L2 table that is linked on disk is written only after a sync that
 *     covers the data it points to and the bytes copied around it: else a crash would put
 *     garbage over what the guest had there before.
 * I2. It is written only after a sync that covers the refcounts of what it points to
 *     (lazy refcounts: after the dirty bit, once).
 * I3. An L1 entry is written only after a sync that covers the refcount and all entries of
 *     its L2 table. Until then nobody finds that table, so its own slices need no order.
 *     Where a flush failed while it wrote L1 entries, they may be on disk: until one
 *     succeeds, slices of new tables go with the links. The table below them is on disk by
 *     then, empty or as it was copied.
 * I4. An entry of the refcount table is written only after a sync that covers its block,
 *     and I2 counts a refcount as written only if the table names its block.
 * I5. A refcount is lowered, a cluster given out again or punched out only after a sync
 *     that covers the entry that named it being gone.
 * I6. Where a table moves (L1, refcount table), the header names the new place after a sync
 *     that covers it, in one sector, and the old place is free after a sync of that.
 * I7. No table is written, and no cluster given out, written in place, freed or punched,
 *     where `overlap` or the fixed ranges say that something else lies, nor what COPIED calls
 *     ours and nobody counts; a contradiction sets the corrupt bit and ends all writing. (In a
 *     data file there is nothing else, and nothing is counted.)
 * I8. After a failed sync nothing is written any more: the kernel has marked pages clean
 *     that it did not write, so what the disk holds is not known. That is so of the header's
 *     syncs before the first change too, and of those when a table moves or the size changes.
 *     After a failed write all that it carried is dirty again, and the next flush carries it.
 * I9. While a call on the image's files is abandoned (uring.h) nothing else is begun: it may
 *     still write to a cluster that was given out again, punch or cut off what was written
 *     since, or bring back what a table was before. Whoever sees that a call was abandoned
 *     notes it before the clusters or the words that it was about can be used again, and
 *     after that nothing is written any more, at close neither: what the file holds then is
 *     what a crash might have left.
 *
 * So a flush copies at one moment, under the lock, all that is dirty (the cut, which is
 * consistent in itself), and then needs
 *     1 sync   if nothing was linked since the last: data in place, zero flags, unlinking
 *     2 syncs  if something was: I1 and I2 before it, and itself
 *     3 syncs  if a new refcount block counts some of it (one per 2 GiB at the defaults): I4
 * With an external data file the sync of I1 is one of each file. Less is not possible
 * without a log: each of the orders above is one between sectors of one file.
 *
 * A cluster's life: free (refcount 0 in memory and on disk) -> given out (1 in memory) ->
 * linked in memory -> linked on disk -> unlinked in memory (`unlinked`) -> unlinked on disk
 * -> punched -> free. Readers find clusters through tables in memory, so between unlinking
 * and free nobody starts to read there; who began before has ended when a cluster is free:
 * compressed ones are read under decode_lock; whole clusters of data that are discarded
 * have no readers, by the range locks of the disk; and one that moves while other sectors
 * of it may be being read, and that nobody else counts, is held until the image is closed.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

#define FREE_RUNS_MAX   65536u
#define FREE_RUNS_LOOK  16u
#define SCAN_SLICES     4u /* under the lock */
#define EXTEND_STEP_MIN ((uint64_t)1 << 20)
#define EXTEND_STEP_MAX ((uint64_t)32 << 20)

static uint64_t cluster_size(const qcow2_writer *w)
{
    return w->map->layout.cluster_size;
}

static uint64_t offset_of(const qcow2_writer *w, uint64_t cluster)
{
    return cluster << w->map->layout.cluster_bits;
}

/* ---- Growing the file ------------------------------------------------------------------- */

/* In steps, because it is a call to the kernel; close cuts off what was not used. */
int qcow2_alloc_extend(qcow2_writer *w, uint64_t end)
{
    qcow2_layout *layout = &w->map->layout;
    if (end <= layout->file_size)
        return 0;
    if (w->fd_is_device)
        return -ENOSPC;
    uint64_t step = CLAMP(layout->file_size / 8, EXTEND_STEP_MIN, EXTEND_STEP_MAX);
    uint64_t size = qcow2_round_up(MAX(end, layout->file_size + step), cluster_size(w));
    int error = qcow2_writer_note(w, file_resize(w->fd, size));
    if (error)
        return error;
    layout->file_size = size;
    if (!w->external)
        layout->data_size = size;
    return 0;
}

/* Never past the disk's end: a raw data file is as long as the disk. */
int qcow2_alloc_extend_data(qcow2_writer *w, uint64_t end)
{
    qcow2_layout *layout = &w->map->layout;
    if (!w->external)
        return qcow2_alloc_extend(w, end);
    end = MIN(end, layout->size);
    if (end <= layout->data_size)
        return 0;
    if (w->data_fd_is_device)
        return -ENOSPC;
    int error = qcow2_writer_note(w, file_resize(w->data_fd, end));
    if (!error)
        layout->data_size = end;
    return error;
}

/* ---- Refcount blocks ------------------------------------------------------------------------ */

int qcow2_alloc_check_free(qcow2_writer *w, uint64_t cluster)
{
    return qcow2_overlap_name(w->map, offset_of(w, cluster)) ? qcow2_writer_corrupt(w)
                                                             : 0;
}

/* Makes a free cluster zero on disk, for a table. */
static int clear_cluster(qcow2_writer *w, uint64_t cluster)
{
    int error = qcow2_alloc_check_free(w, cluster);
    if (!error)
        error = qcow2_alloc_extend(w, offset_of(w, cluster + 1));
    if (!error && cluster < w->fresh_from)
        error = qcow2_writer_note(
            w, file_zero(w->fd, offset_of(w, cluster), cluster_size(w)));
    if (!error)
        w->fresh_from = MAX(w->fresh_from, cluster + 1);
    return error;
}

static int add_block(qcow2_writer *w, uint64_t index, uint64_t cluster)
{
    int error = clear_cluster(w, cluster);
    return error ? error : qcow2_refcounts_add_block(&w->refcounts, index, cluster);
}

/* ---- Giving out --------------------------------------------------------------------------- */

/* How many clusters from `run->cluster` on are free, up to `run->count`; not across
 * `fresh_from`, so that a run is fresh as a whole or not at all. */
static int measure_free(qcow2_writer *w, qcow2_run *run)
{
    uint64_t found = 0, count;
    while (found < run->count) {
        uint64_t cluster = run->cluster + found;
        if ((found > 0 && cluster == w->fresh_from) ||
            !qcow2_refcounts_cover(&w->refcounts, cluster))
            break;
        int error = qcow2_refcounts_get(&w->refcounts, cluster, &count);
        if (error)
            return error;
        if (count != 0)
            break;
        found++;
    }
    run->count = found;
    return 0;
}

/* Of what is free and lies before the scan nobody else knows. */
static void remember_free(qcow2_writer *w, qcow2_run run)
{
    if (run.cluster >= w->scan_at)
        return; /* scanning finds it */
    if (w->free_runs->len < FREE_RUNS_MAX)
        g_array_append_val(w->free_runs, run);
    else
        w->scan_at = run.cluster;
}

/* From what was freed: the best of the last few. A run of 0: there is none. */
static int take_freed(qcow2_writer *w, uint64_t wanted, qcow2_run *ret_run)
{
    ret_run->count = 0;
    while (w->free_runs->len > 0 && ret_run->count == 0) {
        guint last = w->free_runs->len - 1, best = last;
        qcow2_run *runs = (qcow2_run *)(void *)w->free_runs->data;
        for (guint i = 0; i < FREE_RUNS_LOOK && i <= last; i++)
            if (runs[best].count < wanted && runs[last - i].count > runs[best].count)
                best = last - i;
        uint64_t asked = MIN(wanted, runs[best].count);
        *ret_run = (qcow2_run){runs[best].cluster, asked};
        int error = measure_free(w, ret_run);
        if (error)
            return error;
        /* Shorter than it was: somebody found the next one by scanning. */
        uint64_t gone =
            MAX(ret_run->count, ret_run->count < asked ? ret_run->count + 1 : 0);
        runs[best].cluster += gone;
        runs[best].count -= gone;
        if (runs[best].count == 0)
            g_array_remove_index_fast(w->free_runs, best);
    }
    return 0;
}

/* The next free cluster that a block counts, and those behind it. */
static int scan_free(qcow2_writer *w, uint64_t wanted, qcow2_run *ret_run)
{
    for (;;) {
        uint64_t cluster;
        int error =
            qcow2_refcounts_find_free(&w->refcounts, w->scan_at, SCAN_SLICES, &cluster);
        if (error == -ERESTART) {
            w->scan_at = cluster;
        } else if (error == -EXFULL) {
            w->scan_at = w->refcounts.entries << w->refcounts.block_bits;
        } else if (!error && !qcow2_refcounts_cover(&w->refcounts, cluster)) {
            error = add_block(w, cluster >> w->refcounts.block_bits, cluster);
            if (!error)
                w->scan_at = cluster + 1;
        } else if (!error) {
            w->scan_at = cluster;
            *ret_run = (qcow2_run){cluster, wanted};
            return measure_free(w, ret_run);
        }
        if (error)
            return error;
    }
}

/* Sets all refcounts of a run, or none. */
static int set_run(qcow2_writer *w, qcow2_run run, uint64_t count, uint64_t before)
{
    for (uint64_t i = 0; i < run.count; i++) {
        int error = qcow2_refcounts_set(&w->refcounts, run.cluster + i, count);
        if (!error)
            continue;
        while (i-- > 0)
            qcow2_refcounts_set(&w->refcounts, run.cluster + i, before);
        return error;
    }
    return 0;
}

int qcow2_alloc_clusters(qcow2_writer *w, uint64_t wanted, qcow2_run *ret_run,
                         bool *ret_fresh)
{
    int error = take_freed(w, wanted, ret_run);
    bool was_freed = ret_run->count > 0;
    if (!error && !was_freed)
        error = scan_free(w, wanted, ret_run);
    for (uint64_t i = 0; i < ret_run->count && !error; i++)
        error = qcow2_alloc_check_free(w, ret_run->cluster + i);
    uint64_t end = ret_run->cluster + ret_run->count;
    if (!error)
        error = qcow2_alloc_extend(w, offset_of(w, end));
    if (!error)
        error = set_run(w, *ret_run, 1, 0);
    if (error && was_freed)
        remember_free(w, *ret_run);
    if (error)
        return error;
    *ret_fresh = ret_run->cluster >= w->fresh_from;
    w->fresh_from = MAX(w->fresh_from, end);
    if (ret_run->cluster == w->scan_at)
        w->scan_at = end;
    return 0;
}

static uint64_t count_absent_blocks(const qcow2_refcounts *r, qcow2_run run)
{
    uint64_t absent = 0;
    uint64_t last = (run.cluster + run.count - 1) >> r->block_bits;
    for (uint64_t i = run.cluster >> r->block_bits; i <= last; i++)
        absent += r->table[i] == 0;
    return absent;
}

/* Behind everything that was ever used: first the blocks that count it, then the table.
 * Elsewhere the blocks would cut what is free into runs that may all be too short. */
int qcow2_alloc_table(qcow2_writer *w, uint64_t count, uint64_t *ret_cluster)
{
    qcow2_refcounts *r = &w->refcounts;
    qcow2_run all = {w->fresh_from, count};
    uint64_t blocks = 0;
    do {
        all.count = blocks + count;
        if (!qcow2_refcounts_reach(r, all.cluster + all.count - 1))
            return -EXFULL;
        blocks = count_absent_blocks(r, all);
    } while (blocks + count > all.count);

    qcow2_run table = {all.cluster + blocks, count};
    uint64_t next = all.cluster;
    int error = qcow2_alloc_extend(w, offset_of(w, all.cluster + all.count));
    for (uint64_t i = 0; i < all.count && !error; i++)
        error = qcow2_alloc_check_free(w, all.cluster + i);
    for (uint64_t i = all.cluster >> r->block_bits; next < table.cluster && !error; i++)
        if (r->table[i] == 0)
            error = add_block(w, i, next++);
    if (!error)
        error = set_run(w, table, 1, 0);
    w->fresh_from = MAX(w->fresh_from, all.cluster + all.count);
    *ret_cluster = table.cluster;
    return error;
}

int qcow2_alloc_retry(qcow2_writer *w, int error)
{
    if (error == -EXFULL)
        return qcow2_alloc_grow(w);
    return error == -ERESTART ? qcow2_alloc_scan(w) : error;
}

/* ---- Taking back -------------------------------------------------------------------------- */

/* Nobody names these on disk or in memory. What cannot be lowered stays a leak. */
static void free_run(qcow2_writer *w, qcow2_run run)
{
    if (run.count > 0 && set_run(w, run, 0, 1) == 0)
        remember_free(w, run);
}

void qcow2_alloc_undo(qcow2_writer *w, qcow2_run run)
{
    free_run(w, run);
}

void qcow2_alloc_unlink(qcow2_writer *w, uint64_t offset, uint64_t length,
                        qcow2_unlink_kind kind)
{
    bool hold = kind == QCOW2_UNLINK_HELD;
    unsigned bits = w->map->layout.cluster_bits;
    uint64_t cluster = offset >> bits;
    uint64_t count = ((offset + length - 1) >> bits) - cluster + 1;
    if (kind == QCOW2_UNLINK_OWN)
        w->unlinked_bytes += length;
    if (w->unlinked->len > 0) {
        qcow2_unlinked *last =
            &g_array_index(w->unlinked, qcow2_unlinked, w->unlinked->len - 1);
        if (last->hold == hold && last->run.cluster + last->run.count == cluster) {
            last->run.count += count;
            return;
        }
    }
    qcow2_unlinked next = {{cluster, count}, hold};
    g_array_append_val(w->unlinked, next);
}

static void append_run(GArray *runs, uint64_t cluster)
{
    qcow2_run *last = runs->len ? &g_array_index(runs, qcow2_run, runs->len - 1) : NULL;
    if (last && last->cluster + last->count == cluster) {
        last->count++;
        return;
    }
    qcow2_run run = {cluster, 1};
    g_array_append_val(runs, run);
}

/* Lowers what others use too; collects in `last` what nobody does, in `held` what must wait. */
static void drop_references(qcow2_writer *w, const qcow2_unlinked *u, GArray *last)
{
    for (uint64_t i = 0; i < u->run.count; i++) {
        uint64_t cluster = u->run.cluster + i, count;
        if (qcow2_refcounts_get(&w->refcounts, cluster, &count) != 0)
            continue;
        if (count == 0 || qcow2_overlap_name(w->map, offset_of(w, cluster)))
            qcow2_writer_corrupt(w); /* I7: nobody counted it, or it is a table */
        else if (count > 1)
            qcow2_refcounts_set(&w->refcounts, cluster, count - 1);
        else
            append_run(u->hold ? w->held : last, cluster);
    }
}

/* I5. A cluster keeps its refcount until it is punched, so that nobody gets it before. */
void qcow2_alloc_reclaim(qcow2_writer *w, GArray *unlinked)
{
    g_autoptr(GArray) last = g_array_new(FALSE, FALSE, sizeof(qcow2_run));
    if (unlinked->len == 0)
        return;
    pthread_rwlock_wrlock(&w->decode_lock);
    pthread_rwlock_unlock(&w->decode_lock);
    pthread_mutex_lock(&w->map->lock);
    for (guint i = 0; i < unlinked->len; i++)
        drop_references(w, &g_array_index(unlinked, qcow2_unlinked, i), last);
    pthread_mutex_unlock(&w->map->lock);
    for (guint i = 0; i < last->len; i++) {
        qcow2_run run = g_array_index(last, qcow2_run, i);
        /* Where that is not possible the space stays the image's, which is all right. */
        if (qcow2_writer_note(w, file_punch(w->fd, offset_of(w, run.cluster),
                                            run.count * cluster_size(w))))
            break;
    }
    pthread_mutex_lock(&w->map->lock);
    for (guint i = 0; i < last->len; i++)
        free_run(w, g_array_index(last, qcow2_run, i));
    pthread_mutex_unlock(&w->map->lock);
}

/* ---- COPIED ----------------------------------------------------------------------------------- */

/* The flag is what a table says, the refcount is what counts. More than one: what is there may
 * be another's, and is written elsewhere as if there were no flag. None: I7. */
static int check_copied(qcow2_writer *w, uint64_t offset, bool *copied)
{
    uint64_t count;
    if (!*copied)
        return 0;
    int error =
        qcow2_refcounts_get(&w->refcounts, offset >> w->map->layout.cluster_bits, &count);
    if (!error && count == 0)
        error = qcow2_writer_corrupt(w);
    *copied = count == 1;
    return error;
}

int qcow2_alloc_get_entry(qcow2_writer *w, uint64_t guest, qcow2_entry *ret_entry)
{
    int error = qcow2_map_get(w->map, guest, ret_entry);
    if (error || w->external || !ret_entry->has_host)
        return error;
    return check_copied(w, ret_entry->host_offset, &ret_entry->copied);
}

/* ---- L2 tables ------------------------------------------------------------------------------ */

static void set_l1(qcow2_writer *w, uint64_t index, uint64_t offset)
{
    w->map->l1[index] = offset | QCOW2_FLAG_COPIED;
    qcow2_overlap_add(w->map->overlap, offset, QCOW2_TABLE_L2);
    g_array_append_val(w->l1_dirty, index);
}

/* The content of a new table, on disk before anything names it (I3). */
static int fill_table(qcow2_writer *w, uint64_t old, uint64_t offset, bool fresh)
{
    int error = 0;
    if (old) {
        g_autofree uint8_t *copy = g_malloc(cluster_size(w));
        error = file_read_exact(w->fd, copy, cluster_size(w), old);
        if (!error)
            error = file_write_full(w->fd, copy, cluster_size(w), offset);
    } else if (!fresh) {
        error = file_zero(w->fd, offset, cluster_size(w));
    }
    qcow2_slices_replaced(w->map->slices, offset, cluster_size(w));
    return qcow2_writer_note(w, error);
}

/* qcow2: L1 table, COPIED. A table that a snapshot shares is never dirty in memory. */
int qcow2_alloc_l2(qcow2_writer *w, uint64_t guest)
{
    uint64_t index = qcow2_map_l1_index(w->map, guest), old, cluster;
    qcow2_run run;
    bool fresh;
    if (index >= w->map->l1_entries ||
        qcow2_l1_decode(&w->map->layout, w->map->l1[index], &old))
        return -EIO;
    bool copied = old && (w->map->l1[index] & QCOW2_FLAG_COPIED);
    int error = check_copied(w, old, &copied);
    if (error || copied)
        return error;
    error = qcow2_alloc_clusters(w, 1, &run, &fresh);
    if (error)
        return error;
    cluster = run.cluster;
    error = fill_table(w, old, offset_of(w, cluster), fresh);
    if (error) {
        qcow2_alloc_undo(w, run);
        return error;
    }
    set_l1(w, index, offset_of(w, cluster));
    if (old) {
        qcow2_overlap_remove(w->map->overlap, old);
        qcow2_alloc_unlink(w, old, cluster_size(w), QCOW2_UNLINK_SHARED);
    }
    return 0;
}
