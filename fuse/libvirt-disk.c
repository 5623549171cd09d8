/*
 * libvirt-disk.c: <disk type='quorum'> and what stands in it.
 *
 * Some settings need to know the replicas: they are kept until the disk's end.
 */
#include "fuse/libvirt.h"
#include <string.h>

#define DISKS_MAX 1000u

bool libvirt_read_disk_driver(libvirt_reader *r, GError **error)
{
    const char *type, *format;
    if (!libvirt_take_driver(r, &type, &format, error))
        return false;
    if (type && strcmp(type, "quorum") != 0)
        return libvirt_invalid(r, error, "type='%s': the driver of this disk is quorum",
                               type);
    if (format && strcmp(format, "raw") != 0)
        return libvirt_invalid(
            r, error,
            "format='%s': a quorum is raw (give each <backingStore> its "
            "<format>)",
            format);
    return true;
}

static bool set_threshold(const libvirt_reader *r, const char *value, GError **error)
{
    GError *cause = NULL;
    if (r->disk->threshold > 0)
        return libvirt_invalid(r, error, "threshold is given twice");
    return config_set_disk(r->disk, "threshold", value, NULL, &cause) == CONFIG_SET_OK ||
           libvirt_invalid_value(r, cause, error);
}

bool libvirt_read_threshold(libvirt_reader *r, GError **error)
{
    const char *value;
    return libvirt_take_one(r, "value", &value, error) && set_threshold(r, value, error);
}

bool libvirt_read_target(libvirt_reader *r, GError **error)
{
    const char *dev = NULL;
    const libvirt_wanted known[] = {{"dev", &dev},           {"bus", NULL},
                                    {"tray", NULL},          {"removable", NULL},
                                    {"rotation_rate", NULL}, {0}};
    return libvirt_take_attributes(r, known, error) &&
           (dev ? libvirt_set_name(r, "disk", &r->disk->name, dev, error)
                : libvirt_invalid(r, error, "no dev="));
}

bool libvirt_read_alias(libvirt_reader *r, GError **error)
{
    const char *name;
    if (!libvirt_take_one(r, "name", &name, error))
        return false;
    if (!g_hash_table_add(r->aliases, g_strdup(name)))
        return libvirt_invalid(r, error, "'%s' is another disk's, too", name);
    GError *cause = NULL;
    return config_set_disk_key(r->disk, "alias", name, NULL, &cause) == CONFIG_SET_OK ||
           libvirt_invalid_value(r, cause, error);
}

bool libvirt_read_readonly(libvirt_reader *r, GError **error)
{
    r->disk->read_only = true;
    return libvirt_take_attributes(r, (libvirt_wanted[]){{0}}, error);
}

bool libvirt_read_allow_dir(libvirt_reader *r, GError **error)
{
    const char *path;
    if (!libvirt_take_one(r, "path", &path, error))
        return false;
    g_ptr_array_add(r->disk->allow_dirs, config_absolute(r->dir, path));
    return true;
}

bool libvirt_read_disk_options(libvirt_reader *r, GError **error)
{
    for (unsigned i = 0; r->names[i]; i++) {
        const char *name = r->names[i], *value = r->values[i];
        if (!libvirt_check_option(r, i, error))
            return false;
        if (g_str_has_prefix(name, "xmlns"))
            continue;
        if (strcmp(name, "threshold") == 0 || strcmp(name, "allow-dir") == 0 ||
            strcmp(name, "alias") == 0 || strcmp(name, "read-only") == 0 ||
            strcmp(name, "name") == 0)
            return libvirt_invalid(r, error, "%s= has an element of its own", name);
        g_ptr_array_add(r->settings, g_strdup(name));
        g_ptr_array_add(r->settings, g_strdup(value));
    }
    r->options_line = r->line;
    return true;
}

/* A disk of another type has nothing that is ours. */
bool libvirt_begin_disk(libvirt_reader *r, GError **error)
{
    const char *type = NULL, *device = NULL, *threshold = NULL;
    const libvirt_wanted known[] = {{"type", &type},
                                    {"device", &device},
                                    {"threshold", &threshold},
                                    {"model", NULL},
                                    {"snapshot", NULL},
                                    {"rawio", NULL},
                                    {"sgio", NULL},
                                    {0}};
    if (g_strcmp0(libvirt_attribute(r, "type"), "quorum") != 0)
        return true;
    if (!libvirt_take_attributes(r, known, error))
        return false;
    if (r->config->disks->len == DISKS_MAX)
        return libvirt_invalid(r, error, "more than %u disks", DISKS_MAX);
    if (device && strcmp(device, "disk") != 0 && strcmp(device, "cdrom") != 0)
        return libvirt_invalid(r, error, "device='%s': not disk or cdrom", device);
    r->disk = disk_options_new();
    g_ptr_array_add(r->config->disks, r->disk);
    g_clear_pointer(&r->disk->name, g_free);
    g_clear_pointer(&r->disk->file, g_free);
    r->disk->read_only = g_strcmp0(device, "cdrom") == 0;
    r->disk_line = r->line;
    g_array_append_val(r->lines, r->disk_line);
    r->disk_seen = 0;
    g_ptr_array_set_size(r->settings, 0);
    return !threshold || set_threshold(r, threshold, error);
}

static bool apply_settings(libvirt_reader *r, GError **error)
{
    r->line = r->options_line;
    r->element = LIBVIRT_OPTIONS;
    for (guint i = 0; i < r->settings->len; i += 2) {
        const char *name = g_ptr_array_index(r->settings, i);
        const char *value = g_ptr_array_index(r->settings, i + 1);
        GError *cause = NULL;
        switch (config_set_disk_key(r->disk, name, value, r->dir, &cause)) {
        case CONFIG_SET_OK:
            break;
        case CONFIG_SET_FAILED:
            return libvirt_invalid_value(r, cause, error);
        case CONFIG_SET_UNKNOWN:
            return libvirt_unknown_option(r, config_add_disk_keys, name, error);
        }
    }
    return true;
}

bool libvirt_end_disk(libvirt_reader *r, GError **error)
{
    disk_options *d = r->disk;
    const GPtrArray *replicas = d->replicas;
    if (!apply_settings(r, error))
        return false;
    r->line = r->disk_line;
    r->element = "disk";
    if (!d->name && d->alias && !libvirt_set_name(r, "disk", &d->name, d->alias, error))
        return false;
    if (!d->name && r->depth == 1)
        d->name = g_strdup("disk");
    if (!d->name)
        return libvirt_invalid(r, error, "no <target dev='NAME'/>");
    if (!g_hash_table_add(r->names_taken, d->name))
        return libvirt_invalid(r, error, "two quorums have the name '%s'", d->name);
    if (replicas->len == 0)
        return libvirt_invalid(r, error, "no replicas (each is a <backingStore>)");
    if (d->threshold > replicas->len)
        return libvirt_invalid(r, error,
                               "threshold=%u: may not exceed children count (%u)",
                               d->threshold, replicas->len);
    r->disk = NULL;
    return true;
}
