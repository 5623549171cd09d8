/*
 * qcow2-ranges.c: which host clusters belong to the tables that the header and the
 * snapshot table place: nothing else may lie there.
 *
 * Invariants
 * - The ranges are whole clusters, sorted by offset, and no two of them overlap: an image
 *   whose tables do is refused here. qcow2_ranges_hit therefore needs one binary search.
 *   The bitmap directory alone gives way: it is left out where it overlaps.
 * - At most 5 + QCOW2_SNAPSHOTS_MAX ranges. The snapshot table is walked entry by entry,
 *   never held, and is at most SNAPSHOT_TABLE_MAX bytes long.
 *
 * The active L2 tables and the refcount blocks, of which there may be millions, are
 * qcow2-check.c's. The snapshots' own L2 tables are left alone: only a snapshot that is
 * applied or deleted ever follows them.
 */
#include "formats/qcow2-internal.h"
#include <stdlib.h>

#define SNAPSHOT_TABLE_MAX (64u << 20)
#define SNAPSHOT_EXTRA_MAX 1024u

static const char bitmap_directory[] = "the bitmap directory";

typedef struct loader {
    int fd;
    const qcow2_header *header;
    const qcow2_layout *layout;
    const char *filename;
    qcow2_ranges *ranges;
    GError **error;
} loader;

static void add_range(const loader *l, uint64_t offset, uint64_t bytes, const char *what)
{
    if (bytes == 0)
        return;
    uint64_t end = offset + qcow2_round_up(bytes, l->layout->cluster_size);
    l->ranges->at[l->ranges->count++] = (qcow2_range){offset, end, what};
}

/* A walk over the snapshot table. */
typedef struct walker {
    int fd;
    const qcow2_header *header;
    const qcow2_layout *layout;
    const char *filename;
    qcow2_snapshot_visit *visit;
    void *user;
    GError **error;
} walker;

/* qcow2: Snapshots. *ret_length is the entry's length. */
static bool take_snapshot(const walker *w, uint32_t index, const uint8_t *entry,
                          uint64_t *ret_length)
{
    uint64_t l1_offset = qcow2_be64(entry);
    uint32_t l1_entries = qcow2_be32(entry + 8);
    uint64_t l1_bytes = (uint64_t)l1_entries * 8;
    uint32_t names = qcow2_be32(entry + 12); /* two 16-bit lengths */
    uint32_t extra = qcow2_be32(entry + 36);
    uint64_t file_size = w->layout->file_size;
    if (extra > SNAPSHOT_EXTRA_MAX)
        return qcow2_fail(w->error, IMAGE_ERROR_INVALID, w->filename,
                          "snapshot %u has too much extra data (%u bytes)", index, extra);
    if (l1_bytes > QCOW2_L1_BYTES_MAX || l1_offset % w->layout->cluster_size != 0 ||
        l1_offset > file_size || l1_bytes > file_size - l1_offset)
        return qcow2_fail(w->error, IMAGE_ERROR_INVALID, w->filename,
                          "the L1 table of snapshot %u is not valid", index);
    uint64_t length = QCOW2_SNAPSHOT_HEADER + extra + (names >> 16) + (names & 0xffff);
    *ret_length = qcow2_round_up(length, 8);
    return w->visit(w->user, l1_offset, l1_entries, w->error);
}

static bool snapshots_outside(const walker *w)
{
    return qcow2_fail(w->error, IMAGE_ERROR_INVALID, w->filename,
                      "the snapshot table reaches out of the file");
}

static bool walk_snapshots(const walker *w, uint64_t *ret_bytes)
{
    uint64_t start = w->header->snapshot_offset, file_size = w->layout->file_size;
    uint64_t left = start < file_size ? file_size - start : 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < w->header->snapshot_count; i++) {
        uint8_t entry[QCOW2_SNAPSHOT_HEADER];
        uint64_t length = 0;
        if (bytes + sizeof entry > MIN(left, SNAPSHOT_TABLE_MAX))
            return snapshots_outside(w);
        int result = file_read_full(w->fd, entry, sizeof entry, start + bytes);
        if (result < 0)
            return qcow2_fail(w->error, IMAGE_ERROR_IO, w->filename,
                              "cannot read the snapshot table: %s", g_strerror(-result));
        if (!take_snapshot(w, i, entry, &length))
            return false;
        bytes += length;
    }
    /* The last entry may lack its padding where the file ends. */
    if (bytes > qcow2_round_up(left, 8))
        return snapshots_outside(w);
    if (ret_bytes)
        *ret_bytes = bytes;
    return true;
}

