/*
 * config-write.c: the disks of a configuration as a keyfile.
 */
#include "fuse/config-internal.h"
#include <string.h>

static void set_pairs(GKeyFile *keys, const char *group, GPtrArray *pairs)
{
    for (guint i = 0; i < pairs->len; i += 2)
        g_key_file_set_string(keys, group, g_ptr_array_index(pairs, i),
                              g_ptr_array_index(pairs, i + 1));
    g_ptr_array_unref(pairs);
}

/* GKeyFile would escape the separator, and its reader of single strings refuse that. */
static bool set_allow_dirs(GKeyFile *keys, const char *group, const GPtrArray *dirs,
                           GError **error)
{
    for (guint i = 0; i < dirs->len; i++) {
        const char *dir = g_ptr_array_index(dirs, i);
        if (strchr(dir, ';')) {
            g_set_error(
                error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                "[%s]: allow-dir=%s: cannot be written in a keyfile (a ';' in it)", group,
                dir);
            return false;
        }
    }
    if (dirs->len > 0)
        g_key_file_set_string_list(keys, group, "allow-dir",
                                   (const char *const *)dirs->pdata, dirs->len);
    return true;
}

static void set_replica(GKeyFile *keys, const disk_options *d,
                        const replica_options *replica)
{
    g_autofree char *group = g_strdup_printf("replica %s/%s", d->name, replica->name);
    g_key_file_set_string(keys, group, "source", replica->path);
    if (replica->format)
        g_key_file_set_string(keys, group, "format", replica->format);
    set_pairs(keys, group, config_list_replica_keys(replica));
}

char *config_write_keyfile(const mount_config *config, GError **error)
{
    g_autoptr(GKeyFile) keys = g_key_file_new();
    for (guint i = 0; i < config->disks->len; i++) {
        const disk_options *d = g_ptr_array_index(config->disks, i);
        g_autofree char *group = g_strdup_printf("disk %s", d->name);
        g_key_file_set_string(keys, group, "file", d->file);
        if (d->alias)
            g_key_file_set_string(keys, group, "alias", d->alias);
        if (d->read_only)
            g_key_file_set_string(keys, group, "read-only", "true");
        set_pairs(keys, group, config_list_disk_keys(d));
        if (!set_allow_dirs(keys, group, d->allow_dirs, error))
            return NULL;
        for (guint k = 0; k < d->replicas->len; k++)
            set_replica(keys, d, g_ptr_array_index(d->replicas, k));
    }
    return g_key_file_to_data(keys, NULL, NULL);
}
