/*
 * mountpoint.c: see mountpoint.h. The kernel's table (/proc/self/mountinfo) is what is
 * asked, because a question to a mount whose daemon is stopped would never be answered.
 */
#include "fuse/mountpoint.h"
#include "fuse/config.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Fields of a line: ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [OPTIONAL ...] - TYPE ... */
enum { FIELD_ID = 0, FIELD_DEVICE = 2, FIELD_PATH = 4, FIELD_OPTIONAL = 6 };

static bool parse_line(const char *line, const char *path, bool *ret_ours,
                       mountpoint_info *ret_info)
{
    g_auto(GStrv) fields = g_strsplit(line, " ", -1);
    unsigned count = g_strv_length(fields);
    if (count < FIELD_OPTIONAL)
        return false;
    g_autofree char *where = g_strcompress(fields[FIELD_PATH]); /* \040 is a blank */
    if (strcmp(where, path) != 0)
        return false;
    unsigned dash = FIELD_OPTIONAL;
    while (dash < count && strcmp(fields[dash], "-") != 0)
        dash++;
    *ret_ours = dash + 1 < count && strcmp(fields[dash + 1], MOUNTPOINT_TYPE) == 0;
    ret_info->id = atoi(fields[FIELD_ID]);
    return sscanf(fields[FIELD_DEVICE], "%u:%u", &ret_info->major, &ret_info->minor) == 2;
}

bool mountpoint_find(const char *path, mountpoint_info *ret_info)
{
    g_autofree char *table = NULL;
    if (!g_file_get_contents("/proc/self/mountinfo", &table, NULL, NULL))
        return false;
    g_auto(GStrv) lines = g_strsplit(table, "\n", -1);
    bool found = false;
    /* Mounts stand in the order in which they were made: the last one is on top. */
    for (unsigned i = 0; lines[i]; i++) {
        bool ours;
        mountpoint_info info;
        if (!parse_line(lines[i], path, &ours, &info))
            continue;
        found = ours;
        *ret_info = info;
    }
    return found;
}

static int unmount_as_user(const char *path, bool lazy)
{
    const char *plain[] = {"fusermount3", "-q", "-u", "--", path, NULL};
    const char *detach[] = {"fusermount3", "-q", "-u", "-z", "--", path, NULL};
    const char **argv = lazy ? detach : plain;
    int status;
    if (!g_spawn_sync(NULL, (char **)argv, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL |
                          G_SPAWN_STDERR_TO_DEV_NULL,
                      NULL, NULL, NULL, NULL, &status, NULL))
        return -EPERM;
    return status == 0 ? 0 : -EBUSY;
}

int mountpoint_unmount(const char *path, bool lazy)
{
    if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
        return 0;
    return errno == EPERM ? unmount_as_user(path, lazy) : -errno;
}

/* ---- Fit to be mounted on? -------------------------------------------------------- */

static void set_error(GError **error, const char *path, int code)
{
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID, "mount point %s: %s", path,
                g_strerror(code));
}

/* realpath(), also for a dead mount, which no longer answers itself. */
static char *resolve(const char *path, GError **error)
{
    char *real = realpath(path, NULL);
    int code = errno;
    if (!real && code == ENOTCONN) {
        g_autofree char *plain = g_canonicalize_filename(path, NULL);
        g_autofree char *dir = g_path_get_dirname(plain);
        g_autofree char *name = g_path_get_basename(plain);
        char *real_dir = realpath(dir, NULL);
        char *joined = real_dir ? g_build_filename(real_dir, name, NULL) : NULL;
        free(real_dir);
        if (joined)
            return joined;
    }
    if (!real) {
        set_error(error, path, code);
        return NULL;
    }
    char *copy = g_strdup(real);
    free(real);
    return copy;
}

/* The kernel would answer stat() for a while from what it remembers of a dead mount. */
static int probe(const char *path)
{
    struct statx st;
    if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_TYPE, &st) != 0)
        return -errno;
    return S_ISDIR(st.stx_mode) ? 0 : -ENOTDIR;
}

char *mountpoint_prepare(const char *path, GError **error)
{
    mountpoint_info info;
    g_autofree char *real = resolve(path, error);
    if (!real)
        return NULL;
    int result = probe(real);
    if (result == -ENOTCONN && mountpoint_find(real, &info)) {
        result = mountpoint_unmount(real, true);
        if (result == 0)
            result = probe(real);
    }
    if (result < 0) {
        set_error(error, path, -result);
        return NULL;
    }
    if (mountpoint_find(real, &info)) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "mount point %s: a quorumfs is mounted there already "
                    "(quorumfs umount %s)",
                    path, path);
        return NULL;
    }
    return g_steal_pointer(&real);
}
