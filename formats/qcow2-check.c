/*
 * qcow2-check.c: the walk over a qcow2 image's tables that precedes every decoder (O3).
 *
 * Order: the ranges of fixed place; then all entries of the L1 and of the refcount table,
 * each naming one cluster that holds a table; then the L2 tables in guest order, as far
 * as the budget goes.
 *
 * Bounds, whatever the file claims to be
 * - `tables` holds the offset of each L2 table and refcount block: 32 MiB + 8 MiB.
 * - `filter` holds a bit per host cluster that is one of them, FILTER_BITS_MAX at most
 *   (8 MiB). A file with more clusters than that (petabytes of holes, or 512-byte
 *   clusters) shares bits, and a set bit is then looked up in the sorted `tables`; each
 *   such lookup is charged to the budget, because an image could be made to need one for
 *   each of its entries.
 * - L1 and L2 are read in pieces of PIECE_BYTES, the L1 a second time for the walk:
 *   sorting it in place needs no second copy that way.
 * Together below 50 MiB, and less than a second of work on a cached file.
 *
 * Invariants of success
 * - No two tables share a cluster, and none lies over a range of qcow2-ranges.c.
 * - Every L2 entry that was looked at passes qcow2_entry_decode and names no cluster that
 *   holds a table. `complete` says that this is every entry there is.
 * Two data clusters may be one: nothing is read wrongly there, and only refcounts, which
 * a reader does not need, could tell whether that is meant.
 */
#include "formats/qcow2-internal.h"

#define PIECE_BYTES      (64u << 10)
#define PIECE_WORDS      (PIECE_BYTES / 8)
#define FILTER_BITS_MAX  ((uint64_t)1 << 26)
#define SLOW_LOOKUP_COST 64u
#define REFCOUNT_BLOCK   1u /* low bit of an offset in `tables`; else an L2 table */

typedef struct checker {
    int fd;
    const qcow2_header *header;
    qcow2_layout layout;
    const char *filename;
    qcow2_ranges ranges;
    uint64_t *tables; /* sorted */
    size_t n_tables;
    uint64_t *filter;
    uint64_t filter_mask;
    bool filter_exact;
    uint64_t *piece; /* PIECE_WORDS */
    uint64_t budget; /* bytes of L2 that may still be read */
    qcow2_check *result;
    GError **error;
} checker;

#define invalid(c, ...)                                                                  \
    qcow2_fail((c)->error, IMAGE_ERROR_INVALID, (c)->filename, __VA_ARGS__)

int qcow2_words_read(int fd, uint64_t offset, uint64_t *words, size_t count)
{
    int result = file_read_exact(fd, words, count * sizeof *words, offset);
    for (size_t i = 0; result == 0 && i < count; i++)
        words[i] = be64toh(words[i]);
    return result;
}

static bool read_piece(const checker *c, const char *what, uint64_t offset, size_t words)
{
    int result = qcow2_words_read(c->fd, offset, c->piece, words);
    if (result == 0)
        return true;
    return qcow2_fail(c->error, IMAGE_ERROR_IO, c->filename, "cannot read the %s: %s",
                      what, g_strerror(-result));
}

static void sort_few_words(uint64_t *words, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        uint64_t word = words[i];
        size_t at = i;
        for (; at > 0 && words[at - 1] > word; at--)
            words[at] = words[at - 1];
        words[at] = word;
    }
}

/* Radix sort by the byte at `shift` and those below: in place, and no input is slow. */
static void sort_words(uint64_t *words, size_t count, int shift)
{
    if (count < 32) {
        sort_few_words(words, count);
        return;
    }
    size_t next[256] = {0}, end[256], sum = 0;
    for (size_t i = 0; i < count; i++)
        next[words[i] >> shift & 255]++;
    for (unsigned digit = 0; digit < 256; digit++) {
        size_t start = sum;
        sum += next[digit];
        next[digit] = start;
        end[digit] = sum;
    }
    for (unsigned digit = 0; digit < 256; digit++) {
        while (next[digit] < end[digit]) {
            uint64_t word = words[next[digit]];
            size_t *place = &next[word >> shift & 255];
            words[next[digit]] = words[*place];
            words[(*place)++] = word;
        }
    }
    for (unsigned digit = 0; digit < 256 && shift > 0; digit++) {
        size_t start = digit ? end[digit - 1] : 0;
        sort_words(words + start, end[digit] - start, shift - 8);
    }
}

void qcow2_words_sort(uint64_t *words, size_t count)
{
    sort_words(words, count, 56);
}

static const char *table_name(uint64_t table)
{
    return table & REFCOUNT_BLOCK ? "refcount block" : "L2 table";
}

