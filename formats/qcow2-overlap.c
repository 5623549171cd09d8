/*
 * qcow2-overlap.c: which host clusters hold an L2 table or a refcount block. Together with
 * the ranges of fixed place (qcow2-ranges.c) that is everything that no data, and no other
 * table, may ever be written over, whatever a refcount or an L2 entry says. The snapshots'
 * own L2 tables are protected by their refcounts alone.
 */
#include "formats/qcow2-writer.h"

struct qcow2_overlap {
    GHashTable
        *kinds; /* offset / 512 -> qcow2_table_kind: clusters are 512 bytes at least */
};

qcow2_overlap *qcow2_overlap_new(void)
{
    qcow2_overlap *o = g_new0(qcow2_overlap, 1);
    o->kinds = g_hash_table_new(g_direct_hash, g_direct_equal);
    return o;
}

void qcow2_overlap_free(qcow2_overlap *o)
{
    if (!o)
        return;
    g_hash_table_unref(o->kinds);
    g_free(o);
}

static gpointer key_of(uint64_t offset)
{
    return GSIZE_TO_POINTER((gsize)(offset / 512));
}

void qcow2_overlap_add(qcow2_overlap *o, uint64_t offset, qcow2_table_kind kind)
{
    g_hash_table_insert(o->kinds, key_of(offset), GUINT_TO_POINTER((guint)kind));
}

void qcow2_overlap_remove(qcow2_overlap *o, uint64_t offset)
{
    g_hash_table_remove(o->kinds, key_of(offset));
}

qcow2_table_kind qcow2_overlap_find(const qcow2_overlap *o, uint64_t offset)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(o->kinds, key_of(offset)));
}

const char *qcow2_overlap_name(const qcow2_map *map, uint64_t offset)
{
    switch (qcow2_overlap_find(map->overlap, offset)) {
    case QCOW2_TABLE_L2:
        return "an L2 table";
    case QCOW2_TABLE_REFCOUNT:
        return "a refcount block";
    }
    return qcow2_ranges_hit(&map->ranges, offset, offset + map->layout.cluster_size);
}
