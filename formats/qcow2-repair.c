/*
 * qcow2-repair.c: refcounts after an unclean end.
 *
 * Order: the bitmaps are judged; all tables are walked once to learn which refcount blocks
 * are needed and to place those that are missing; then, window by window, every count is
 * computed and the tables that will be written are looked at; only then, window by window
 * again (a single one is kept), the blocks are written and the COPIED flags corrected.
 * Last the refcount table, then the dirty bit.
 *
 * Bounds, whatever the file claims to be
 * - A window is as many refcount blocks, as they will stand on disk, as fit into
 *   WINDOW_BYTES; the numbers of all blocks together are 8 MiB (the largest refcount table)
 *   and some more. With the tables of qcow2-references.c: below 256 MiB.
 * - Whatever is read is charged to a budget: BUDGET_BASE and BUDGET_FACTOR times what the
 *   file really occupies. New blocks are bounded likewise, or a small file could grow by
 *   terabytes.
 *
 * Invariants
 * - Nothing is written before all counts were computed, none is larger than its entry
 *   holds, and no cluster of header, L1, L2, snapshots or refcount structures is used for
 *   anything else: what is written is what it claims to be. Only the autoclear bit of
 *   bitmaps that are not valid goes before that.
 * - New blocks and tables lie behind the last cluster that anything refers to, or referred
 *   to before. They are synced before the first word points to them.
 * - Until the last write the dirty bit stands, so that nobody believes a refcount, and each
 *   write in between leaves tables of the same form: a crash leaves what was there, a little
 *   more correct.
 */
#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include <errno.h>
#include <sys/stat.h>

#define BLOCKS_MAX    (QCOW2_REFCOUNT_TABLE_BYTES_MAX / 8)
#define WINDOW_BYTES  ((size_t)128 << 20)
#define BUDGET_BASE   ((uint64_t)4 << 30)
#define BUDGET_FACTOR 16u
#define GROWTH_BASE   ((uint64_t)64 << 20)
#define GROWTH_PART   16u /* of the occupied bytes */
#define NO_SLOT       UINT32_MAX
#define NONE          UINT64_MAX

typedef struct repair {
    int fd;
    qcow2_header *header;
    qcow2_layout *layout;
    const char *filename;
    qcow2_references references;
    uint64_t allocated;  /* bytes that the file occupies */
    unsigned block_bits; /* log2 of the entries of a block */
    /* All blocks by their place in the refcount table. */
    uint64_t *blocks; /* offsets; 0: there is none */
    uint8_t *needed;  /* BLOCKS_MAX */
    uint8_t *missing; /* it is new */
    uint64_t n_blocks, n_missing;
    uint64_t highest; /* cluster that is or was referred to */
    /* Where the refcount table will be; grown: not where it is. */
    uint64_t table_offset;
    uint32_t table_clusters;
    bool grown;
    /* The window: blocks [low, high). */
    uint64_t low, high;
    uint32_t *slots; /* BLOCKS_MAX: where in `counts` */
    uint8_t *counts;
    uint64_t overflow; /* a cluster, or NONE */
    uint8_t *buffer;   /* one block */
    GError **error;
} repair;

#define invalid(r, ...)                                                                  \
    qcow2_fail((r)->error, IMAGE_ERROR_INVALID, (r)->filename, __VA_ARGS__)

static bool io_failed(const repair *r, const char *what, int result)
{
    return qcow2_fail(r->error, IMAGE_ERROR_IO, r->filename, "cannot %s: %s", what,
                      g_strerror(-result));
}

static uint32_t cluster_bits(const repair *r)
{
    return r->layout->cluster_bits;
}

/* ---- Which blocks are needed, and where they will be ------------------------------- */

static void need_block(repair *r, uint64_t block)
{
    if (!r->needed[block] && r->blocks[block] == 0)
        r->n_missing++;
    r->needed[block] = 1;
    r->n_blocks = MAX(r->n_blocks, block + 1);
}

/* What lies behind the last block that a table can name shows in `highest`. */
static void mark(void *user, uint64_t first, uint64_t count, uint64_t times)
{
    repair *r = user;
    uint64_t last = first + count - 1;
    (void)times;
    r->highest = MAX(r->highest, last);
    for (uint64_t block = first >> r->block_bits;
         block <= last >> r->block_bits && block < BLOCKS_MAX; block++)
        need_block(r, block);
}

