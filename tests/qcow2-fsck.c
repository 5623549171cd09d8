/*
 * qcow2-fsck.c: see qcow2-fsck.h.
 *
 * Everything that names a cluster adds a reference to it and claims it for a use. Of two
 * claims of one cluster only these go together: several compressed clusters; and a
 * snapshot's table or data with the same use by the active tables or another snapshot.
 */
#include "tests/qcow2-fsck.h"
#include <fcntl.h>
#include <glib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define OFFSET_MASK 0x00fffffffffffe00u
#define COPIED      ((uint64_t)1 << 63)
#define PACKED      ((uint64_t)1 << 62)

typedef enum use {
    USE_NONE,
    USE_HEADER,
    USE_L1,
    USE_L2,
    USE_REFCOUNTS,
    USE_SNAPSHOTS,
    USE_BITMAPS,
    USE_DATA,
    USE_PACKED
} use;

static const char *const use_names[] = {"nothing",     "the header", "an L1 table",
                                        "an L2 table", "refcounts",  "snapshots",
                                        "bitmaps",     "data",       "compressed data"};

typedef struct fsck {
    const uint8_t *bytes; /* of the file, with a cluster of zeroes behind it */
    uint64_t size;
    unsigned cluster_bits, refcount_order;
    uint64_t cluster, incompatible, table_offset, table_entries;
    uint64_t count; /* host clusters */
    uint32_t *refs;
    uint8_t *uses;
    char *error;
} fsck;

static void G_GNUC_PRINTF(2, 3) fail(fsck *f, const char *format, ...)
{
    if (f->error)
        return;
    va_list args;
    va_start(args, format);
    f->error = g_strdup_vprintf(format, args);
    va_end(args);
}

static uint64_t get(const fsck *f, uint64_t offset, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | (offset + i < f->size ? f->bytes[offset + i] : 0);
    return value;
}

/* As QEMU: less than a cluster may lie behind the end. False: it cannot be looked at. */
static bool refer(fsck *f, uint64_t offset, uint64_t length, use to, bool shared)
{
    uint64_t end = offset + length;
    if (length == 0)
        return true;
    if (offset == 0 && to != USE_HEADER)
        fail(f, "%s at offset 0", use_names[to]);
    else if (end > f->size && end - f->size >= f->cluster)
        fail(f, "%s at %#" G_GINT64_MODIFIER "x behind the end of the file",
             use_names[to], offset);
    else
        for (uint64_t c = offset >> f->cluster_bits; c <= (end - 1) >> f->cluster_bits;
             c++) {
            if (f->uses[c] != USE_NONE &&
                (f->uses[c] != to || !(shared || to == USE_PACKED)))
                fail(f, "cluster %" G_GUINT64_FORMAT " is %s and %s", c,
                     use_names[f->uses[c]], use_names[to]);
            f->uses[c] = (uint8_t)to;
            f->refs[c]++;
        }
    return !f->error;
}

static uint64_t refcount_of(const fsck *f, uint64_t cluster)
{
    unsigned bits = 1u << f->refcount_order;
    uint64_t per_block = (f->cluster * 8) >> f->refcount_order;
    if (cluster / per_block >= f->table_entries)
        return 0;
    uint64_t block = get(f, f->table_offset + cluster / per_block * 8, 8) & OFFSET_MASK;
    uint64_t bit = cluster % per_block * bits;
    if (block == 0)
        return 0;
    if (bits >= 8)
        return get(f, block + bit / 8, bits / 8);
    return get(f, block + bit / 8, 1) >> (bit % 8) & ((1u << bits) - 1);
}

/* ---- What refers to clusters --------------------------------------------------------- */

static void check_copied(fsck *f, uint64_t word, uint64_t offset, const char *what)
{
    bool once = refcount_of(f, offset >> f->cluster_bits) == 1;
    if (!(f->incompatible & 1) && once != !!(word & COPIED))
        fail(f, "%s %#" G_GINT64_MODIFIER "x: COPIED is %d, refcount %" G_GUINT64_FORMAT,
             what, offset, !!(word & COPIED), refcount_of(f, offset >> f->cluster_bits));
}

static void walk_packed(fsck *f, uint64_t word, bool shared)
{
    unsigned bits = 62 - (f->cluster_bits - 8);
    uint64_t offset = word & (((uint64_t)1 << bits) - 1);
    uint64_t sectors = ((word & (PACKED - 1)) >> bits) + 1;
    if (word & COPIED)
        fail(f, "a compressed cluster is COPIED");
    refer(f, offset & ~(uint64_t)511, sectors * 512, USE_PACKED, shared);
}

static void walk_l2(fsck *f, uint64_t table, bool active)
{
    unsigned entry = f->incompatible & 16 ? 16 : 8;
    for (uint64_t at = table; at < table + f->cluster && !f->error; at += entry) {
        uint64_t word = get(f, at, 8), offset = word & OFFSET_MASK;
        if (word & PACKED)
            walk_packed(f, word, !active);
        else if (offset == 0 && !(f->incompatible & 4) && word & COPIED)
            fail(f, "COPIED without a cluster");
        else if (offset & (f->cluster - 1))
            fail(f, "unaligned data cluster");
        else if (offset != 0 && !(f->incompatible & 4)) {
            if (active)
                check_copied(f, word, offset, "data");
            refer(f, offset, f->cluster, USE_DATA, !active);
        }
    }
}

