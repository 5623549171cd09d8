/*
 * ops-tree.c: names, attributes, opening and closing.
 *
 * Methods that are left out on purpose: getlk, setlk and flock (the kernel then keeps
 * locks itself, and QEMU's OFD locks behave), flush (closing a file promises nothing;
 * the kernel stops asking), xattrs (the kernel answers EOPNOTSUPP, and stops asking for
 * security.capability before each write), forget (the tree never changes).
 */
#include "fuse/ops.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <unistd.h>

/* The kernel may keep names for good. Attributes it keeps for a second: times and the
 * number of allocated blocks change under it, the size only through it. */
#define NAME_SECONDS 86400.0
#define ATTR_SECONDS 1.0

static void snapshot_clear(void *snapshot)
{
    g_free(((ops_snapshot *)snapshot)->text);
}

void ops_snapshot_unref(ops_snapshot *snapshot)
{
    g_atomic_rc_box_release_full(snapshot, snapshot_clear);
}

void ops_context_init(ops_context *ops, tree *t, config_cache cache)
{
    ops->tree = t;
    ops->cache = cache;
    g_mutex_init(&ops->lock);
    ops->open =
        g_hash_table_new_full(NULL, NULL, (GDestroyNotify)ops_snapshot_unref, NULL);
}

void ops_context_clear(ops_context *ops)
{
    g_hash_table_destroy(ops->open);
    g_mutex_clear(&ops->lock);
    tree_free(ops->tree);
}

tree_node *ops_node(fuse_req_t req, fuse_ino_t ino)
{
    tree_node *node = tree_get(ops_get(req)->tree, ino);
    if (!node)
        fuse_reply_err(req, ENOENT);
    return node;
}

tree_node *ops_disk(fuse_req_t req, fuse_ino_t ino)
{
    tree_node *node = ops_node(req, ino);
    if (!node || node->kind == TREE_DISK)
        return node;
    fuse_reply_err(req, EBADF);
    return NULL;
}

/*
 * O_TRUNC at open is left to the kernel's setattr (ATOMIC_O_TRUNC would make it believe in
 * size 0 before we can say no). Nothing is changed but through this mount, so that there
 * is no use in dropping cached pages when a time has changed (AUTO_INVAL_DATA). Set-id bits
 * are the kernel's to clear (HANDLE_KILLPRIV). Splicing costs more than it saves here.
 */
void ops_init(void *userdata, struct fuse_conn_info *conn)
{
    ops_context *ops = userdata;
    conn->want &= ~(unsigned)(FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_AUTO_INVAL_DATA |
                              FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ |
                              FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    if (ops->cache == CONFIG_CACHE_WRITEBACK)
        conn->want |= conn->capable & FUSE_CAP_WRITEBACK_CACHE;
    conn->max_write = DISK_REQUEST_MAX;
    conn->max_read = DISK_REQUEST_MAX;
    conn->max_background = 64;
    conn->congestion_threshold = 48;
    conn->time_gran = 1;
    ops->initialised = true;
}

/* ---- Names and attributes --------------------------------------------------------- */

/* The files of .quorumfs have, as those of /proc, no size until they are opened. */
static bool has_snapshots(const tree_node *node)
{
    return node->kind != TREE_DISK && !tree_is_dir(node);
}

static double attr_seconds(const tree_node *node)
{
    return has_snapshots(node) ? 0.0 : ATTR_SECONDS;
}

void ops_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    tree *t = ops_get(req)->tree;
    tree_node *dir = ops_node(req, parent);
    if (!dir)
        return;
    tree_node *node = tree_lookup(t, dir, name);
    if (!node) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    struct fuse_entry_param entry = {.ino = node->ino,
                                     .attr_timeout = attr_seconds(node),
                                     .entry_timeout = NAME_SECONDS};
    tree_stat(node, &entry.attr);
    fuse_reply_entry(req, &entry);
}

void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    struct stat st;
    tree_stat(node, &st);
    if (has_snapshots(node) && fi)
        st.st_size = (off_t)ops_snapshot_get(fi)->length;
    fuse_reply_attr(req, &st, attr_seconds(node));
}

