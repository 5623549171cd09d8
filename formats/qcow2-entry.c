/*
 * qcow2-entry.c: what one word of an L1 or L2 table means. Pure, and the only place that
 * knows the bits, so that the check at open and every later lookup apply the same rules.
 *
 *   L2 entry            offset 0             offset set           + zero flag (bit 0, v3)
 *   standard            unallocated          data                 zeroes, host cluster kept
 *   data file, COPIED   data at 0            data                 zeroes, host cluster kept
 *   bit 62              compressed, always
 *   extended            bit 0 is reserved; 32 alloc bits and 32 zero bits in a second word
 *
 * Invariant: an entry that is let through with has_host starts inside its file on a
 * cluster boundary (only its tail may lie past the end, where it is zeroes), and
 * a compressed one ends inside of the file, rounded up to the 512 bytes in which its
 * length is counted. No subcluster has both its bits.
 */
#include "formats/qcow2-internal.h"

#define FLAG_COMPRESSED ((uint64_t)1 << 62)
#define FLAG_ZERO       ((uint64_t)1)
#define L1_RESERVED     0x7f000000000001ffull
#define L2_RESERVED     0x3f000000000001feull

void qcow2_layout_init(qcow2_layout *layout, const qcow2_header *header,
                       uint64_t file_size, uint64_t data_size)
{
    bool extended = (header->incompatible & QCOW2_INCOMPAT_EXTL2) != 0;
    uint32_t entry_bits = extended ? 4 : 3;
    *layout = (qcow2_layout){
        .version = header->version,
        .cluster_bits = header->cluster_bits,
        .entry_bits = entry_bits,
        .l2_bits = header->cluster_bits - entry_bits,
        .subcluster_bits = header->cluster_bits - (extended ? 5 : 0),
        .subclusters = extended ? 32 : 1,
        .external = (header->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0,
        .cluster_size = (uint64_t)1 << header->cluster_bits,
        .size = header->size,
        .file_size = file_size,
        .data_size = data_size,
    };
}

uint64_t qcow2_layout_l1_needed(const qcow2_layout *layout)
{
    uint32_t bits = layout->cluster_bits + layout->l2_bits;
    return qcow2_round_up(layout->size, (uint64_t)1 << bits) >> bits;
}

const char *qcow2_l1_decode(const qcow2_layout *layout, uint64_t word,
                            uint64_t *ret_table)
{
    uint64_t table = word & QCOW2_OFFSET_MASK;
    *ret_table = 0;
    if (word & L1_RESERVED)
        return "reserved bits are set";
    if (table == 0)
        return word ? "the copied flag stands without a table" : NULL;
    if (table % layout->cluster_size != 0)
        return "the L2 table is not aligned to a cluster";
    if (table >= layout->file_size || layout->file_size - table < layout->cluster_size)
        return "the L2 table lies outside of the file";
    *ret_table = table;
    return NULL;
}

/* qcow2: Compressed Clusters Descriptor. */
static const char *decode_compressed(const qcow2_layout *layout, uint64_t word,
                                     uint64_t bitmap, qcow2_entry *ret)
{
    if (layout->external)
        return "a compressed cluster in an image with a data file";
    if (word & QCOW2_FLAG_COPIED)
        return "the copied flag stands on a compressed cluster";
    if (bitmap)
        return "subcluster bits stand on a compressed cluster";
    uint32_t offset_bits = 62 - (layout->cluster_bits - 8);
    uint64_t offset = word & (((uint64_t)1 << offset_bits) - 1);
    uint64_t more_sectors = (word & (FLAG_COMPRESSED - 1)) >> offset_bits;
    uint64_t size = (more_sectors + 1) * 512 - offset % 512;
    uint64_t end = qcow2_round_up(layout->file_size, 512);
    if (offset >= layout->file_size || size > end - offset)
        return "a compressed cluster reaches out of the file";
    ret->compressed = true;
    ret->host_offset = offset;
    ret->compressed_size = (uint32_t)size;
    return NULL;
}

static const char *decode_subclusters(const qcow2_layout *layout, uint64_t word,
                                      uint64_t bitmap, qcow2_entry *ret)
{
    if (layout->subclusters == 1) {
        ret->zero = word & FLAG_ZERO;
        ret->alloc = ret->has_host && !ret->zero;
        return NULL;
    }
    ret->alloc = (uint32_t)bitmap;
    ret->zero = (uint32_t)(bitmap >> 32);
    if (ret->alloc & ret->zero)
        return "a subcluster is both allocated and zero";
    if (ret->alloc && !ret->has_host)
        return "a subcluster is allocated without a cluster";
    return NULL;
}

const char *qcow2_entry_decode(const qcow2_layout *layout, uint64_t guest, uint64_t word,
                               uint64_t bitmap, qcow2_entry *ret)
{
    *ret = (qcow2_entry){0};
    if (word & FLAG_COMPRESSED)
        return decode_compressed(layout, word, bitmap, ret);
    bool copied = (word & QCOW2_FLAG_COPIED) != 0;
    uint64_t host = word & QCOW2_OFFSET_MASK;
    if ((word & L2_RESERVED) || ((word & FLAG_ZERO) && layout->subclusters > 1))
        return "reserved bits are set";
    if ((word & FLAG_ZERO) && layout->version < 3)
        return "the zero flag stands in a version 2 image";
    if (host % layout->cluster_size != 0)
        return "a data cluster is not aligned";
    ret->has_host = host != 0 || (copied && layout->external);
    ret->host_offset = host;
    ret->copied = copied;
    if (copied && !ret->has_host)
        return "the copied flag stands without a cluster";
    if (ret->has_host && layout->external && host != guest)
        return "a cluster in the data file is not at its guest offset";
    if (ret->has_host && host >= layout->data_size)
        return "a data cluster lies past the end of its file";
    return decode_subclusters(layout, word, bitmap, ret);
}

void qcow2_entry_encode(const qcow2_layout *layout, const qcow2_entry *entry,
                        uint64_t *ret_word, uint64_t *ret_bitmap)
{
    uint64_t word = entry->has_host ? entry->host_offset : 0;
    if (entry->has_host && entry->copied)
        word |= QCOW2_FLAG_COPIED;
    if (layout->subclusters == 1 && entry->zero)
        word |= FLAG_ZERO;
    *ret_word = word;
    *ret_bitmap =
        layout->subclusters == 1 ? 0 : (uint64_t)entry->zero << 32 | entry->alloc;
}
