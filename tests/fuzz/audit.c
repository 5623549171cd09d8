/*
 * audit.c: counts the references to each cluster of a qcow2 file and compares.
 *
 * The whole file is in memory, and nothing outside of it is read: any bytes may be audited.
 * A cluster is referred to by the header, the tables that the header names, L1 and L2 tables
 * of the disk and of each snapshot, refcount blocks, and bitmaps. Clusters of a data file
 * are not counted.
 */
#include "tests/fuzz/audit.h"
#include "tests/fuzz/packed.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define FILE_MAX    ((uint64_t)16 << 20)
#define OFFSET_MASK 0x00fffffffffffe00u
#define COPIED      ((uint64_t)1 << 63)
#define COMPRESSED  ((uint64_t)1 << 62)
#define BITMAPS     0x23852875u

/* What is tested is the formats, not this. */
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))),                   \
                             apply_to = function)

typedef struct auditor {
    const uint8_t *file;
    uint64_t size;
    unsigned bits; /* of a cluster */
    uint64_t clusters;
    uint32_t *references;
    bool extended, external;
    audit result;
} auditor;

static uint64_t get(const auditor *a, uint64_t offset, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | (offset + i < a->size ? a->file[offset + i] : 0);
    return value;
}

static void note(auditor *a, audit_verdict verdict, const char *reason, uint64_t at)
{
    if (verdict > a->result.verdict)
        a->result = (audit){verdict, a->result.dirty, a->result.corrupt, reason, at};
}

/* Whether the bytes start in the file; those of a last cluster may end behind it. */
static bool refer(auditor *a, uint64_t offset, uint64_t length, const char *what)
{
    if (length == 0)
        return true;
    if (offset >= a->size || length > a->size + ((uint64_t)1 << a->bits) - offset) {
        note(a, AUDIT_BAD, what, offset);
        return false;
    }
    uint64_t last = (offset + length - 1) >> a->bits;
    for (uint64_t i = offset >> a->bits; i <= last && i < a->clusters; i++)
        a->references[i]++;
    return true;
}

static uint64_t refcount(const auditor *a, uint64_t cluster)
{
    unsigned order = get(a, 4, 4) == 2 ? 4 : (unsigned)get(a, 96, 4);
    unsigned block_bits = a->bits + 3 - order;
    uint64_t index = cluster & (((uint64_t)1 << block_bits) - 1);
    if (cluster >> block_bits >= get(a, 56, 4) << (a->bits - 3))
        return 0;
    uint64_t block = get(a, get(a, 48, 8) + (cluster >> block_bits) * 8, 8) & OFFSET_MASK;
    if (!block)
        return 0;
    if (order >= 3)
        return get(a, block + (index << (order - 3)), 1u << (order - 3));
    unsigned per_byte = 8u >> order, width = 1u << order;
    return get(a, block + index / per_byte, 1) >> index % per_byte * width &
           ((1u << width) - 1);
}

/* After all references are known. */
static void check_copied(auditor *a, uint64_t entry, uint64_t at)
{
    uint64_t offset = entry & OFFSET_MASK;
    bool copied = entry & COPIED;
    if (copied != (refcount(a, offset >> a->bits) == 1))
        note(a, AUDIT_BAD, "the copied flag does not say whether the refcount is 1", at);
}

static void compressed(auditor *a, uint64_t entry)
{
    unsigned offset_bits = 62 - (a->bits - 8);
    uint64_t offset = entry & (((uint64_t)1 << offset_bits) - 1);
    uint64_t sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
    refer(a, offset & ~(uint64_t)511, sectors * 512, "a compressed cluster is outside");
}

/* Counts (copied: false) or, of the disk's own tables, looks at the flags. */
static void l2_table(auditor *a, uint64_t table, bool copied)
{
    unsigned step = a->extended ? 16 : 8;
    for (uint64_t at = table; at < table + ((uint64_t)1 << a->bits); at += step) {
        uint64_t entry = get(a, at, 8);
        if (entry & COMPRESSED) {
            if (!copied)
                compressed(a, entry);
        } else if (entry & OFFSET_MASK && !a->external) {
            if (copied)
                check_copied(a, entry, at);
            else
                refer(a, entry & OFFSET_MASK, 1, "a cluster is outside");
        }
    }
}

static void l1_table(auditor *a, uint64_t table, uint64_t entries, bool copied)
{
    if (!copied && !refer(a, table, entries * 8, "an L1 table is outside"))
        return;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t entry = get(a, table + i * 8, 8), offset = entry & OFFSET_MASK;
        if (!offset)
            continue;
        if (copied)
            check_copied(a, entry, table + i * 8);
        if (copied || refer(a, offset, (uint64_t)1 << a->bits, "an L2 table is outside"))
            l2_table(a, offset, copied);
    }
}

