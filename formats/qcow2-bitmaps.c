/*
 * qcow2-bitmaps.c: the dirty bitmaps that an image keeps of itself for backup programs.
 *
 * They are neither used nor kept current here, but whoever trusts one that missed a write
 * makes an incremental backup with old data in it. So before the first write every bitmap
 * is marked as in use: what the format calls a bitmap that was not saved properly, and
 * what every program must refuse to trust. Its clusters stay in order meanwhile, and
 * count as used.
 *
 * Invariants
 * - The directory is walked entry by entry and never held; no entry reaches out of it. All
 *   of it is valid before the first byte is changed.
 * - A directory that is not valid, or an extension that the header parser did not believe,
 *   cannot be marked. Then autoclear bit 0 goes, which declares all of them void.
 * - In both cases what tells a reader not to trust them is on disk before a guest's byte.
 */
#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include <errno.h>

#define ENTRY_BYTES     24u
#define ENTRY_FLAGS     12u
#define FLAG_IN_USE     1u
#define FLAGS_RESERVED  0xfffffff8u
#define TYPE_DIRTY      1u
#define GRANULARITY_MAX 63u
#define TABLE_RESERVED  0xff000000000001feull
#define TABLE_ALL_ONES  1u
#define TABLE_PIECE     512u /* words */

/* One entry of the directory. */
typedef struct bitmap {
    uint64_t entry; /* where it stands in the file */
    uint32_t flags;
    uint64_t table;
    uint32_t table_entries;
} bitmap;

/* Takes an entry apart; `left` is what the directory has from here on. */
static bool decode_entry(const qcow2_layout *layout, const uint8_t *at, uint64_t left,
                         bitmap *ret, uint64_t *ret_length)
{
    uint64_t file_size = layout->file_size;
    ret->table = qcow2_be64(at);
    ret->table_entries = qcow2_be32(at + 8);
    ret->flags = qcow2_be32(at + ENTRY_FLAGS);
    uint32_t name = (uint32_t)at[18] << 8 | at[19], extra = qcow2_be32(at + 20);
    uint64_t table_bytes = (uint64_t)ret->table_entries * 8;
    *ret_length = qcow2_round_up((uint64_t)ENTRY_BYTES + extra + name, 8);
    return (ret->flags & FLAGS_RESERVED) == 0 && at[16] == TYPE_DIRTY &&
           at[17] <= GRANULARITY_MAX && name != 0 && *ret_length <= left &&
           table_bytes != 0 && ret->table != 0 &&
           ret->table % layout->cluster_size == 0 && ret->table <= file_size &&
           table_bytes <= file_size - ret->table;
}

typedef int bitmap_visit(void *user, const bitmap *bitmap);

/* 0, -EINVAL: the directory is not valid, or what else came up. */
static int walk_directory(int fd, const qcow2_header *header, const qcow2_layout *layout,
                          bitmap_visit *visit, void *user)
{
    uint64_t size = header->bitmap_directory_size, at = 0, length = 0;
    for (uint32_t i = 0; i < header->bitmap_count; i++, at += length) {
        uint8_t entry[ENTRY_BYTES];
        bitmap b = {.entry = header->bitmap_directory_offset + at};
        if (size - at < ENTRY_BYTES)
            return -EINVAL;
        int result = file_read_exact(fd, entry, sizeof entry, b.entry);
        if (result < 0)
            return result;
        if (!decode_entry(layout, entry, size - at, &b, &length))
            return -EINVAL;
        result = visit(user, &b);
        if (result < 0)
            return result;
    }
    return at == size ? 0 : -EINVAL;
}

static int pass_over(void *user, const bitmap *b)
{
    (void)user;
    (void)b;
    return 0;
}

static int mark_in_use(void *user, const bitmap *b)
{
    const int *fd = user;
    uint32_t flags = htobe32(b->flags | FLAG_IN_USE);
    if (b->flags & FLAG_IN_USE)
        return 0;
    return file_write_full(*fd, &flags, sizeof flags, b->entry + ENTRY_FLAGS);
}

