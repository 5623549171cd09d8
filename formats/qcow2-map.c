/*
 * qcow2-map.c: guest offset -> extent, through the L1 table in memory and a bounded cache
 * of slices of L2 tables.
 *
 * Invariants
 * - A reader's L1 holds as many entries as the virtual size needs, no more; a writer's all
 *   that the header counts, for it may grow into them, keep them where L1 moves, and free
 *   what they name. At most 32 MiB. State of a saved virtual machine, which lies behind the
 *   virtual size, is never looked up.
 * - What the check at open let through is decoded again at each lookup, by the same
 *   qcow2_entry_decode: the open may have stopped at its bound, and the file may have
 *   changed since. An entry that fails is -EIO for its own offset only.
 * - Data never comes from the header, the L1, refcount or snapshot tables (`ranges`); a
 *   data cluster over an L2 table that the open did not reach is read as the bytes it has.
 * - An extent is a sequence of runs of one kind, contiguous in the host file if DATA; a
 *   compressed cluster is an extent of its own. Scanning ends after SLICES_PER_LOOKUP
 *   slices, so that a lookup of 2^60 bytes costs what a lookup of a megabyte does.
 *
 * Locks: everything is under map.lock. A slice that is not cached is read without it, after
 * which the lookup goes on from its L1 entry: a writer may have changed or moved the table.
 * What is said to a caller stays true as long as he holds the range against changes, but
 * for where the bytes are: a write to other sectors of a cluster may move it. The old place
 * keeps its bytes for as long as anybody may read there (qcow2-alloc.c).
 */
#include "formats/qcow2-internal.h"
#include <errno.h>

#define CACHE_BYTES       (4u << 20)
#define SLICES_PER_LOOKUP 64u
#define NOT_CACHED        1

