/*
 * qcow2-map.c: guest offset -> extent, through the L1 table in memory and a bounded cache
 * of slices of L2 tables.
 *
 * Invariants
 * - L1 holds as many entries as the virtual size needs, no more: state of a saved virtual
 *   machine, which lies behind the virtual size, is never looked at. At most 32 MiB.
 * - What the check at open let through is decoded again at each lookup, by the same
 *   qcow2_entry_decode: the open may have stopped at its bound, and the file may have
 *   changed since. An entry that fails is -EIO for its own offset only.
 * - Data never comes from the header, the L1, refcount or snapshot tables (`ranges`); a
 *   data cluster over an L2 table that the open did not reach is read as the bytes it has.
 * - An extent is a sequence of runs of one kind, contiguous in the host file if DATA; a
 *   compressed cluster is an extent of its own. Scanning ends after SLICES_PER_LOOKUP
 *   slices, so that a lookup of 2^60 bytes costs what a lookup of a megabyte does.
 *
 * Locks: L1 is only read after qcow2_map_new. The slices are the cache's, which reads
 * without a lock. A writer will change L1 and slices under the disk's range locks (W1)
 * and publish an L1 word in one store; nothing here remembers a word across two lookups.
 */
#include "formats/qcow2-internal.h"
#include <errno.h>

#define SLICE_BYTES_MAX   4096u
#define CACHE_BYTES       (4u << 20)
#define SLICES_PER_LOOKUP 64u

struct qcow2_map {
    int fd;
    qcow2_layout layout;
    qcow2_ranges ranges;
    uint64_t *l1; /* host order */
    uint64_t l1_entries;
    uint32_t slice_bytes;
    uint32_t slice_bits; /* log2 of the entries of a slice */
    qcow2_cache *slices; /* key: host offset */
};

/* A lookup's position; holds at most one slice. */
typedef struct cursor {
    qcow2_map *map;
    uint64_t key;
    qcow2_block slice;
    unsigned slices_left;
} cursor;

static bool load_l1(qcow2_map *map, const qcow2_header *header, const char *filename,
                    GError **error)
{
    map->l1_entries = qcow2_layout_l1_needed(&map->layout);
    if (map->l1_entries > header->l1_entries)
        return qcow2_fail(error, IMAGE_ERROR_INVALID, filename,
                          "the L1 table is too small");
    map->l1 = g_new(uint64_t, map->l1_entries);
    int result = qcow2_words_read(map->fd, header->l1_offset, map->l1, map->l1_entries);
    if (result < 0)
        return qcow2_fail(error, IMAGE_ERROR_IO, filename, "cannot read the L1 table: %s",
                          g_strerror(-result));
    return true;
}

qcow2_map *qcow2_map_new(int fd, const qcow2_header *header, const qcow2_layout *layout,
                         const char *filename, GError **error)
{
    qcow2_map *map = g_new0(qcow2_map, 1);
    map->fd = fd;
    map->layout = *layout;
    map->slice_bytes = (uint32_t)MIN(layout->cluster_size, SLICE_BYTES_MAX);
    map->slice_bits = (uint32_t)__builtin_ctz(map->slice_bytes) - layout->entry_bits;
    map->slices = qcow2_cache_new(map->slice_bytes, CACHE_BYTES / map->slice_bytes);
    if (load_l1(map, header, filename, error) &&
        qcow2_ranges_load(fd, header, layout, filename, &map->ranges, error))
        return map;
    qcow2_map_free(map);
    return NULL;
}

void qcow2_map_free(qcow2_map *map)
{
    if (!map)
        return;
    qcow2_cache_free(map->slices);
    qcow2_ranges_clear(&map->ranges);
    g_free(map->l1);
    g_free(map);
}

static int load_slice(const void *user, uint64_t key, void *block)
{
    const qcow2_map *map = user;
    return qcow2_words_read(map->fd, key, block, map->slice_bytes / 8);
}

static int enter_slice(cursor *c, uint64_t key)
{
    if (c->slice.data && c->key == key)
        return 0;
    qcow2_cache_put(c->map->slices, &c->slice);
    int result = qcow2_cache_get(c->map->slices, key, load_slice, c->map, &c->slice);
    c->key = key;
    c->slices_left -= c->slices_left > 0;
    return result;
}

/* The end of the run of L1 entries without a table that starts at `index`. */
static uint64_t l1_hole_end(const qcow2_map *map, uint64_t index, uint64_t guest_end)
{
    uint32_t bits = map->layout.l2_bits + map->layout.cluster_bits;
    uint64_t last = MIN(map->l1_entries, ((guest_end - 1) >> bits) + 1);
    do {
        index++;
    } while (index < last && map->l1[index] == 0);
    return index << bits;
}