static bool add_table(checker *c, uint64_t offset, unsigned kind)
{
    const char *over =
        qcow2_ranges_hit(&c->ranges, offset, offset + c->layout.cluster_size);
    if (over)
        return invalid(c, "the %s at 0x%" PRIx64 " lies over %s", table_name(kind),
                       offset, over);
    c->tables[c->n_tables++] = offset | kind;
    return true;
}

static bool collect_l2_tables(checker *c)
{
    uint32_t n = c->header->l1_entries;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t table = 0;
        if (i % PIECE_WORDS == 0 &&
            !read_piece(c, "L1 table", c->header->l1_offset + (uint64_t)i * 8,
                        MIN(PIECE_WORDS, n - i)))
            return false;
        const char *reason =
            qcow2_l1_decode(&c->layout, c->piece[i % PIECE_WORDS], &table);
        if (reason)
            return invalid(c, "L1 entry %u: %s", i, reason);
        if (table && !add_table(c, table, 0))
            return false;
    }
    return true;
}

/* qcow2: Reference count table. */
static bool collect_refcount_blocks(checker *c)
{
    const qcow2_layout *layout = &c->layout;
    uint32_t n = c->header->refcount_table_clusters << (layout->cluster_bits - 3);
    for (uint32_t i = 0; i < n; i++) {
        if (i % PIECE_WORDS == 0 &&
            !read_piece(c, "refcount table",
                        c->header->refcount_table_offset + (uint64_t)i * 8,
                        MIN(PIECE_WORDS, n - i)))
            return false;
        uint64_t block = c->piece[i % PIECE_WORDS];
        if (block == 0)
            continue;
        if (block % layout->cluster_size != 0)
            return invalid(c, "refcount table entry %u is not aligned to a cluster", i);
        if (block >= layout->file_size ||
            layout->file_size - block < layout->cluster_size)
            return invalid(c, "the refcount block of entry %u lies outside of the file",
                           i);
        if (!add_table(c, block, REFCOUNT_BLOCK))
            return false;
    }
    return true;
}

static bool sort_tables(checker *c)
{
    qcow2_words_sort(c->tables, c->n_tables);
    for (size_t i = 1; i < c->n_tables; i++) {
        uint64_t before = c->tables[i - 1], here = c->tables[i];
        if (before >> 1 == here >> 1)
            return invalid(c, "the cluster at 0x%" PRIx64 " is %s and %s at once",
                           here & QCOW2_OFFSET_MASK, table_name(before),
                           before == here ? "another" : table_name(here));
    }
    return true;
}

static void fill_filter(checker *c)
{
    uint32_t bits = c->layout.cluster_bits;
    uint64_t clusters =
        qcow2_round_up(c->layout.file_size, c->layout.cluster_size) >> bits;
    uint64_t size = 64;
    while (size < clusters && size < FILTER_BITS_MAX)
        size *= 2;
    c->filter = g_new0(uint64_t, size / 64);
    c->filter_mask = size - 1;
    c->filter_exact = size >= clusters;
    for (size_t i = 0; i < c->n_tables; i++) {
        uint64_t bit = c->tables[i] >> bits & c->filter_mask;
        c->filter[bit / 64] |= (uint64_t)1 << bit % 64;
    }
}

/* The table in the host cluster at `cluster` (an offset), or 0. */
static uint64_t table_at(checker *c, uint64_t cluster)
{
    uint64_t bit = cluster >> c->layout.cluster_bits & c->filter_mask;
    if (!(c->filter[bit / 64] >> bit % 64 & 1))
        return 0;
    if (!c->filter_exact)
        c->budget -= MIN(c->budget, SLOW_LOOKUP_COST);
    size_t low = 0, high = c->n_tables;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->tables[middle] < cluster)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < c->n_tables && c->tables[low] >> 1 == cluster >> 1;
    return found ? c->tables[low] : 0;
}

/* What lies in the host clusters that [offset, offset + length) touches, or NULL. */
static const char *metadata_at(checker *c, uint64_t offset, uint64_t length)
{
    uint64_t size = c->layout.cluster_size;
    uint64_t end = offset + length;
    for (uint64_t at = offset & ~(size - 1); at < end; at += size) {
        uint64_t table = table_at(c, at);
        if (table)
            return table_name(table);
    }
    return qcow2_ranges_hit(&c->ranges, offset & ~(size - 1), qcow2_round_up(end, size));
}

static void count_entry(checker *c, uint64_t guest, const qcow2_entry *entry)
{
    const qcow2_layout *layout = &c->layout;
    qcow2_check *check = c->result;
    check->has_compressed |= entry->compressed;
    check->has_zero_clusters |= entry->zero != 0;
    if (guest >= layout->size)
        return;
    uint64_t in_size = MIN(layout->cluster_size, layout->size - guest);
    if (entry->compressed) {
        check->allocated_bytes += in_size;
    } else if (entry->alloc) {
        uint64_t bytes = (uint64_t)__builtin_popcount(entry->alloc)
                         << layout->subcluster_bits;
        check->allocated_bytes += MIN(bytes, in_size);
        check->has_short_clusters |= in_size > layout->data_size - entry->host_offset;
    }
}

