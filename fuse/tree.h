/*
 * tree.h: what lies in the mount: names, inode numbers and attributes.
 *
 *   MOUNTPOINT/FILE                         one for each disk
 *   MOUNTPOINT/.quorumfs/status.json
 *   MOUNTPOINT/.quorumfs/metrics
 *   MOUNTPOINT/.quorumfs/DISK/divergence.jsonl
 *   MOUNTPOINT/.quorumfs/DISK/divergence.map
 *
 * The tree never changes while it is mounted: inode numbers depend only on the order of
 * the disks, and no lookup count has to be kept.
 *
 * Threads: all functions but tree_new and tree_free may be called from any thread; each
 * node has its own lock for its attributes, under which nothing else is taken.
 */
#ifndef FUSE_TREE_H
#define FUSE_TREE_H

#include "fuse/daemon.h"
#include <sys/stat.h>

typedef enum tree_kind {
    TREE_ROOT,
    TREE_CONTROL_DIR, /* .quorumfs */
    TREE_STATUS,
    TREE_METRICS,
    TREE_DISK,
    TREE_DISK_DIR,
    TREE_JOURNAL,
    TREE_MAP,
} tree_kind;

typedef struct tree tree;

typedef struct tree_node {
    tree_kind kind;
    uint64_t ino;    /* 1 is the root */
    uint64_t parent; /* inode number of the directory it lies in */
    const char *name;
    disk *disk;       /* TREE_DISK, TREE_MAP; else NULL */
    journal *journal; /* TREE_JOURNAL; else NULL */

    GMutex lock; /* guards what follows */
    mode_t mode; /* with the type */
    uid_t uid;
    gid_t gid;
    struct timespec atime, mtime, ctime;
} tree_node;

/* What setattr may change; chmod, chown and utimens last as long as the mount. */
typedef struct tree_change {
    bool has_mode, has_uid, has_gid, has_atime, has_mtime, has_ctime;
    mode_t mode; /* permission bits */
    uid_t uid;
    gid_t gid;
    struct timespec atime, mtime, ctime;
} tree_change;

/* Whether the disks' names and files can lie beside each other in one mount: no slash, no
 * "." or "..", no name twice, no file called .quorumfs. To be asked before disks are
 * opened. */
bool tree_check_names(const mount_config *config, GError **error);

/* `daemon` must outlive the tree. */
tree *tree_new(const daemon_context *daemon);
void tree_free(tree *t); /* NULL is allowed */

const daemon_context *tree_daemon(const tree *t);
/* NULL: there is no such inode, name or child. */
tree_node *tree_get(const tree *t, uint64_t ino);
tree_node *tree_lookup(const tree *t, const tree_node *dir, const char *name);
/* The child number `index` of a directory, from 0. */
tree_node *tree_child(const tree *t, const tree_node *dir, unsigned index);

bool tree_is_dir(const tree_node *node);
void tree_stat(tree_node *node, struct stat *ret_st);
/* Applies the change; ctime becomes now unless the change names it. */
void tree_change_attributes(tree_node *node, const tree_change *change);
/* mtime and ctime become now: the disk was written. */
void tree_touch(tree_node *node);

/* The present content of a file in .quorumfs; g_free it. NULL: it cannot be had. */
char *tree_content(const tree *t, const tree_node *node, gsize *ret_length);

#endif