/* The L2 entry of the cluster at `guest`, through the cursor's slice. */
static int read_entry(cursor *c, uint64_t table, uint64_t guest, qcow2_entry *ret)
{
    const qcow2_map *map = c->map;
    const qcow2_layout *layout = &map->layout;
    uint64_t index =
        guest >> layout->cluster_bits & (((uint64_t)1 << layout->l2_bits) - 1);
    uint64_t slice = index >> map->slice_bits;
    int result = enter_slice(c, table + slice * map->slice_bytes);
    if (result < 0)
        return result;
    const uint64_t *words = c->slice.data;
    uint64_t at = (index & (((uint64_t)1 << map->slice_bits) - 1))
                  << (layout->entry_bits - 3);
    uint64_t bitmap = layout->entry_bits == 4 ? words[at + 1] : 0;
    if (qcow2_entry_decode(layout, guest, words[at], bitmap, ret))
        return -EIO;
    return 0;
}

static bool over_metadata(const qcow2_map *map, const qcow2_entry *entry)
{
    if (map->layout.external)
        return false;
    uint64_t length =
        entry->compressed ? entry->compressed_size : map->layout.cluster_size;
    return qcow2_ranges_hit(&map->ranges, entry->host_offset,
                            entry->host_offset + length) != NULL;
}

static image_extent_kind subcluster_kind(const qcow2_entry *entry, uint64_t sub)
{
    if (entry->zero >> sub & 1)
        return IMAGE_EXTENT_ZERO;
    return entry->alloc >> sub & 1 ? IMAGE_EXTENT_DATA : IMAGE_EXTENT_UNALLOCATED;
}

/* What `entry` says of `offset`, up to the end of the cluster at most. */
static void entry_run(const qcow2_layout *layout, const qcow2_entry *entry,
                      uint64_t offset, qcow2_extent *ret)
{
    uint64_t in_cluster = offset & (layout->cluster_size - 1);
    uint64_t sub = in_cluster >> layout->subcluster_bits;
    uint64_t end = sub + 1;
    *ret = (qcow2_extent){0};
    if (entry->compressed) {
        ret->kind = IMAGE_EXTENT_COMPRESSED;
        ret->host_offset = entry->host_offset;
        ret->compressed_size = entry->compressed_size;
        ret->length = layout->cluster_size - in_cluster;
        return;
    }
    ret->kind = subcluster_kind(entry, sub);
    while (end < layout->subclusters && subcluster_kind(entry, end) == ret->kind)
        end++;
    ret->length = (end << layout->subcluster_bits) - in_cluster;
    if (ret->kind == IMAGE_EXTENT_DATA)
        ret->host_offset = entry->host_offset + in_cluster;
}

/* The run at `offset`: not beyond its cluster, or a whole hole of L1. `end` only saves
 * work: a hole is not followed beyond it. */
static int run_at(cursor *c, uint64_t offset, uint64_t end, qcow2_extent *ret)
{
    const qcow2_map *map = c->map;
    const qcow2_layout *layout = &map->layout;
    uint64_t index = offset >> (layout->l2_bits + layout->cluster_bits);
    uint64_t table = 0;
    qcow2_entry entry;
    if (qcow2_l1_decode(layout, map->l1[index], &table))
        return -EIO;
    if (table == 0) {
        *ret = (qcow2_extent){.kind = IMAGE_EXTENT_UNALLOCATED,
                              .length = l1_hole_end(map, index, end) - offset};
        return 0;
    }
    int result = read_entry(c, table, offset & ~(layout->cluster_size - 1), &entry);
    if (result < 0)
        return result;
    entry_run(layout, &entry, offset, ret);
    bool has_bytes =
        ret->kind == IMAGE_EXTENT_DATA || ret->kind == IMAGE_EXTENT_COMPRESSED;
    return has_bytes && over_metadata(map, &entry) ? -EIO : 0;
}

static bool continues(const qcow2_extent *extent, const qcow2_extent *next)
{
    if (extent->kind != next->kind || extent->kind == IMAGE_EXTENT_COMPRESSED)
        return false;
    return extent->kind != IMAGE_EXTENT_DATA ||
           extent->host_offset + extent->length == next->host_offset;
}

/* What the open found past the end of the file is zeroes. Said here, so that data is read
 * exactly: what is missing of it was cut off since, and is an error. */
static void clip_to_file(const qcow2_layout *layout, qcow2_extent *extent)
{
    if (extent->kind != IMAGE_EXTENT_DATA)
        return;
    if (extent->host_offset >= layout->data_size)
        *extent = (qcow2_extent){.kind = IMAGE_EXTENT_ZERO, .length = extent->length};
    else
        extent->length = MIN(extent->length, layout->data_size - extent->host_offset);
}

int qcow2_map_lookup(qcow2_map *map, uint64_t offset, uint64_t length,
                     qcow2_extent *ret_extent)
{
    cursor c = {.map = map, .slices_left = SLICES_PER_LOOKUP};
    qcow2_extent extent, next;
    int result = run_at(&c, offset, offset + length, &extent);
    while (result == 0 && extent.length < length && c.slices_left > 0) {
        /* An error further on is told to whoever asks for that offset. */
        if (run_at(&c, offset + extent.length, offset + length, &next) < 0 ||
            !continues(&extent, &next))
            break;
        extent.length += next.length;
    }
    qcow2_cache_put(map->slices, &c.slice);
    if (result < 0)
        return result;
    extent.length = MIN(extent.length, length);
    clip_to_file(&map->layout, &extent);
    *ret_extent = extent;
    return 0;
}