static void walk_l1(fsck *f, uint64_t table, uint64_t entries, bool active)
{
    if (!refer(f, table, entries * 8, USE_L1, false))
        return;
    for (uint64_t i = 0; i < entries && !f->error; i++) {
        uint64_t word = get(f, table + 8 * i, 8), offset = word & OFFSET_MASK;
        if (offset == 0)
            continue;
        if (offset & (f->cluster - 1))
            fail(f, "unaligned L2 table");
        if (active)
            check_copied(f, word, offset, "L2 table");
        if (refer(f, offset, f->cluster, USE_L2, !active))
            walk_l2(f, offset, active);
    }
}

static void walk_snapshots(fsck *f, uint64_t table, uint64_t count)
{
    uint64_t at = table;
    for (uint64_t i = 0; i < count && !f->error; i++) {
        walk_l1(f, get(f, at, 8), get(f, at + 8, 4), false);
        uint64_t length =
            40 + get(f, at + 36, 4) + get(f, at + 12, 2) + get(f, at + 14, 2);
        at += (length + 7) / 8 * 8;
    }
    refer(f, table, at - table, USE_SNAPSHOTS, false);
}

static void walk_bitmaps(fsck *f, uint64_t directory, uint64_t size)
{
    refer(f, directory, size, USE_BITMAPS, false);
    for (uint64_t at = directory; at < directory + size && !f->error;) {
        uint64_t table = get(f, at, 8), entries = get(f, at + 8, 4);
        refer(f, table, entries * 8, USE_BITMAPS, false);
        for (uint64_t i = 0; i < entries && !f->error; i++)
            if (get(f, table + 8 * i, 8) & OFFSET_MASK)
                refer(f, get(f, table + 8 * i, 8) & OFFSET_MASK, f->cluster, USE_BITMAPS,
                      false);
        at += (24 + get(f, at + 18, 2) + get(f, at + 20, 4) + 7) / 8 * 8;
    }
}

static void walk_extensions(fsck *f)
{
    uint64_t at = get(f, 4, 4) == 2 ? 72 : get(f, 100, 4);
    while (at + 8 <= f->cluster && get(f, at, 4) != 0) {
        if (get(f, at, 4) == 0x23852875 && get(f, 88, 8) & 1)
            walk_bitmaps(f, get(f, at + 24, 8), get(f, at + 16, 8));
        at += 8 + (get(f, at + 4, 4) + 7) / 8 * 8;
    }
}

static void walk_refcounts(fsck *f)
{
    refer(f, f->table_offset, f->table_entries * 8, USE_REFCOUNTS, false);
    for (uint64_t i = 0; i < f->table_entries && !f->error; i++) {
        uint64_t word = get(f, f->table_offset + 8 * i, 8);
        if (word & (f->cluster - 1))
            fail(f, "unaligned refcount block");
        if (word)
            refer(f, word, f->cluster, USE_REFCOUNTS, false);
    }
}

static void walk_all(fsck *f)
{
    refer(f, 0, f->cluster, USE_HEADER, false);
    walk_refcounts(f);
    walk_l1(f, get(f, 40, 8), get(f, 36, 4), true);
    walk_snapshots(f, get(f, 64, 8), get(f, 60, 4));
    walk_extensions(f);
}

/* All that the refcount blocks count, also behind the end of the file. */
static uint64_t compare(fsck *f)
{
    uint64_t leaks = 0, per_block = (f->cluster * 8) >> f->refcount_order;
    uint64_t counted = MAX(f->table_entries * per_block, f->count);
    for (uint64_t c = 0; c < counted && !f->error; c++) {
        uint64_t refcount = refcount_of(f, c);
        uint32_t refs = c < f->count ? f->refs[c] : 0;
        if (refcount < refs)
            fail(f,
                 "cluster %" G_GUINT64_FORMAT " (%s): refcount %" G_GUINT64_FORMAT
                 ", references %u",
                 c, use_names[f->uses[c]], refcount, refs);
        leaks += refcount > refs;
        if (c >= f->count && c % per_block == 0 &&
            !(get(f, f->table_offset + c / per_block * 8, 8) & OFFSET_MASK))
            c += per_block - 1;
    }
    return leaks;
}

qcow2_fsck qcow2_fsck_run(const char *path)
{
    struct stat st;
    qcow2_fsck result = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    g_assert(fd >= 0 && fstat(fd, &st) == 0);
    fsck f = {.size = (uint64_t)st.st_size};
    void *map = mmap(NULL, (size_t)f.size + 1, PROT_READ, MAP_PRIVATE, fd, 0);
    g_assert(map != MAP_FAILED);
    close(fd);
    f.bytes = map;
    bool v3 = get(&f, 4, 4) == 3;
    f.cluster_bits = (unsigned)get(&f, 20, 4);
    if (get(&f, 0, 4) != 0x514649fb || f.cluster_bits < 9 || f.cluster_bits > 21) {
        fail(&f, "no header");
    } else {
        f.cluster = (uint64_t)1 << f.cluster_bits;
        f.incompatible = v3 ? get(&f, 72, 8) : 0;
        f.refcount_order = v3 ? (unsigned)get(&f, 96, 4) : 4;
        f.table_offset = get(&f, 48, 8);
        f.table_entries = get(&f, 56, 4) << f.cluster_bits >> 3;
        f.count = (f.size >> f.cluster_bits) + 2;
        f.refs = g_new0(uint32_t, f.count);
        f.uses = g_new0(uint8_t, f.count);
        walk_all(&f);
        result.dirty = f.incompatible & 1;
        if (!result.dirty)
            result.leaks = compare(&f);
    }
    munmap(map, (size_t)f.size + 1);
    g_free(f.refs);
    g_free(f.uses);
    result.error = f.error;
    return result;
}
