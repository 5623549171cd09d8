/*
 * ops.h: the FUSE requests, each translated to a call of the tree or of a disk. Private to
 * mount.c, ops-tree.c and ops-io.c.
 *
 * Every function answers its request exactly once. They run on libfuse's worker threads,
 * any number at once; what they share locks itself.
 */
#ifndef FUSE_OPS_H
#define FUSE_OPS_H

#include "fuse/tree.h"
#include <fuse_lowlevel.h>

/* The session's user data. */
typedef struct ops_context {
    tree *tree;
    config_cache cache;
    bool initialised; /* INIT has been handled */
    GMutex lock;      /* guards what follows; nothing else is taken under it */
    GHashTable *open; /* set of ops_snapshot*: open files of .quorumfs */
} ops_context;
void ops_context_init(ops_context *ops, tree *t, config_cache cache);
/* Frees the tree too, and the snapshots whose release the kernel did not get to send. */
void ops_context_clear(ops_context *ops);

static inline ops_context *ops_get(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* The node of an inode; NULL: the request has been answered with ENOENT. */
tree_node *ops_node(fuse_req_t req, fuse_ino_t ino);
/* The same for a disk; NULL: answered, with EBADF if it is something else. */
tree_node *ops_disk(fuse_req_t req, fuse_ino_t ino);

/* ops-tree.c */
void ops_init(void *userdata, struct fuse_conn_info *conn);
void ops_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                 struct fuse_file_info *fi);
void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                 struct fuse_file_info *fi);
void ops_access(fuse_req_t req, fuse_ino_t ino, int mask);
void ops_statfs(fuse_req_t req, fuse_ino_t ino);
void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                struct fuse_file_info *fi);
void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               dev_t rdev);
void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void ops_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void ops_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name);
void ops_remove(fuse_req_t req, fuse_ino_t parent, const char *name);
void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                const char *newname, unsigned flags);

/* ops-io.c */
void ops_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
              struct fuse_file_info *fi);
void ops_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size,
               off_t offset, struct fuse_file_info *fi);
void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                   struct fuse_file_info *fi);
void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
               struct fuse_file_info *fi);

/* A file of .quorumfs, as it was when it was opened. It counts its users (g_atomic_rc_box):
 * a read holds it until its answer has left, since with the answer the reader may close
 * the file, and the release come on another thread. */
typedef struct ops_snapshot {
    char *text;
    gsize length;
} ops_snapshot;
void ops_snapshot_unref(ops_snapshot *snapshot);
static inline ops_snapshot *ops_snapshot_get(const struct fuse_file_info *fi)
{
    return (ops_snapshot *)(uintptr_t)fi->fh;
}

#endif
