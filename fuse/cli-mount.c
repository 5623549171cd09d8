/*
 * cli-mount.c: finding a mount of ours from its mount point.
 *
 * The kernel's list of mounts is asked first: only below a mount of the type fuse.quorumfs
 * are status.json and the paths in it believed.
 */
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATUS_BYTES_MAX    (16u << 20)
#define MOUNTINFO_BYTES_MAX (64u << 20)

/* \040 and friends, in place. */
static void unescape_octal(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' &&
            from[2] <= '7' && from[3] >= '0' && from[3] <= '7') {
            *to = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

/* The type of what is mounted last at `path`; NULL: nothing. g_free it. */
static char *mounted_type(const char *path)
{
    g_autofree char *text =
        cli_read_file("/proc/self/mountinfo", MOUNTINFO_BYTES_MAX, NULL);
    char *type = NULL;
    g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
    for (char **line = lines; *line; line++) {
        /* id parent major:minor root MOUNTPOINT options [optional...] - TYPE source ... */
        g_auto(GStrv) fields = g_strsplit(*line, " ", 6);
        if (g_strv_length(fields) < 6)
            continue;
        unescape_octal(fields[4]);
        const char *rest = strstr(fields[5], " - ");
        if (!rest || strcmp(fields[4], path) != 0)
            continue;
        g_free(type);
        type = g_strndup(rest + 3, strcspn(rest + 3, " "));
    }
    return type;
}

/* realpath() that does not need an answer from the mount itself, which may be dead. */
static char *resolve(const char *path)
{
    char *real = realpath(path, NULL);
    if (real || errno != ENOTCONN)
        return real;
    g_autofree char *trimmed = g_canonicalize_filename(path, NULL);
    g_autofree char *parent = g_path_get_dirname(trimmed);
    g_autofree char *name = g_path_get_basename(trimmed);
    char *real_parent = realpath(parent, NULL);
    if (!real_parent)
        return NULL;
    g_autofree char *joined = g_build_filename(real_parent, name, NULL);
    free(real_parent);
    return strdup(joined);
}

bool cli_is_mount(const char *word)
{
    char *path = resolve(word);
    g_autofree char *type = path ? mounted_type(path) : NULL;
    free(path);
    return g_strcmp0(type, "fuse.quorumfs") == 0;
}

bool cli_mount_find(const char *mountpoint, cli_mount *ret_mount)
{
    *ret_mount = (cli_mount){0};
    char *path = resolve(mountpoint);
    if (!path) {
        cli_error("%s: %s", mountpoint, g_strerror(errno));
        return false;
    }
    g_autofree char *type = mounted_type(path);
    if (g_strcmp0(type, "fuse.quorumfs") != 0) {
        cli_error(type ? "%s: not a quorumfs mount, but %s" : "%s: not a mount point%s",
                  mountpoint, type ? type : "");
        free(path);
        return false;
    }
    g_autofree char *file = g_build_filename(path, ".quorumfs", "status.json", NULL);
    size_t length = 0;
    g_autofree char *text = cli_read_file(file, STATUS_BYTES_MAX, &length);
    bool dead = !text && (errno == ENOTCONN || errno == ECONNABORTED);
    json_error_t why;
    if (text)
        ret_mount->status = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
    if (!dead && !json_is_object(ret_mount->status)) {
        const char *hint = !text && errno == EACCES
                               ? " (ask as the user who mounted it, or mount with "
                                 "-o allow_other)"
                               : "";
        cli_error("%s: %s%s", file, text ? "not a status" : g_strerror(errno), hint);
        json_decref(ret_mount->status);
        free(path);
        return false;
    }
    ret_mount->path = path;
    return true;
}

bool cli_mount_find_live(const char *mountpoint, cli_mount *ret_mount)
{
    if (!cli_mount_find(mountpoint, ret_mount))
        return false;
    if (ret_mount->status)
        return true;
    cli_error("%s: the daemon is gone (quorumfs umount %s, then mount again)", mountpoint,
              mountpoint);
    cli_mount_clear(ret_mount);
    return false;
}

void cli_mount_clear(cli_mount *mount)
{
    json_decref(mount->status);
    free(mount->path);
    *mount = (cli_mount){0};
}

json_t *cli_mount_disk(const cli_mount *mount, const char *wanted)
{
    g_autoptr(GPtrArray) known = g_ptr_array_new();
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(mount->status, "disks"), i, row)
    {
        const char *name = json_string_value(json_object_get(row, "name"));
        if (name && strcmp(name, wanted) == 0)
            return row;
        if (name)
            g_ptr_array_add(known, (gpointer)name);
    }
    g_ptr_array_add(known, NULL);
    g_autofree char *hint = config_hint(wanted, (const char *const *)known->pdata);
    cli_error("%s: no disk '%s'%s", mount->path, wanted, hint);
    return NULL;
}