static void refcount_structures(auditor *a)
{
    uint64_t table = get(a, 48, 8), bytes = get(a, 56, 4) << a->bits;
    if (!refer(a, table, bytes, "the refcount table is outside"))
        return;
    for (uint64_t at = table; at < table + bytes; at += 8) {
        if (get(a, at, 8))
            refer(a, get(a, at, 8) & OFFSET_MASK, (uint64_t)1 << a->bits,
                  "a refcount block is outside");
    }
}

static void snapshots(auditor *a)
{
    uint64_t start = get(a, 64, 8), at = start;
    for (uint64_t n = get(a, 60, 4); n > 0 && at < a->size; n--) {
        l1_table(a, get(a, at, 8), get(a, at + 8, 4), false);
        at += 40 + get(a, at + 36, 4) + get(a, at + 12, 2) + get(a, at + 14, 2);
        at = (at + 7) & ~(uint64_t)7;
    }
    if (at > start)
        refer(a, start, at - start, "the snapshot table is outside");
}

static void bitmap(auditor *a, uint64_t table, uint64_t entries)
{
    if (!refer(a, table, entries * 8, "a bitmap's table is outside"))
        return;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t offset = get(a, table + i * 8, 8) & OFFSET_MASK;
        if (offset)
            refer(a, offset, (uint64_t)1 << a->bits, "a bitmap's cluster is outside");
    }
}

static void bitmaps(auditor *a)
{
    uint64_t at = get(a, 100, 4);
    if (get(a, 4, 4) < 3 || !(get(a, 95, 1) & 1))
        return;
    while (at < (uint64_t)1 << a->bits && get(a, at, 4) && get(a, at, 4) != BITMAPS)
        at += 8 + ((get(a, at + 4, 4) + 7) & ~(uint64_t)7);
    if (at >= (uint64_t)1 << a->bits || get(a, at, 4) != BITMAPS)
        return;
    uint64_t bytes = get(a, at + 16, 8), entry = get(a, at + 24, 8), end = entry + bytes;
    if (end < entry || !refer(a, entry, bytes, "the bitmap directory is outside"))
        return;
    while (entry < end) {
        bitmap(a, get(a, entry, 8), get(a, entry + 8, 4));
        entry += 24 + get(a, entry + 20, 4) + get(a, entry + 18, 2);
        entry = (entry + 7) & ~(uint64_t)7;
    }
}

static void compare(auditor *a)
{
    for (uint64_t i = 0; i < a->clusters; i++) {
        uint64_t count = refcount(a, i);
        if (count < a->references[i])
            note(a, AUDIT_BAD, "a refcount is too small", i << a->bits);
        if (count > a->references[i])
            note(a, AUDIT_LEAKS, "a refcount is too large", i << a->bits);
    }
    l1_table(a, get(a, 40, 8), get(a, 36, 4), true);
}

static void count_and_compare(auditor *a)
{
    a->references = calloc(a->clusters + 1, sizeof *a->references);
    refer(a, 0, 1, "the header is outside");
    refcount_structures(a);
    l1_table(a, get(a, 40, 8), get(a, 36, 4), false);
    snapshots(a);
    bitmaps(a);
    if (a->result.verdict < AUDIT_BAD)
        compare(a);
    free(a->references);
}

audit audit_file(int fd)
{
    struct stat st;
    auditor a = {.size = 0};
    if (fstat(fd, &st) < 0 || st.st_size < 512 || (uint64_t)st.st_size > FILE_MAX)
        return (audit){.verdict = AUDIT_UNKNOWN};
    a.size = (uint64_t)st.st_size;
    void *file = mmap(NULL, a.size, PROT_READ, MAP_SHARED, fd, 0);
    must(file != MAP_FAILED, "no map");
    a.file = file;
    a.bits = (unsigned)get(&a, 20, 4);
    uint64_t features = get(&a, 4, 4) < 3 ? 0 : get(&a, 72, 8);
    a.result.dirty = features & 1;
    a.result.corrupt = features & 2;
    a.external = features & 4;
    a.extended = features & 16;
    if (a.bits < 9 || a.bits > 21 || (get(&a, 4, 4) > 2 && get(&a, 96, 4) > 6)) {
        note(&a, AUDIT_BAD, "not a header", 0);
    } else {
        a.clusters = (a.size + ((uint64_t)1 << a.bits) - 1) >> a.bits;
        count_and_compare(&a);
    }
    munmap(file, a.size);
    return a.result;
}

#pragma clang attribute pop
