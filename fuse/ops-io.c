/*
 * ops-io.c: reading, writing and what else touches a disk's bytes.
 *
 * A disk has a fixed end, as a block device has: reads stop there, writes beyond it are
 * ENOSPC. Between looking at the size and using it the disk may shrink; the disk then
 * says -EINVAL, and the size is looked at again.
 */
#include "fuse/ops.h"
#include <errno.h>
#include <linux/falloc.h>
#include <unistd.h>

/* How much of [offset, offset + size) lies in the disk. */
static size_t within(disk *d, off_t offset, size_t size)
{
    uint64_t end = disk_size(d);
    if (offset < 0 || (uint64_t)offset >= end)
        return 0;
    return (size_t)MIN(size, end - (uint64_t)offset);
}

static bool has_shrunk(int result, disk *d, off_t offset, size_t length)
{
    return result == -EINVAL && within(d, offset, length) < length;
}

static void read_disk(fuse_req_t req, disk *d, size_t size, off_t offset)
{
    const void *data = NULL;
    size_t length;
    int result = 0;
    do {
        length = within(d, offset, size);
        if (length > 0)
            result = disk_read(d, (uint64_t)offset, length, &data);
    } while (length > 0 && has_shrunk(result, d, offset, length));
    if (length > 0 && result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_buf(req, data, length);
}

static void read_snapshot(fuse_req_t req, ops_snapshot *snapshot, size_t size,
                          off_t offset)
{
    g_atomic_rc_box_acquire(snapshot);
    gsize start = MIN((gsize)offset, snapshot->length);
    fuse_reply_buf(req, snapshot->text + start, MIN(size, snapshot->length - start));
    ops_snapshot_unref(snapshot);
}

void ops_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
              struct fuse_file_info *fi)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    if (node->kind == TREE_DISK)
        read_disk(req, node->disk, size, offset);
    else if (tree_is_dir(node))
        fuse_reply_err(req, EISDIR);
    else
        read_snapshot(req, ops_snapshot_get(fi), size, offset);
}

/* A request that crosses the end is cut there, and the caller sees it, except for what the
 * kernel's page cache writes back: nobody would look at the count, so that fails. */
void ops_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size,
               off_t offset, struct fuse_file_info *fi)
{
    tree_node *node = ops_disk(req, ino);
    if (!node)
        return;
    size_t length;
    int result;
    do {
        length = within(node->disk, offset, size);
        result =
            length > 0 ? disk_write(node->disk, (uint64_t)offset, length, data) : -ENOSPC;
    } while (length > 0 && has_shrunk(result, node->disk, offset, length));
    if (result == 0) {
        tree_touch(node);
        if (fi->writepage && length < size)
            result = -ENOSPC;
    }
    if (result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_write(req, length);
}

void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)datasync, (void)fi;
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    int result = node->kind == TREE_DISK ? disk_flush(node->disk) : 0;
    fuse_reply_err(req, -result);
}

/*
 * Punching a hole and zeroing are done by the replicas. Plain allocation would have to
 * reserve space in every replica, which none of the formats promises: EOPNOTSUPP, upon
 * which posix_fallocate and QEMU write instead. A hole beyond the end is nothing to do;
 * zeroes beyond it would have to grow the disk, which is ftruncate's business.
 */
static int allocate(disk *d, int mode, uint64_t offset, uint64_t length)
{
    uint64_t size = disk_size(d);
    if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
        return offset < size ? disk_discard(d, offset, MIN(length, size - offset)) : 0;
    if ((mode & ~FALLOC_FL_KEEP_SIZE) != FALLOC_FL_ZERO_RANGE)
        return -EOPNOTSUPP;
    if (offset > size || length > size - offset)
        return -ENOSPC;
    return disk_write_zeroes(d, offset, length);
}

void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                   struct fuse_file_info *fi)
{
    (void)fi;
    tree_node *node = ops_disk(req, ino);
    if (!node)
        return;
    int result = -EINVAL;
    if (offset >= 0 && length > 0)
        result = allocate(node->disk, mode, (uint64_t)offset, (uint64_t)length);
    if (result == 0)
        tree_touch(node);
    fuse_reply_err(req, -result);
}

/* The first offset from `offset` on that is (not) zero by the maps of all replicas; the
 * disk's size if there is none. */
static int find_extent(disk *d, bool zero_wanted, uint64_t *offset)
{
    uint64_t size = disk_size(d);
    while (*offset < size) {
        bool zero;
        uint64_t length;
        int result = disk_map(d, *offset, size - *offset, &zero, &length);
        if (result < 0)
            return result;
        if (zero == zero_wanted)
            return 0;
        *offset += length;
    }
    *offset = size;
    return 0;
}

/* With writeback the kernel may hold data that no map knows of: ENOSYS makes it answer by
 * itself, that all is data. */
void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
               struct fuse_file_info *fi)
{
    (void)fi;
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    if (node->kind != TREE_DISK) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (ops_get(req)->cache == CONFIG_CACHE_WRITEBACK) {
        fuse_reply_err(req, ENOSYS);
        return;
    }
    uint64_t found = (uint64_t)offset;
    uint64_t size = disk_size(node->disk);
    int result = -EINVAL;
    if (offset < 0 || found >= size)
        result = -ENXIO;
    else if (whence == SEEK_DATA || whence == SEEK_HOLE)
        result = find_extent(node->disk, whence == SEEK_HOLE, &found);
    if (result == 0 && whence == SEEK_DATA && found >= size)
        result = -ENXIO;
    if (result < 0)
        fuse_reply_err(req, -result);
    else
        fuse_reply_lseek(req, (off_t)found);
}
