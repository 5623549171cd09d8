/*
 * mountpoint.h: the directory mounted on, seen from outside: is it fit, what is mounted
 * there, how does a mount go away. Nothing here asks the file system that is mounted but
 * mountpoint_prepare, which must find out whether it lives.
 */
#ifndef FUSE_MOUNTPOINT_H
#define FUSE_MOUNTPOINT_H

#include <glib.h>
#include <stdbool.h>

#define MOUNTPOINT_TYPE "fuse.quorumfs"

/* Checks that a directory can be mounted on and returns its real path (g_free it). A dead
 * mount of ours there is taken away; a live one is an error. */
char *mountpoint_prepare(const char *path, GError **error);

/* The topmost mount of ours at that real path. */
typedef struct mountpoint_info {
    int id; /* unique while it is mounted */
    unsigned major, minor;
} mountpoint_info;
bool mountpoint_find(const char *path, mountpoint_info *ret_info);

/* Unmounts what is topmost at the path; as fusermount3 where the user may not. 0 or
 * -errno (-EBUSY: in use, and not lazy). */
int mountpoint_unmount(const char *path, bool lazy);

#endif