static bool load_blocks(repair *r)
{
    const qcow2_layout *layout = r->layout;
    uint64_t n = (uint64_t)r->header->refcount_table_clusters << (cluster_bits(r) - 3);
    int result = qcow2_words_read(r->fd, r->header->refcount_table_offset, r->blocks, n);
    if (result < 0)
        return io_failed(r, "read the refcount table", result);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t offset = r->blocks[i];
        if (offset == 0)
            continue;
        if (offset % layout->cluster_size != 0 || offset > layout->file_size ||
            layout->cluster_size > layout->file_size - offset)
            return invalid(r,
                           "refcount table entry %" PRIu64
                           " is not valid (qemu-img check -r all)",
                           i);
        need_block(r, i);
        mark(r, offset >> cluster_bits(r), 1, 1);
    }
    mark(r, r->header->refcount_table_offset >> cluster_bits(r),
         r->header->refcount_table_clusters, 1);
    return true;
}

/* Clusters of a table with n_blocks entries. */
static uint32_t table_clusters(const repair *r)
{
    uint64_t bytes = qcow2_round_up(r->n_blocks * 8, r->layout->cluster_size);
    return (uint32_t)(bytes >> cluster_bits(r));
}

/* How many clusters have to be added behind the highest. They need refcounts, too. */
static uint64_t plan_growth(repair *r)
{
    uint64_t total = 0, before;
    do {
        before = total;
        r->grown = table_clusters(r) > r->header->refcount_table_clusters;
        total = r->n_missing + (r->grown ? table_clusters(r) : 0);
        uint64_t first = r->highest + 1, end = first + total;
        for (uint64_t block = first >> r->block_bits;
             total > 0 && block <= (end - 1) >> r->block_bits && block < BLOCKS_MAX;
             block++)
            need_block(r, block);
    } while (total != before);
    return total;
}

static void place_missing(repair *r)
{
    uint64_t next = r->highest + 1;
    for (uint64_t i = 0; i < r->n_blocks; i++) {
        if (!r->needed[i] || r->blocks[i])
            continue;
        r->blocks[i] = next++ << cluster_bits(r);
        r->missing[i] = 1;
    }
    r->table_offset = r->header->refcount_table_offset;
    r->table_clusters = r->header->refcount_table_clusters;
    if (r->grown) {
        r->table_offset = next << cluster_bits(r);
        r->table_clusters = table_clusters(r);
    }
}

static bool make_plan(repair *r)
{
    if (!load_blocks(r) || !qcow2_references_walk(&r->references, mark, r, r->error))
        return false;
    uint64_t total = plan_growth(r);
    if ((r->highest + total) >> r->block_bits >= BLOCKS_MAX)
        return invalid(r, "its refcount table would have to be too large");
    if (total << cluster_bits(r) > GROWTH_BASE + r->allocated / GROWTH_PART)
        return invalid(r, "too many refcounts are missing (qemu-img check -r all)");
    place_missing(r);
    return true;
}

/* ---- The counts of a window -------------------------------------------------------- */

/* The next window from `low` on; false: there is none. */
static bool enter_window(repair *r, uint64_t low)
{
    uint32_t slots = (uint32_t)(WINDOW_BYTES >> cluster_bits(r)), used = 0;
    uint64_t block = low;
    for (; block < r->n_blocks && used < slots; block++)
        r->slots[block] = r->blocks[block] ? used++ : NO_SLOT;
    r->low = low;
    r->high = block;
    return low < block;
}

static void clip(const repair *r, uint64_t *first, uint64_t *end)
{
    *first = MAX(*first, r->low << r->block_bits);
    *end = MIN(*end, r->high << r->block_bits);
}

/* The block that has the count of a cluster of this window, and the index in it. */
static uint8_t *count_place(const repair *r, uint64_t cluster, uint64_t *ret_index)
{
    uint32_t slot = r->slots[cluster >> r->block_bits];
    *ret_index = cluster & (((uint64_t)1 << r->block_bits) - 1);
    return slot == NO_SLOT ? NULL : r->counts + ((size_t)slot << cluster_bits(r));
}

static void count(void *user, uint64_t first, uint64_t n, uint64_t times)
{
    repair *r = user;
    unsigned order = r->header->refcount_order;
    uint64_t end = first + n, max = qcow2_refword_max(order), index;
    clip(r, &first, &end);
    for (uint64_t cluster = first; cluster < end; cluster++) {
        uint8_t *block = count_place(r, cluster, &index);
        uint64_t value = block ? qcow2_refword_get(block, index, order) : max;
        if (times > max - value)
            r->overflow = cluster;
        else
            qcow2_refword_set(block, index, order, value + times);
    }
}

