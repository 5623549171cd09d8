/*
 * qcow2-zero.c: write-zeroes and discard. Both make a range read as zeroes, because
 * replicas must stay equal; they differ in what becomes of the space.
 *
 *                            zeroes                          discard
 *   data, ours alone         zero flag, space kept           unlinked
 *   data, shared             unlinked                        unlinked
 *   compressed, whole        unlinked                        unlinked
 *   zero, space kept         nothing                         unlinked
 *   unallocated, zero        nothing                         nothing
 *   unallocated, below       zero flag                       zero flag
 *
 * What is unlinked gets the zero flag if something lies below. Version 2 has no zero flag:
 * without anything below it is unlinked in either case, else zeroes are written as data. So
 * are parts of clusters (of subclusters, where there are any), and parts of compressed ones.
 * A raw data file must hold the zeroes itself, whoever reads it: they are written there
 * first, and its clusters stay linked, but for those that are cut off: the file ends before
 * them then.
 *
 * Callers hold the range against reads and writes; what may be going on are writes to other
 * sectors of the first and last cluster, whose claims are awaited.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

#define ZEROES_BYTES   (64u << 10)
#define CHUNK_CLUSTERS 4096u /* under one holding of the lock */
#define NEEDS_DATA     1     /* cannot be said in the tables */

typedef struct punch {
    uint64_t start, end; /* in the data file */
} punch;

static uint32_t all_subclusters(const qcow2_writer *w)
{
    return w->map->layout.subclusters == 1 ? 1 : UINT32_MAX;
}

static bool lies_below(const qcow2_writer *w, uint64_t guest, qcow2_zero_mode mode)
{
    return w->read_below && guest < w->below_size && mode != QCOW2_ZERO_DROP;
}

/* ---- Parts, as data ----------------------------------------------------------------------- */

static int write_zeroes(qcow2_writer *w, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[ZEROES_BYTES];
    int error = 0;
    while (length > 0 && !error) {
        size_t part = sizeof zeroes - offset % sizeof zeroes; /* tears no sector */
        part = MIN(part, length);
        error = qcow2_write_now(w, zeroes, offset, part);
        offset += part;
        length -= part;
    }
    return error;
}

int qcow2_zero_part(qcow2_writer *w, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        qcow2_extent extent;
        int error = qcow2_map_lookup(w->map, offset, length, &extent);
        bool zero = extent.kind == IMAGE_EXTENT_ZERO ||
                    (extent.kind == IMAGE_EXTENT_UNALLOCATED &&
                     !lies_below(w, offset, QCOW2_ZERO_KEEP));
        if (!error && !zero)
            error = write_zeroes(w, offset, extent.length);
        if (error)
            return error;
        offset += extent.length;
        length -= extent.length;
    }
    return 0;
}

/* ---- Whole clusters, in the tables; under the lock ------------------------------------------ */

static uint64_t data_bytes(const qcow2_writer *w, const qcow2_entry *entry)
{
    if (entry->compressed)
        return w->map->layout.cluster_size;
    return (uint64_t)__builtin_popcount(entry->alloc) << w->map->layout.subcluster_bits;
}

/* The entry that `old` becomes, or NEEDS_DATA. *ret_same: it may stay as it is. */
static int plan_entry(const qcow2_writer *w, const qcow2_entry *old, uint64_t guest,
                      uint32_t mask, qcow2_zero_mode mode, qcow2_entry *ret,
                      bool *ret_same)
{
    bool below = lies_below(w, guest, mode);
    bool has_zero_flag = w->header.version >= 3;
    bool reads_zero = !old->compressed && !(old->alloc & mask) &&
                      (!below || (old->zero & mask) == mask);
    bool spare = mode != QCOW2_ZERO_KEEP && old->has_host && !(old->alloc & ~mask) &&
                 (!w->raw_external || mode == QCOW2_ZERO_DROP);
    *ret_same = reads_zero && !spare;
    if (*ret_same)
        return 0;
    if (old->compressed && mask != all_subclusters(w))
        return NEEDS_DATA;
    if (!has_zero_flag && below)
        return NEEDS_DATA;
    *ret = *old;
    if (old->compressed)
        *ret = (qcow2_entry){0};
    ret->alloc &= ~mask;
    bool keep = ret->has_host && !spare && (ret->copied || ret->alloc) && has_zero_flag;
    ret->zero = has_zero_flag && (below || keep) ? ret->zero | mask : ret->zero & ~mask;
    if (!keep) {
        ret->has_host = false;
        ret->copied = false;
        ret->host_offset = 0;
    }
    return 0;
}