/* A lookup's position. */
typedef struct cursor {
    qcow2_map *map;
    uint64_t wanted; /* after NOT_CACHED: the slice to load */
    uint64_t last;
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
    map->slice_bytes = (uint32_t)MIN(layout->cluster_size, QCOW2_SLICE_BYTES_MAX);
    map->slice_bits = (uint32_t)__builtin_ctz(map->slice_bytes) - layout->entry_bits;
    map->slices = qcow2_slices_new(fd, map->slice_bytes, CACHE_BYTES / map->slice_bytes);
    pthread_mutex_init(&map->lock, NULL);
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
    qcow2_slices_free(map->slices);
    pthread_mutex_destroy(&map->lock);
    qcow2_ranges_clear(&map->ranges);
    g_free(map->l1);
    g_free(map);
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

/* Where the L2 entry of the cluster at `guest` is: in which slice, and where in it. */
static uint64_t locate(const qcow2_map *map, uint64_t table, uint64_t guest,
                       size_t *ret_at)
{
    const qcow2_layout *layout = &map->layout;
    uint64_t index =
        guest >> layout->cluster_bits & (((uint64_t)1 << layout->l2_bits) - 1);
    *ret_at = (size_t)(index & (((uint64_t)1 << map->slice_bits) - 1))
              << layout->entry_bits;
    return table + (index >> map->slice_bits) * map->slice_bytes;
}

static int decode_at(const qcow2_map *map, const uint8_t *at, uint64_t guest,
                     qcow2_entry *ret)
{
    uint64_t bitmap = map->layout.entry_bits == 4 ? qcow2_be64(at + 8) : 0;
    return qcow2_entry_decode(&map->layout, guest, qcow2_be64(at), bitmap, ret) ? -EIO
                                                                                : 0;
}

/* 0, -errno or NOT_CACHED. */
static int read_entry(cursor *c, uint64_t table, uint64_t guest, qcow2_entry *ret)
{
    size_t at;
    uint64_t key = locate(c->map, table, guest, &at);
    const qcow2_slice *slice = qcow2_slices_find(c->map->slices, key);
    if (key != c->last)
        c->slices_left -= c->slices_left > 0;
    c->last = key;
    c->wanted = key;
    return slice ? decode_at(c->map, slice->bytes + at, guest, ret) : NOT_CACHED;
}

/* *ret_table = 0: there is none. */
static int find_table(const qcow2_map *map, uint64_t guest, uint64_t *ret_table)
{
    uint64_t index = qcow2_map_l1_index(map, guest);
    *ret_table = 0;
    if (index >= map->l1_entries)
        return -EIO;
    return qcow2_l1_decode(&map->layout, map->l1[index], ret_table) ? -EIO : 0;
}

int qcow2_map_get(qcow2_map *map, uint64_t guest, qcow2_entry *ret_entry)
{
    uint64_t table;
    size_t at;
    qcow2_slice *slice;
    *ret_entry = (qcow2_entry){0};
    int error = find_table(map, guest, &table);
    if (error || table == 0)
        return error;
    error = qcow2_slices_get(map->slices, locate(map, table, guest, &at), &slice);
    return error ? error : decode_at(map, slice->bytes + at, guest, ret_entry);
}

int qcow2_map_put(qcow2_map *map, uint64_t guest, const qcow2_entry *entry)
{
    uint64_t table, word, bitmap;
    size_t at;
    qcow2_slice *slice;
    int error = find_table(map, guest, &table);
    if (error || table == 0)
        return -EIO;
    error = qcow2_slices_get(map->slices, locate(map, table, guest, &at), &slice);
    if (error)
        return error;
    qcow2_entry_encode(&map->layout, entry, &word, &bitmap);
    word = htobe64(word);
    bitmap = htobe64(bitmap);
    memcpy(slice->bytes + at, &word, sizeof word);
    if (map->layout.entry_bits == 4)
        memcpy(slice->bytes + at + 8, &bitmap, sizeof bitmap);
    qcow2_slices_mark(map->slices, slice, QCOW2_SLICE_L2, qcow2_map_l1_index(map, guest));
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
    uint64_t table;
    qcow2_entry entry;
    int result = find_table(map, offset, &table);
    if (result < 0)
        return result;
    if (table == 0) {
        uint64_t hole_end = l1_hole_end(map, qcow2_map_l1_index(map, offset), end);
        *ret =
            (qcow2_extent){.kind = IMAGE_EXTENT_UNALLOCATED, .length = hole_end - offset};
        return 0;
    }
    result = read_entry(c, table, offset & ~(layout->cluster_size - 1), &entry);
    if (result != 0)
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

/* Without the lock meanwhile. */
static int load_wanted(cursor *c)
{
    uint8_t bytes[QCOW2_SLICE_BYTES_MAX];
    qcow2_map *map = c->map;
    uint64_t generation = qcow2_slices_generation(map->slices);
    pthread_mutex_unlock(&map->lock);
    int error = file_read_exact(map->fd, bytes, map->slice_bytes, c->wanted);
    pthread_mutex_lock(&map->lock);
    if (!error)
        qcow2_slices_fill(map->slices, c->wanted, bytes, generation);
    return error;
}

static int run_loaded(cursor *c, uint64_t offset, uint64_t end, qcow2_extent *ret)
{
    int result;
    while ((result = run_at(c, offset, end, ret)) == NOT_CACHED) {
        result = load_wanted(c);
        if (result < 0)
            break;
    }
    return result;
}

int qcow2_map_lookup(qcow2_map *map, uint64_t offset, uint64_t length,
                     qcow2_extent *ret_extent)
{
    cursor c = {.map = map, .slices_left = SLICES_PER_LOOKUP};
    qcow2_extent extent, next;
    pthread_mutex_lock(&map->lock);
    int result = run_loaded(&c, offset, offset + length, &extent);
    while (result == 0 && extent.length < length && c.slices_left > 0) {
        /* An error further on is told to whoever asks for that offset. */
        if (run_loaded(&c, offset + extent.length, offset + length, &next) < 0 ||
            !continues(&extent, &next))
            break;
        extent.length += next.length;
    }
    if (result == 0) {
        extent.length = MIN(extent.length, length);
        clip_to_file(&map->layout, &extent);
        *ret_extent = extent;
    }
    pthread_mutex_unlock(&map->lock);
    return result;
}
