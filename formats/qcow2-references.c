/*
 * qcow2-references.c: who refers to which host cluster: what an image's refcounts have to
 * be, whatever they are.
 *
 * An L2 table that several L1 tables share is read once, and what it refers to counts as
 * often as the table does. So a walk costs as much as there are tables, not as many times
 * that as there are snapshots.
 *
 * Bounds, whatever the file claims to be
 * - `tables` holds TABLES_MAX words at most (64 MiB). A word is the offset of an L2 table,
 *   which is a multiple of 512, and in the low bits how often it is referred to; what does
 *   not fit there takes another word. Equal ones are merged whenever the list is full.
 * - Everything that is read is charged to a budget.
 *
 * Invariant: every cluster that is reported lies in the file, its last byte excepted.
 */
#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include <errno.h>

#define TABLES_MAX   ((size_t)8 << 20)
#define TABLES_START 1024u
#define TIMES_MASK   511u
#define PIECE_WORDS  8192u

#define invalid(r, ...) qcow2_fail(error, IMAGE_ERROR_INVALID, (r)->filename, __VA_ARGS__)

bool qcow2_references_charge(qcow2_references *r, uint64_t bytes, GError **error)
{
    if (r->budget < bytes) {
        r->budget = 0;
        return invalid(r, "its tables are too large for a repair when it is opened "
                          "(qemu-img check -r all)");
    }
    r->budget -= bytes;
    return true;
}

static bool read_words(qcow2_references *r, uint64_t offset, size_t count, GError **error)
{
    if (!qcow2_references_charge(r, count * 8, error))
        return false;
    int result = qcow2_words_read(r->fd, offset, r->piece, count);
    if (result == 0)
        return true;
    return qcow2_fail(error, IMAGE_ERROR_IO, r->filename, "cannot read a table: %s",
                      g_strerror(-result));
}

/* Sorts the list and merges what is equal as far as it fits into a word. */
static void merge_tables(qcow2_references *r)
{
    size_t kept = 0;
    qcow2_words_sort(r->tables, r->n_tables);
    for (size_t i = 0; i < r->n_tables; i++) {
        uint64_t word = r->tables[i], times = word & TIMES_MASK;
        uint64_t last = kept ? r->tables[kept - 1] : 0;
        bool same = kept && (last & ~(uint64_t)TIMES_MASK) == word - times;
        if (same && (last & TIMES_MASK) + times <= TIMES_MASK)
            r->tables[kept - 1] += times;
        else
            r->tables[kept++] = word;
    }
    r->n_tables = kept;
}

static bool add_table(qcow2_references *r, uint64_t offset, GError **error)
{
    if (r->n_tables == r->tables_size) {
        merge_tables(r);
        if (r->n_tables > r->tables_size / 2 && r->tables_size == TABLES_MAX)
            return invalid(r, "it has too many L2 tables for a repair when it is opened "
                              "(qemu-img check -r all)");
        if (r->n_tables > r->tables_size / 2 || r->tables_size == 0) {
            r->tables_size = MAX(TABLES_START, r->tables_size * 2);
            r->tables = g_renew(uint64_t, r->tables, r->tables_size);
        }
    }
    r->tables[r->n_tables++] = offset | 1;
    return true;
}

static bool collect_l1(void *user, uint64_t l1_offset, uint32_t entries, GError **error)
{
    qcow2_references *r = user;
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t table = 0;
        if (i % PIECE_WORDS == 0 && !read_words(r, l1_offset + (uint64_t)i * 8,
                                                MIN(PIECE_WORDS, entries - i), error))
            return false;
        const char *reason =
            qcow2_l1_decode(r->layout, r->piece[i % PIECE_WORDS], &table);
        if (reason)
            return invalid(r,
                           "entry %u of the L1 table at 0x%" PRIx64
                           ": %s (qemu-img check -r all)",
                           i, l1_offset, reason);
        if (table && !add_table(r, table, error))
            return false;
    }
    return true;
}