static bool count_window(repair *r)
{
    uint64_t used = 0;
    for (uint64_t i = r->low; i < r->high; i++)
        used += r->slots[i] != NO_SLOT;
    uint64_t bytes = used << cluster_bits(r);
    if (!qcow2_references_charge(&r->references, bytes, r->error))
        return false;
    memset(r->counts, 0, bytes);
    if (!qcow2_references_walk(&r->references, count, r, r->error))
        return false;
    for (uint64_t i = 0; i < r->n_blocks; i++) {
        if (r->blocks[i])
            count(r, r->blocks[i] >> cluster_bits(r), 1, 1);
    }
    count(r, r->table_offset >> cluster_bits(r), r->table_clusters, 1);
    if (r->overflow == NONE)
        return true;
    return invalid(r,
                   "more refers to the cluster at 0x%" PRIx64
                   " than its refcount of %u bits can say (qemu-img check -r all)",
                   r->overflow << cluster_bits(r), 1u << r->header->refcount_order);
}

/* A table's clusters, as far as they are in the window, must have this count. */
static bool expect(const repair *r, uint64_t first, uint64_t n, uint64_t times,
                   const char *what)
{
    uint64_t end = first + n, index;
    clip(r, &first, &end);
    for (uint64_t cluster = first; cluster < end; cluster++) {
        const uint8_t *block = count_place(r, cluster, &index);
        uint64_t value =
            block ? qcow2_refword_get(block, index, r->header->refcount_order) : 0;
        if (value != times)
            return invalid(r,
                           "the cluster at 0x%" PRIx64
                           " is %s and something else at once (qemu-img check -r all)",
                           cluster << cluster_bits(r), what);
    }
    return true;
}

static bool verify_window(repair *r)
{
    const qcow2_references *references = &r->references;
    for (size_t i = 0; i < references->ranges.count; i++) {
        const qcow2_range *range = &references->ranges.at[i];
        bool left = r->grown && range->start == r->header->refcount_table_offset;
        if (!expect(r, range->start >> cluster_bits(r),
                    (range->end - range->start) >> cluster_bits(r), left ? 0 : 1,
                    range->what))
            return false;
    }
    for (size_t i = 0; i < references->n_tables;) {
        uint64_t times, table = qcow2_references_table(references, &i, &times);
        if (!expect(r, table >> cluster_bits(r), 1, times, "an L2 table"))
            return false;
    }
    for (uint64_t i = 0; i < r->n_blocks; i++) {
        if (r->blocks[i] &&
            !expect(r, r->blocks[i] >> cluster_bits(r), 1, 1, "a refcount block"))
            return false;
    }
    return true;
}

/* ---- Writing ------------------------------------------------------------------------- */

static bool write_block(const repair *r, uint64_t i)
{
    size_t bytes = (size_t)r->layout->cluster_size;
    const uint8_t *counts = r->counts + (size_t)r->slots[i] * bytes;
    if (!r->missing[i]) {
        int result = file_read_exact(r->fd, r->buffer, bytes, r->blocks[i]);
        if (result < 0)
            return io_failed(r, "read a refcount block", result);
        if (memcmp(r->buffer, counts, bytes) == 0)
            return true;
    }
    int result = file_write_full(r->fd, counts, bytes, r->blocks[i]);
    return result == 0 || io_failed(r, "write a refcount block", result);
}

static bool counted(const void *user, uint64_t cluster, bool *ret_one)
{
    const repair *r = user;
    uint64_t first = cluster, end = cluster + 1, index;
    clip(r, &first, &end);
    if (first >= end)
        return false;
    const uint8_t *block = count_place(r, cluster, &index);
    *ret_one = block && qcow2_refword_get(block, index, r->header->refcount_order) == 1;
    return true;
}

static bool write_window(repair *r)
{
    for (uint64_t i = r->low; i < r->high; i++) {
        if (r->slots[i] != NO_SLOT && !write_block(r, i))
            return false;
    }
    return qcow2_copied_correct(&r->references, counted, r, r->error);
}