/* At its place in the data file nobody else's data can come, so this needs no order. Past
 * the lock nobody writes there as long as the caller has all of the cluster: it waits in
 * `punches` until then. */
static void unlink_external(qcow2_writer *w, uint64_t guest, bool whole, GArray *punches)
{
    const qcow2_layout *layout = &w->map->layout;
    uint64_t end = MIN(guest + layout->cluster_size, layout->data_size);
    punch *last = punches->len ? &g_array_index(punches, punch, punches->len - 1) : NULL;
    w->data_fresh = MAX(w->data_fresh, guest + layout->cluster_size);
    if (guest >= end)
        return;
    if (!whole) {
        qcow2_writer_note(w, file_punch(w->data_fd, guest, end - guest));
    } else if (last && last->end == guest) {
        last->end = end;
    } else {
        punch next = {guest, end};
        g_array_append_val(punches, next);
    }
}

/* Without the lock. Where it is not possible the file just keeps the space. */
static void punch_all(qcow2_writer *w, GArray *punches)
{
    for (guint i = 0; i < punches->len; i++) {
        const punch *p = &g_array_index(punches, punch, i);
        if (qcow2_writer_note(w, file_punch(w->data_fd, p->start, p->end - p->start)))
            break;
    }
    g_array_set_size(punches, 0);
}

static void unlink_host(qcow2_writer *w, const qcow2_entry *old)
{
    uint64_t size = w->map->layout.cluster_size;
    if (old->compressed)
        qcow2_alloc_unlink(w, old->host_offset, old->compressed_size, QCOW2_UNLINK_OWN);
    else
        qcow2_alloc_unlink(w, old->host_offset, size,
                           old->copied ? QCOW2_UNLINK_OWN : QCOW2_UNLINK_SHARED);
}

static int zero_cluster(qcow2_writer *w, uint64_t guest, uint32_t mask,
                        qcow2_zero_mode mode, GArray *punches)
{
    qcow2_entry old, entry;
    bool same = false;
    int error = qcow2_map_get(w->map, guest, &old);
    if (!error)
        error = plan_entry(w, &old, guest, mask, mode, &entry, &same);
    if (error || same)
        return error;
    error = qcow2_alloc_l2(w, guest);
    if (!error)
        error = qcow2_map_put(w->map, guest, &entry);
    if (error)
        return error;
    if (old.compressed || (old.has_host && !entry.has_host && !w->external))
        unlink_host(w, &old);
    else if (old.has_host && !entry.has_host)
        unlink_external(w, guest, mask == all_subclusters(w), punches);
    atomic_fetch_add(&w->allocated,
                     (int_fast64_t)(data_bytes(w, &entry) - data_bytes(w, &old)));
    return 0;
}

/* ---- Ranges ------------------------------------------------------------------------------- */

/* Of the cluster at `guest`, the subclusters that lie in [start, end). */
static uint32_t mask_of(const qcow2_writer *w, uint64_t guest, uint64_t start,
                        uint64_t end)
{
    const qcow2_layout *layout = &w->map->layout;
    uint64_t from = MAX(start, guest) - guest;
    uint64_t to = MIN(end, guest + layout->cluster_size) - guest;
    uint64_t upto = ((uint64_t)1 << (to >> layout->subcluster_bits)) - 1;
    return (uint32_t)(upto & ~(((uint64_t)1 << (from >> layout->subcluster_bits)) - 1));
}