/*
 * The kernel sends both O_TRUNC at open and truncate(2) to 0 as "size 0, no file handle".
 * A disk is not emptied by `cp x disk.img` or a shell's `>`, as a block device is not: such
 * a request succeeds and changes nothing, and the reply tells the kernel the real size.
 * ftruncate(2) resizes to any size.
 */
static int resize(tree_node *node, off_t size, bool has_handle)
{
    if (node->kind != TREE_DISK)
        return tree_is_dir(node) ? -EISDIR : -EACCES;
    if (!disk_writable(node->disk))
        return -EROFS;
    if ((size == 0 && !has_handle) || (uint64_t)size == disk_size(node->disk))
        return 0;
    if (size < 0 || (uint64_t)size > IMAGE_SIZE_MAX)
        return -EFBIG;
    int result = disk_resize(node->disk, (uint64_t)size);
    if (result == 0)
        tree_touch(node);
    return result;
}

static struct timespec chosen_time(bool now, struct timespec given)
{
    if (now)
        clock_gettime(CLOCK_REALTIME, &given);
    return given;
}

void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                 struct fuse_file_info *fi)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    if (to_set & FUSE_SET_ATTR_SIZE) {
        int result = resize(node, attr->st_size, fi != NULL);
        if (result < 0) {
            fuse_reply_err(req, -result);
            return;
        }
    }
    tree_change change = {
        .has_mode = to_set & FUSE_SET_ATTR_MODE,
        .has_uid = to_set & FUSE_SET_ATTR_UID,
        .has_gid = to_set & FUSE_SET_ATTR_GID,
        .has_atime = to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW),
        .has_mtime = to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW),
        .has_ctime = to_set & FUSE_SET_ATTR_CTIME,
        .mode = attr->st_mode,
        .uid = attr->st_uid,
        .gid = attr->st_gid,
        .atime = chosen_time(to_set & FUSE_SET_ATTR_ATIME_NOW, attr->st_atim),
        .mtime = chosen_time(to_set & FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim),
        .ctime = attr->st_ctim,
    };
    if (to_set & ~FUSE_SET_ATTR_SIZE)
        tree_change_attributes(node, &change);
    struct stat st;
    tree_stat(node, &st);
    fuse_reply_attr(req, &st, attr_seconds(node));
}

/* Entry number `index` of a directory: ".", "..", then its children. */
static const char *entry_at(tree *t, tree_node *dir, off_t index, struct stat *ret_st)
{
    tree_node *node = index == 0   ? dir
                      : index == 1 ? tree_get(t, dir->parent)
                                   : tree_child(t, dir, (unsigned)index - 2);
    if (!node)
        return NULL;
    tree_stat(node, ret_st);
    return index == 0 ? "." : index == 1 ? ".." : node->name;
}

void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                 struct fuse_file_info *fi)
{
    (void)fi;
    tree *t = ops_get(req)->tree;
    tree_node *dir = ops_node(req, ino);
    if (!dir)
        return;
    g_autofree char *buf = g_malloc(size);
    size_t used = 0;
    struct stat st;
    const char *name;
    while ((name = entry_at(t, dir, offset, &st))) {
        size_t need =
            fuse_add_direntry(req, buf + used, size - used, name, &st, offset + 1);
        if (need > size - used)
            break;
        used += need;
        offset++;
    }
    fuse_reply_buf(req, buf, used);
}

/* Asked only where the kernel does not check permissions by the mode itself. */
void ops_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    int result = 0;
    if (mask & W_OK)
        result = node->kind != TREE_DISK ? EACCES : disk_writable(node->disk) ? 0 : EROFS;
    if ((mask & X_OK) && !tree_is_dir(node))
        result = EACCES;
    fuse_reply_err(req, result);
}