/* Writes table entries [from, to), whose place is at table_offset. */
static int write_entries(const repair *r, uint64_t from, uint64_t to)
{
    g_autofree uint64_t *words = g_new(uint64_t, to - from);
    for (uint64_t i = from; i < to; i++)
        words[i - from] = htobe64(r->blocks[i]);
    int result =
        file_write_full(r->fd, words, (to - from) * 8, r->table_offset + from * 8);
    return result < 0 ? result : file_sync(r->fd);
}

static int write_table(repair *r)
{
    uint64_t from = NONE, to = 0;
    if (r->grown) {
        uint64_t entries = (uint64_t)r->table_clusters << (cluster_bits(r) - 3);
        int result = write_entries(r, 0, entries);
        return result < 0 ? result
                          : qcow2_update_refcount_table(r->fd, r->table_offset,
                                                        r->table_clusters);
    }
    for (uint64_t i = 0; i < r->n_blocks; i++) {
        if (!r->missing[i])
            continue;
        from = MIN(from, i);
        to = i + 1;
    }
    return to ? write_entries(r, from, to) : 0;
}

/* All blocks and flags are written. */
static bool finish(repair *r)
{
    uint64_t file_size;
    int result = file_sync(r->fd);
    if (result == 0)
        result = write_table(r);
    if (result == 0)
        result = qcow2_update_incompatible(r->fd, 0, QCOW2_INCOMPAT_DIRTY);
    if (result == 0)
        result = file_get_size(r->fd, &file_size, NULL);
    if (result < 0)
        return io_failed(r, "repair the refcounts", result);
    r->header->refcount_table_offset = r->table_offset;
    r->header->refcount_table_clusters = r->table_clusters;
    r->header->incompatible &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
    r->layout->file_size = file_size;
    if (!r->layout->external)
        r->layout->data_size = file_size;
    return true;
}

/* ---- All of it ------------------------------------------------------------------------ */

static bool find_allocated(repair *r)
{
    struct stat st;
    bool is_device = false;
    uint64_t size = 0;
    int result = file_get_size(r->fd, &size, &is_device);
    if (result == 0 && fstat(r->fd, &st) < 0)
        result = -errno;
    if (result < 0)
        return io_failed(r, "stat", result);
    r->allocated = is_device ? size : (uint64_t)st.st_blocks * 512;
    return true;
}

/* Bitmaps whose clusters cannot be counted are given up before anything is. */
static bool drop_bad_bitmaps(const repair *r)
{
    int result = qcow2_bitmaps_drop_invalid(r->fd, r->header, r->layout, BUDGET_BASE);
    return result == 0 || io_failed(r, "repair the bitmaps", result);
}

static bool run_repair(repair *r)
{
    if (!find_allocated(r) || !drop_bad_bitmaps(r) ||
        !qcow2_references_collect(&r->references, r->fd, r->header, r->layout,
                                  r->filename, BUDGET_BASE + BUDGET_FACTOR * r->allocated,
                                  r->error) ||
        !make_plan(r))
        return false;
    bool single = false;
    for (uint64_t low = 0; enter_window(r, low); low = r->high) {
        single = low == 0 && r->high == r->n_blocks;
        if (!count_window(r) || !verify_window(r))
            return false;
    }
    for (uint64_t low = 0; enter_window(r, low); low = r->high) {
        if ((!single && !count_window(r)) || !write_window(r))
            return false;
    }
    return finish(r);
}

bool qcow2_repair_refcounts(int fd, qcow2_header *header, qcow2_layout *layout,
                            const char *filename, GError **error)
{
    repair r = {.fd = fd,
                .header = header,
                .layout = layout,
                .filename = filename,
                .block_bits = layout->cluster_bits + 3 - header->refcount_order,
                .overflow = NONE,
                .error = error};
    r.blocks = g_new0(uint64_t, BLOCKS_MAX);
    r.needed = g_new0(uint8_t, BLOCKS_MAX);
    r.missing = g_new0(uint8_t, BLOCKS_MAX);
    r.slots = g_new(uint32_t, BLOCKS_MAX);
    r.counts = g_malloc(WINDOW_BYTES);
    r.buffer = g_malloc(layout->cluster_size);
    bool ok = run_repair(&r);
    qcow2_references_clear(&r.references);
    g_free(r.blocks);
    g_free(r.needed);
    g_free(r.missing);
    g_free(r.slots);
    g_free(r.counts);
    g_free(r.buffer);
    return ok;
}