/* The first offset from `at` on whose L1 entry has a table. */
static uint64_t skip_hole(const qcow2_writer *w, uint64_t at, uint64_t end,
                          qcow2_zero_mode mode)
{
    uint32_t bits = w->map->layout.l2_bits + w->map->layout.cluster_bits;
    while (at < end && !lies_below(w, at, mode) &&
           w->map->l1[qcow2_map_l1_index(w->map, at)] == 0)
        at = ((at >> bits) + 1) << bits;
    return MIN(at, end);
}

/* Under the lock. From *at on, as far as one holding of the lock goes. */
static int zero_chunk(qcow2_writer *w, uint64_t *at, uint64_t end, qcow2_zero_mode mode,
                      GArray *punches)
{
    const qcow2_layout *layout = &w->map->layout;
    *at = skip_hole(w, *at, end, mode);
    for (unsigned i = 0; i < CHUNK_CLUSTERS && *at < end; i++) {
        uint64_t cluster = *at >> layout->cluster_bits;
        uint64_t guest = cluster << layout->cluster_bits;
        qcow2_claim_await(w, cluster, cluster);
        int error = qcow2_writer_check(w);
        if (!error)
            error = zero_cluster(w, guest, mask_of(w, guest, *at, end), mode, punches);
        if (error)
            return error;
        *at = MIN(end, guest + layout->cluster_size);
    }
    return 0;
}

/* [at, end) is made of whole subclusters. */
static int zero_clusters(qcow2_writer *w, uint64_t at, uint64_t end, qcow2_zero_mode mode)
{
    uint64_t size = w->map->layout.cluster_size;
    g_autoptr(GArray) punches = g_array_new(FALSE, FALSE, sizeof(punch));
    while (at < end) {
        int error = qcow2_writer_enter(w);
        if (error)
            return error;
        error = zero_chunk(w, &at, end, mode, punches);
        pthread_mutex_unlock(&w->map->lock);
        punch_all(w, punches);
        if (error == NEEDS_DATA) {
            uint64_t next = MIN(end, (at & ~(size - 1)) + size);
            error = write_zeroes(w, at, MIN(next, w->map->layout.size) - at);
            at = next;
        } else if (error) {
            error = qcow2_alloc_retry(w, error);
        }
        if (error)
            return error;
    }
    return 0;
}

int qcow2_zero_data_file(qcow2_writer *w, uint64_t offset, uint64_t end,
                         qcow2_zero_mode mode)
{
    if (!w->raw_external)
        return 0;
    /* This is a change like any other: not before the header is true for one, and not after
     * the end. */
    int error = qcow2_writer_enter(w);
    if (error)
        return error;
    end = MIN(end, w->map->layout.data_size);
    pthread_mutex_unlock(&w->map->lock);
    if (offset >= end)
        return 0;
    error = mode == QCOW2_ZERO_KEEP ? file_allocate_zero(w->data_fd, offset, end - offset)
                                    : file_punch(w->data_fd, offset, end - offset);
    if (error == -ENOTSUP)
        error = file_zero(w->data_fd, offset, end - offset);
    return qcow2_writer_note(w, error);
}

int qcow2_zero_range(qcow2_writer *w, uint64_t offset, uint64_t length,
                     qcow2_zero_mode mode)
{
    uint64_t unit = (uint64_t)1 << w->map->layout.subcluster_bits;
    uint64_t end = offset + length;
    /* The disk's last cluster is whole when its last byte is. */
    uint64_t last = end == w->map->layout.size
                        ? qcow2_round_up(end, w->map->layout.cluster_size)
                        : end & ~(unit - 1);
    uint64_t first = qcow2_round_up(offset, unit);
    int error = qcow2_zero_data_file(w, offset, end, mode);
    if (!error && first > offset)
        error = qcow2_zero_part(w, offset, MIN(first, end) - offset);
    if (!error && first < last)
        error = zero_clusters(w, first, last, mode);
    if (!error && last < end && last >= first)
        error = qcow2_zero_part(w, last, end - last);
    return error;
}