static bool check_entry(checker *c, uint64_t guest, uint64_t word, uint64_t bitmap)
{
    qcow2_entry entry;
    const char *reason = qcow2_entry_decode(&c->layout, guest, word, bitmap, &entry);
    if (reason)
        return invalid(c, "L2 entry of guest offset 0x%" PRIx64 ": %s", guest, reason);
    const char *over = NULL;
    if (entry.compressed)
        over = metadata_at(c, entry.host_offset, entry.compressed_size);
    else if (entry.has_host && !c->layout.external)
        over = metadata_at(c, entry.host_offset, c->layout.cluster_size);
    if (over)
        return invalid(c,
                       "L2 entry of guest offset 0x%" PRIx64 ": the cluster at 0x%" PRIx64
                       " lies over %s",
                       guest, entry.host_offset, over);
    count_entry(c, guest, &entry);
    return true;
}

/* One L2 table, piece by piece, while the budget lasts. */
static bool check_l2(checker *c, uint64_t table, uint64_t guest)
{
    size_t step = (size_t)1 << (c->layout.entry_bits - 3);
    for (uint64_t at = 0; at < c->layout.cluster_size; at += PIECE_BYTES) {
        size_t bytes = (size_t)MIN(PIECE_BYTES, c->layout.cluster_size);
        if (c->budget < bytes) {
            c->result->complete = false;
            return true;
        }
        c->budget -= bytes;
        if (!read_piece(c, "L2 table", table + at, bytes / 8))
            return false;
        for (size_t i = 0; i < bytes / 8; i += step) {
            uint64_t bitmap = step == 2 ? c->piece[i + 1] : 0;
            if ((c->piece[i] || bitmap) && !check_entry(c, guest, c->piece[i], bitmap))
                return false;
            guest += c->layout.cluster_size;
        }
    }
    return true;
}

static bool walk_l2_tables(checker *c)
{
    g_autofree uint64_t *l1 = g_new(uint64_t, PIECE_WORDS);
    uint32_t n = c->header->l1_entries;
    c->result->complete = true;
    for (uint32_t i = 0; i < n && c->result->complete; i++) {
        uint64_t table = 0;
        if (i % PIECE_WORDS == 0) {
            size_t words = MIN(PIECE_WORDS, n - i);
            if (!read_piece(c, "L1 table", c->header->l1_offset + (uint64_t)i * 8, words))
                return false;
            memcpy(l1, c->piece, words * sizeof *l1);
        }
        const char *reason = qcow2_l1_decode(&c->layout, l1[i % PIECE_WORDS], &table);
        if (reason)
            return invalid(c, "L1 entry %u: %s", i, reason);
        uint64_t guest = (uint64_t)i << (c->layout.l2_bits + c->layout.cluster_bits);
        if (table && !check_l2(c, table, guest))
            return false;
    }
    return true;
}

static bool run_check(checker *c)
{
    size_t refcount_entries = (size_t)c->header->refcount_table_clusters
                              << (c->layout.cluster_bits - 3);
    if (!qcow2_ranges_load(c->fd, c->header, &c->layout, c->filename, &c->ranges,
                           c->error))
        return false;
    c->piece = g_new(uint64_t, PIECE_WORDS);
    c->tables = g_new(uint64_t, c->header->l1_entries + refcount_entries);
    if (!collect_l2_tables(c) || !collect_refcount_blocks(c) || !sort_tables(c))
        return false;
    fill_filter(c);
    return walk_l2_tables(c);
}

bool qcow2_check_tables(int fd, uint64_t data_size, const qcow2_header *header,
                        const char *filename, uint64_t *budget, qcow2_check *ret_check,
                        GError **error)
{
    uint64_t file_size = 0;
    *ret_check = (qcow2_check){0};
    int result = file_get_size(fd, &file_size, NULL);
    if (result < 0)
        return qcow2_fail(error, IMAGE_ERROR_IO, filename, "cannot stat: %s",
                          g_strerror(-result));
    checker c = {.fd = fd,
                 .header = header,
                 .filename = filename,
                 .budget = *budget,
                 .result = ret_check,
                 .error = error};
    bool external = (header->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
    qcow2_layout_init(&c.layout, header, file_size, external ? data_size : file_size);
    bool ok = run_check(&c);
    *budget = c.budget;
    g_free(c.filter);
    g_free(c.tables);
    g_free(c.piece);
    qcow2_ranges_clear(&c.ranges);
    return ok;
}