void ops_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    const GPtrArray *disks = tree_daemon(ops_get(req)->tree)->disks;
    uint64_t size = 0, used = 0;
    for (unsigned i = 0; i < disks->len; i++) {
        uint64_t one = disk_size(disks->pdata[i]);
        size += one;
        used += MIN(one, disk_allocated(disks->pdata[i]));
    }
    struct statvfs st = {
        .f_bsize = 4096,
        .f_frsize = 4096,
        .f_blocks = size / 4096,
        .f_bfree = (size - used) / 4096,
        .f_bavail = (size - used) / 4096,
        .f_files = disks->len,
        .f_namemax = 255,
    };
    fuse_reply_statfs(req, &st);
}

/* ---- Opening and closing ---------------------------------------------------------- */

/*
 * With O_DIRECT, or with cache=none, every request comes here, and writes to one inode may
 * come side by side (the disk serialises what overlaps). Other opens use the page cache;
 * without KEEP_CACHE each open drops it, and so votes anew. libfuse 3.14 has no word for
 * parallel direct writes, hence the kernel's own struct. A disk keeps nothing per open: if
 * the reply fails because the open was interrupted there is nothing to take back.
 */
static void open_disk(fuse_req_t req, const tree_node *node, int flags)
{
    if ((flags & O_ACCMODE) != O_RDONLY && !disk_writable(node->disk)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    struct fuse_open_out out = {0};
    if (ops_get(req)->cache == CONFIG_CACHE_NONE || (flags & O_DIRECT))
        out.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
    fuse_reply_buf(req, (const char *)&out, sizeof out);
}

static void remember(ops_context *ops, ops_snapshot *snapshot)
{
    g_mutex_lock(&ops->lock);
    g_hash_table_add(ops->open, snapshot);
    g_mutex_unlock(&ops->lock);
}

static void forget(ops_context *ops, ops_snapshot *snapshot)
{
    g_mutex_lock(&ops->lock);
    g_hash_table_remove(ops->open, snapshot);
    g_mutex_unlock(&ops->lock);
}

static void open_snapshot(fuse_req_t req, const tree_node *node,
                          struct fuse_file_info *fi)
{
    if ((fi->flags & O_ACCMODE) != O_RDONLY) {
        fuse_reply_err(req, EACCES);
        return;
    }
    gsize length = 0;
    char *text = tree_content(ops_get(req)->tree, node, &length);
    if (!text) {
        fuse_reply_err(req, EIO);
        return;
    }
    ops_snapshot *snapshot = g_atomic_rc_box_new(ops_snapshot);
    *snapshot = (ops_snapshot){.text = text, .length = length};
    remember(ops_get(req), snapshot);
    fi->fh = (uint64_t)(uintptr_t)snapshot;
    fi->direct_io = 1;
    if (fuse_reply_open(req, fi) == -ENOENT) /* interrupted: no release will come */
        forget(ops_get(req), snapshot);
}

void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    if (tree_is_dir(node))
        fuse_reply_err(req, EISDIR);
    else if (node->kind == TREE_DISK)
        open_disk(req, node, fi->flags);
    else
        open_snapshot(req, node, fi);
}

void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    tree_node *node = ops_node(req, ino);
    if (!node)
        return;
    if (has_snapshots(node))
        forget(ops_get(req), ops_snapshot_get(fi));
    fuse_reply_err(req, 0);
}

/* ---- What cannot be changed -------------------------------------------------------- */

void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                struct fuse_file_info *fi)
{
    (void)parent, (void)name, (void)mode, (void)fi;
    fuse_reply_err(req, EPERM);
}

void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               dev_t rdev)
{
    (void)parent, (void)name, (void)mode, (void)rdev;
    fuse_reply_err(req, EPERM);
}

void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    (void)parent, (void)name, (void)mode;
    fuse_reply_err(req, EPERM);
}

void ops_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
    (void)link, (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

void ops_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
    (void)ino, (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

void ops_remove(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent, (void)name;
    fuse_reply_err(req, EPERM);
}

void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                const char *newname, unsigned flags)
{
    (void)parent, (void)name, (void)newparent, (void)newname, (void)flags;
    fuse_reply_err(req, EPERM);
}