bool qcow2_snapshots_walk(int fd, const qcow2_header *header, const qcow2_layout *layout,
                          const char *filename, qcow2_snapshot_visit *visit, void *user,
                          uint64_t *ret_bytes, GError **error)
{
    walker w = {fd, header, layout, filename, visit, user, error};
    return walk_snapshots(&w, ret_bytes);
}

static bool add_snapshot(void *user, uint64_t l1_offset, uint32_t l1_entries,
                         GError **error)
{
    (void)error;
    add_range(user, l1_offset, (uint64_t)l1_entries * 8, "a snapshot's L1 table");
    return true;
}

static bool add_snapshots(loader *l)
{
    uint64_t bytes = 0;
    if (!qcow2_snapshots_walk(l->fd, l->header, l->layout, l->filename, add_snapshot, l,
                              &bytes, l->error))
        return false;
    add_range(l, l->header->snapshot_offset, bytes, "the snapshot table");
    return true;
}

static int compare_ranges(const void *a, const void *b)
{
    const qcow2_range *left = a, *right = b;
    return (left->start > right->start) - (left->start < right->start);
}

static bool sort_ranges(const loader *l)
{
    qcow2_range *at = l->ranges->at;
    qsort(at, l->ranges->count, sizeof *at, compare_ranges);
    for (size_t i = 1; i < l->ranges->count; i++) {
        if (at[i].start < at[i - 1].end)
            return qcow2_fail(l->error, IMAGE_ERROR_INVALID, l->filename,
                              "%s overlaps %s at 0x%" PRIx64, at[i].what, at[i - 1].what,
                              at[i].start);
    }
    return true;
}

/* Into its place among the sorted ones, if nothing else lies there. */
static void insert_bitmaps(const loader *l)
{
    qcow2_ranges *ranges = l->ranges;
    const qcow2_header *header = l->header;
    add_range(l, header->bitmap_directory_offset, header->bitmap_directory_size,
              bitmap_directory);
    size_t n = ranges->count - 1;
    qcow2_range last = ranges->at[n];
    if (last.what != bitmap_directory)
        return;
    ranges->count = n;
    if (qcow2_ranges_hit(ranges, last.start, last.end))
        return;
    for (; n > 0 && ranges->at[n - 1].start > last.start; n--)
        ranges->at[n] = ranges->at[n - 1];
    ranges->at[n] = last;
    ranges->count++;
}

bool qcow2_ranges_load(int fd, const qcow2_header *header, const qcow2_layout *layout,
                       const char *filename, qcow2_ranges *ret_ranges, GError **error)
{
    ret_ranges->count = 0;
    ret_ranges->at = g_new(qcow2_range, 5 + (size_t)header->snapshot_count);
    loader l = {fd, header, layout, filename, ret_ranges, error};
    add_range(&l, 0, layout->cluster_size, "the header");
    add_range(&l, header->l1_offset, (uint64_t)header->l1_entries * 8, "the L1 table");
    add_range(&l, header->refcount_table_offset,
              (uint64_t)header->refcount_table_clusters << header->cluster_bits,
              "the refcount table");
    if (add_snapshots(&l) && sort_ranges(&l)) {
        insert_bitmaps(&l);
        return true;
    }
    qcow2_ranges_clear(ret_ranges);
    return false;
}

void qcow2_ranges_replace(qcow2_ranges *ranges, uint64_t old, uint64_t start,
                          uint64_t bytes, const char *what)
{
    size_t i = 0;
    while (i < ranges->count &&
           (ranges->at[i].start != old || strcmp(ranges->at[i].what, what) != 0))
        i++;
    if (i == ranges->count) /* an image without a size had no L1 table, at any offset */
        ranges->at = g_renew(qcow2_range, ranges->at, ++ranges->count);
    ranges->at[i] = (qcow2_range){start, start + bytes, what};
    qsort(ranges->at, ranges->count, sizeof *ranges->at, compare_ranges);
}

void qcow2_ranges_clear(qcow2_ranges *ranges)
{
    g_free(ranges->at);
    *ranges = (qcow2_ranges){0};
}

const char *qcow2_ranges_hit(const qcow2_ranges *ranges, uint64_t start, uint64_t end)
{
    size_t low = 0, high = ranges->count; /* the first range that ends after `start` */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges->at[middle].end > start)
            high = middle;
        else
            low = middle + 1;
    }
    if (low < ranges->count && ranges->at[low].start < end)
        return ranges->at[low].what;
    return NULL;
}

bool qcow2_ranges_has_bitmaps(const qcow2_ranges *ranges, const qcow2_header *header)
{
    uint64_t start = header->bitmap_directory_offset;
    return header->bitmap_directory_size &&
           qcow2_ranges_hit(ranges, start, start + 1) == bitmap_directory;
}
