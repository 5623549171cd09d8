/*
 * qcow2-refcount.c: how often each host cluster is used. The table is in memory; its
 * blocks are read through slices. Knows nothing of why and when they change.
 *
 * Invariants, under the image's lock
 * - table[i] is a cluster that `overlap` knows as a refcount block, or 0.
 * - new_blocks lists exactly the entries that the disk does not have yet, once each.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

int qcow2_refcounts_load(qcow2_refcounts *r, qcow2_map *map, const qcow2_header *header)
{
    unsigned cluster_bits = map->layout.cluster_bits;
    *r = (qcow2_refcounts){
        .map = map,
        .order = header->refcount_order,
        .block_bits = cluster_bits + 3 - header->refcount_order,
        .offset = header->refcount_table_offset,
        .entries = (uint64_t)header->refcount_table_clusters << (cluster_bits - 3),
        .new_blocks = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
    };
    r->table = g_new(uint64_t, r->entries);
    int error = qcow2_words_read(map->fd, r->offset, r->table, r->entries);
    for (uint64_t i = 0; i < r->entries && !error; i++)
        if (r->table[i])
            qcow2_overlap_add(map->overlap, r->table[i], QCOW2_TABLE_REFCOUNT);
    return error;
}

void qcow2_refcounts_clear(qcow2_refcounts *r)
{
    g_free(r->table);
    if (r->new_blocks)
        g_array_unref(r->new_blocks);
    *r = (qcow2_refcounts){0};
}

bool qcow2_refcounts_reach(const qcow2_refcounts *r, uint64_t cluster)
{
    return cluster >> r->block_bits < r->entries;
}

bool qcow2_refcounts_cover(const qcow2_refcounts *r, uint64_t cluster)
{
    return qcow2_refcounts_reach(r, cluster) && r->table[cluster >> r->block_bits] != 0;
}

uint64_t qcow2_refcounts_per_slice(const qcow2_refcounts *r)
{
    return (uint64_t)r->map->slice_bytes * 8 >> r->order;
}

uint64_t qcow2_refcounts_place(const qcow2_refcounts *r, uint64_t cluster,
                               uint64_t *ret_index)
{
    unsigned slice_bits = (unsigned)__builtin_ctz(r->map->slice_bytes) + 3 - r->order;
    uint64_t in_block = cluster & (((uint64_t)1 << r->block_bits) - 1);
    *ret_index = in_block & (((uint64_t)1 << slice_bits) - 1);
    return r->table[cluster >> r->block_bits] +
           (in_block >> slice_bits) * r->map->slice_bytes;
}

static int get_slice(const qcow2_refcounts *r, uint64_t cluster, qcow2_slice **ret_slice,
                     uint64_t *ret_index)
{
    uint64_t place = qcow2_refcounts_place(r, cluster, ret_index);
    return qcow2_slices_get(r->map->slices, place, ret_slice);
}

int qcow2_refcounts_get(const qcow2_refcounts *r, uint64_t cluster, uint64_t *ret_count)
{
    qcow2_slice *slice;
    uint64_t index;
    *ret_count = 0;
    if (!qcow2_refcounts_cover(r, cluster))
        return 0;
    int error = get_slice(r, cluster, &slice, &index);
    if (!error)
        *ret_count = qcow2_refword_get(slice->bytes, index, r->order);
    return error;
}

int qcow2_refcounts_set(qcow2_refcounts *r, uint64_t cluster, uint64_t count)
{
    qcow2_slice *slice;
    uint64_t index;
    if (!qcow2_refcounts_cover(r, cluster))
        return -EIO; /* a table of the header's that nothing counts */
    int error = get_slice(r, cluster, &slice, &index);
    if (error)
        return error;
    qcow2_refword_set(slice->bytes, index, r->order, count);
    qcow2_slices_mark(r->map->slices, slice, QCOW2_SLICE_REFCOUNT,
                      cluster >> r->block_bits);
    return 0;
}

/* Whether one of four 16-bit entries is zero. */
static bool any_free_of_four(const uint8_t *at)
{
    uint64_t four;
    memcpy(&four, at, sizeof four);
    return ((four - 0x0001000100010001) & ~four & 0x8000800080008000) != 0;
}

/* A first allocation passes every entry of the image: the usual width is worth a shortcut. */
uint64_t qcow2_refcounts_find_in(const qcow2_refcounts *r, const uint8_t *bytes,
                                 uint64_t index)
{
    uint64_t length = qcow2_refcounts_per_slice(r);
    while (index < length) {
        if (r->order == 4 && index % 4 == 0 && !any_free_of_four(bytes + index * 2)) {
            index += 4;
            continue;
        }
        if (qcow2_refword_get(bytes, index, r->order) == 0)
            break;
        index++;
    }
    return index;
}

int qcow2_refcounts_find_free(const qcow2_refcounts *r, uint64_t cluster, unsigned slices,
                              uint64_t *ret_cluster)
{
    for (; qcow2_refcounts_reach(r, cluster); slices--) {
        qcow2_slice *slice;
        uint64_t index;
        *ret_cluster = cluster;
        if (!qcow2_refcounts_cover(r, cluster))
            return 0;
        if (slices == 0)
            return -ERESTART;
        int error = get_slice(r, cluster, &slice, &index);
        if (error)
            return error;
        uint64_t found = qcow2_refcounts_find_in(r, slice->bytes, index);
        *ret_cluster = cluster + (found - index);
        if (found < qcow2_refcounts_per_slice(r))
            return 0;
        cluster = *ret_cluster;
    }
    return -EXFULL;
}

int qcow2_refcounts_add_block(qcow2_refcounts *r, uint64_t index, uint64_t cluster)
{
    uint64_t offset = cluster << r->map->layout.cluster_bits;
    qcow2_slices_replaced(r->map->slices, offset, r->map->layout.cluster_size);
    r->table[index] = offset;
    int error = qcow2_refcounts_set(r, cluster, 1);
    if (error) {
        r->table[index] = 0;
        return error;
    }
    qcow2_overlap_add(r->map->overlap, offset, QCOW2_TABLE_REFCOUNT);
    g_array_append_val(r->new_blocks, index);
    return 0;
}