bool qcow2_references_collect(qcow2_references *r, int fd, const qcow2_header *header,
                              const qcow2_layout *layout, const char *filename,
                              uint64_t budget, GError **error)
{
    *r = (qcow2_references){.fd = fd,
                            .header = header,
                            .layout = layout,
                            .filename = filename,
                            .budget = budget};
    r->piece = g_new(uint64_t, PIECE_WORDS);
    if (!qcow2_ranges_load(fd, header, layout, filename, &r->ranges, error) ||
        !collect_l1(r, header->l1_offset, header->l1_entries, error) ||
        !qcow2_snapshots_walk(fd, header, layout, filename, collect_l1, r, NULL, error))
        return false;
    merge_tables(r);
    return true;
}

void qcow2_references_clear(qcow2_references *r)
{
    g_free(r->piece);
    g_free(r->tables);
    qcow2_ranges_clear(&r->ranges);
    *r = (qcow2_references){0};
}

uint64_t qcow2_references_table(const qcow2_references *r, size_t *at,
                                uint64_t *ret_times)
{
    uint64_t offset = r->tables[*at] & ~(uint64_t)TIMES_MASK;
    *ret_times = 0;
    for (; *at < r->n_tables; (*at)++) {
        if ((r->tables[*at] & ~(uint64_t)TIMES_MASK) != offset)
            break;
        *ret_times += r->tables[*at] & TIMES_MASK;
    }
    return offset;
}

static void visit_entry(const qcow2_layout *layout, const qcow2_entry *entry,
                        uint64_t times, qcow2_reference_visit *visit, void *user)
{
    uint64_t first = entry->host_offset >> layout->cluster_bits, last = first;
    if (entry->compressed)
        last = (entry->host_offset + entry->compressed_size - 1) >> layout->cluster_bits;
    if (entry->compressed || entry->has_host)
        visit(user, first, last - first + 1, times);
}

/* Without a data file, where all that depends on the guest's offset is elsewhere. */
static bool walk_l2(qcow2_references *r, uint64_t table, uint64_t times,
                    qcow2_reference_visit *visit, void *user, GError **error)
{
    const qcow2_layout *layout = r->layout;
    size_t words = (size_t)(layout->cluster_size / 8),
           step = layout->entry_bits == 4 ? 2 : 1;
    for (size_t i = 0; i < words; i += step) {
        qcow2_entry entry;
        size_t k = i % PIECE_WORDS;
        if (k == 0 && !read_words(r, table + i * 8, MIN(PIECE_WORDS, words), error))
            return false;
        uint64_t bitmap = step == 2 ? r->piece[k + 1] : 0;
        if (!(r->piece[k] | bitmap))
            continue;
        const char *reason = qcow2_entry_decode(layout, 0, r->piece[k], bitmap, &entry);
        if (reason)
            return invalid(r,
                           "entry %zu of the L2 table at 0x%" PRIx64
                           ": %s (qemu-img check -r all)",
                           i / step, table, reason);
        visit_entry(layout, &entry, times, visit, user);
    }
    return true;
}

static bool walk_bitmaps(qcow2_references *r, qcow2_reference_visit *visit, void *user,
                         GError **error)
{
    int result = qcow2_bitmaps_walk(r->fd, r->header, r->layout, &r->budget, visit, user);
    if (result == -E2BIG)
        return qcow2_references_charge(r, UINT64_MAX, error);
    if (result == 0)
        return true;
    return qcow2_fail(error, IMAGE_ERROR_IO, r->filename, "cannot read the bitmaps: %s",
                      g_strerror(-result));
}

bool qcow2_references_walk(qcow2_references *r, qcow2_reference_visit *visit, void *user,
                           GError **error)
{
    uint32_t bits = r->layout->cluster_bits;
    for (size_t i = 0; i < r->ranges.count; i++) {
        const qcow2_range *range = &r->ranges.at[i];
        if (range->start != r->header->refcount_table_offset)
            visit(user, range->start >> bits, (range->end - range->start) >> bits, 1);
    }
    for (size_t i = 0; i < r->n_tables;) {
        uint64_t times, table = qcow2_references_table(r, &i, &times);
        visit(user, table >> bits, 1, times);
        if (!r->layout->external && !walk_l2(r, table, times, visit, user, error))
            return false;
    }
    return walk_bitmaps(r, visit, user, error);
}