/* The directory is believed only where qcow2-ranges.c found nothing else: 0 or -EINVAL. */
static int check_place(int fd, const qcow2_header *header, const qcow2_layout *layout)
{
    qcow2_ranges ranges;
    if (header->bitmap_count == 0)
        return -EINVAL;
    if (!qcow2_ranges_load(fd, header, layout, "", &ranges, NULL))
        return -EINVAL;
    bool alone = qcow2_ranges_has_bitmaps(&ranges, header);
    qcow2_ranges_clear(&ranges);
    return alone ? 0 : -EINVAL;
}

int qcow2_bitmaps_disown(int fd, const qcow2_header *header, const qcow2_layout *layout)
{
    if (!(header->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    int result = check_place(fd, header, layout);
    if (result == 0)
        result = walk_directory(fd, header, layout, pass_over, NULL);
    if (result == -EINVAL)
        return qcow2_update_autoclear(fd, QCOW2_AUTOCLEAR_BITMAPS);
    if (result == 0)
        result = walk_directory(fd, header, layout, mark_in_use, &fd);
    return result;
}

typedef struct walker {
    int fd;
    const qcow2_layout *layout;
    uint64_t *budget;
    qcow2_reference_visit *visit;
    void *user;
} walker;

/* qcow2: Bitmap table. */
static int visit_words(const walker *w, const uint64_t *words, size_t count)
{
    const qcow2_layout *layout = w->layout;
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = words[i] & QCOW2_OFFSET_MASK;
        if ((words[i] & TABLE_RESERVED) || (offset && (words[i] & TABLE_ALL_ONES)) ||
            offset % layout->cluster_size != 0 || offset >= layout->file_size)
            return -EINVAL;
        if (offset)
            w->visit(w->user, offset >> layout->cluster_bits, 1, 1);
    }
    return 0;
}

static int visit_bitmap(void *user, const bitmap *b)
{
    const walker *w = user;
    uint64_t words[TABLE_PIECE], bytes = (uint64_t)b->table_entries * 8;
    uint32_t bits = w->layout->cluster_bits;
    if (*w->budget < bytes)
        return -E2BIG;
    *w->budget -= bytes;
    w->visit(w->user, b->table >> bits,
             qcow2_round_up(bytes, w->layout->cluster_size) >> bits, 1);
    for (uint32_t i = 0; i < b->table_entries; i += TABLE_PIECE) {
        size_t count = MIN(TABLE_PIECE, b->table_entries - i);
        int result = qcow2_words_read(w->fd, b->table + (uint64_t)i * 8, words, count);
        if (result == 0)
            result = visit_words(w, words, count);
        if (result < 0)
            return result;
    }
    return 0;
}

int qcow2_bitmaps_walk(int fd, const qcow2_header *header, const qcow2_layout *layout,
                       uint64_t *budget, qcow2_reference_visit *visit, void *user)
{
    walker w = {fd, layout, budget, visit, user};
    if (header->bitmap_count == 0)
        return 0;
    return walk_directory(fd, header, layout, visit_bitmap, &w);
}

static void pass_reference(void *user, uint64_t first, uint64_t count, uint64_t times)
{
    (void)user;
    (void)first;
    (void)count;
    (void)times;
}

int qcow2_bitmaps_drop_invalid(int fd, qcow2_header *header, const qcow2_layout *layout,
                               uint64_t budget)
{
    if (!(header->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    int result = check_place(fd, header, layout);
    if (result == 0)
        result = qcow2_bitmaps_walk(fd, header, layout, &budget, pass_reference, NULL);
    if (result != -EINVAL)
        return result;
    result = qcow2_update_autoclear(fd, QCOW2_AUTOCLEAR_BITMAPS);
    if (result < 0)
        return result;
    header->autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    header->bitmap_count = 0;
    header->bitmap_directory_offset = header->bitmap_directory_size = 0;
    return 0;
}
