/*
 * qcow2-update.c: fields of the header on disk.
 *
 * Invariants
 * - All fields lie within the first 512 bytes, which are written at once: devices write a
 *   sector whole or not at all, so that a crash leaves the old fields or the new ones and
 *   never the offset of one table with the size of another.
 * - What stands on disk is read anew before each change. Nothing is kept between changes,
 *   and whatever else is in the sector (extensions, names) stays as it is.
 */
#include "formats/file.h"
#include "formats/qcow2-internal.h"
#include <errno.h>

#define SECTOR 512u

enum {
    AT_VERSION = 4,
    AT_BACKING_OFFSET = 8,
    AT_SIZE = 24,
    AT_L1_ENTRIES = 36,
    AT_L1_OFFSET = 40,
    AT_REFCOUNT_TABLE = 48,
    AT_REFCOUNT_CLUSTERS = 56,
    AT_INCOMPATIBLE = 72, /* this and what follows: version 3 */
    AT_AUTOCLEAR = 88,
};

static int read_sector(int fd, uint8_t *sector)
{
    int result = file_read_exact(fd, sector, SECTOR, 0);
    if (result < 0)
        return result;
    return qcow2_be32(sector) == QCOW2_MAGIC ? 0 : -EIO;
}

static int write_sector(int fd, const uint8_t *sector)
{
    int result = file_write_full(fd, sector, SECTOR, 0);
    return result < 0 ? result : file_sync(fd);
}

static void put32(uint8_t *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

/* Version 2 has no feature bits: none can be set, and none stands that were to be cleared. */
static int update_features(int fd, unsigned at, uint64_t set, uint64_t clear)
{
    uint8_t sector[SECTOR];
    int result = read_sector(fd, sector);
    if (result < 0)
        return result;
    if (qcow2_be32(sector + AT_VERSION) < 3)
        return set ? -ENOTSUP : 0;
    put64(sector + at, (qcow2_be64(sector + at) | set) & ~clear);
    return write_sector(fd, sector);
}

int qcow2_update_incompatible(int fd, uint64_t set, uint64_t clear)
{
    return update_features(fd, AT_INCOMPATIBLE, set, clear);
}

int qcow2_update_autoclear(int fd, uint64_t clear)
{
    return update_features(fd, AT_AUTOCLEAR, 0, clear);
}

int qcow2_update_size(int fd, uint64_t size)
{
    uint8_t sector[SECTOR];
    int result = read_sector(fd, sector);
    if (result < 0)
        return result;
    put64(sector + AT_SIZE, size);
    return write_sector(fd, sector);
}

int qcow2_update_l1(int fd, uint64_t size, uint32_t l1_entries, uint64_t l1_offset)
{
    uint8_t sector[SECTOR];
    int result = read_sector(fd, sector);
    if (result < 0)
        return result;
    put64(sector + AT_SIZE, size);
    put32(sector + AT_L1_ENTRIES, l1_entries);
    put64(sector + AT_L1_OFFSET, l1_offset);
    return write_sector(fd, sector);
}

int qcow2_update_refcount_table(int fd, uint64_t offset, uint32_t clusters)
{
    uint8_t sector[SECTOR];
    int result = read_sector(fd, sector);
    if (result < 0)
        return result;
    put64(sector + AT_REFCOUNT_TABLE, offset);
    put32(sector + AT_REFCOUNT_CLUSTERS, clusters);
    return write_sector(fd, sector);
}

int qcow2_update_backing_offset(int fd, uint64_t offset)
{
    uint8_t sector[SECTOR];
    int result = read_sector(fd, sector);
    if (result < 0)
        return result;
    put64(sector + AT_BACKING_OFFSET, offset);
    return write_sector(fd, sector);
}
