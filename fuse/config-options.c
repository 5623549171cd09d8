/*
 * config-options.c: -o strings.
 *
 * Four kinds of words: settings of the disks (config-settings.c), settings of the mount,
 * words for the kernel and libfuse that are passed on, and words that mount(8), fstab and
 * systemd put there for themselves, which are accepted and mean nothing here.
 */
#include "fuse/config-internal.h"
#include <string.h>

static bool bad_value(GError **error, const char *name, const char *value,
                      const char *expected)
{
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "%s=%s: not %s", name, value,
                expected);
    return false;
}

static bool set_ro(mount_config *config, const char *value G_GNUC_UNUSED,
                   GError **error G_GNUC_UNUSED)
{
    config->read_only = true;
    return true;
}

/* As with mount(8) the last one counts. */
static bool set_rw(mount_config *config, const char *value G_GNUC_UNUSED,
                   GError **error G_GNUC_UNUSED)
{
    config->read_only = false;
    return true;
}

static bool set_force(mount_config *config, const char *value G_GNUC_UNUSED,
                      GError **error G_GNUC_UNUSED)
{
    config->force = true;
    return true;
}

static bool refuse_remount(mount_config *config G_GNUC_UNUSED,
                           const char *value G_GNUC_UNUSED, GError **error)
{
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_UNAVAILABLE,
                "remount is not available in this version (umount, then mount again)");
    return false;
}

static bool set_allow_other(mount_config *config, const char *value G_GNUC_UNUSED,
                            GError **error G_GNUC_UNUSED)
{
    config->allow_other = true;
    return true;
}

static bool set_state_dir(mount_config *config, const char *value,
                          GError **error G_GNUC_UNUSED)
{
    g_free(config->state_dir);
    config->state_dir = config_absolute(NULL, value);
    return true;
}

static bool set_qmp(mount_config *config, const char *value, GError **error G_GNUC_UNUSED)
{
    g_free(config->socket_path);
    config->socket_path = config_absolute(NULL, value);
    return true;
}

static bool set_cache(mount_config *config, const char *value, GError **error)
{
    static const char *const modes[] = {
        [CONFIG_CACHE_AUTO] = "auto",
        [CONFIG_CACHE_NONE] = "none",
        [CONFIG_CACHE_WRITEBACK] = "writeback",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (strcmp(value, modes[i]) == 0) {
            config->cache = (config_cache)i;
            return true;
        }
    }
    return bad_value(error, "cache", value, "auto, none or writeback");
}

/* (uid_t)-1 and (gid_t)-1 mean "nobody given" to the kernel. */
static bool parse_id(const char *name, const char *value, unsigned *ret_id,
                     GError **error)
{
    guint64 id;
    if (!g_ascii_string_to_unsigned(value, 10, 0, UINT32_MAX - 1, &id, NULL))
        return bad_value(error, name, value, "a number");
    *ret_id = (unsigned)id;
    return true;
}

static bool set_uid(mount_config *config, const char *value, GError **error)
{
    config->has_uid = true;
    return parse_id("uid", value, &config->uid, error);
}

static bool set_gid(mount_config *config, const char *value, GError **error)
{
    config->has_gid = true;
    return parse_id("gid", value, &config->gid, error);
}

static bool set_umask(mount_config *config, const char *value, GError **error)
{
    guint64 mask;
    if (!g_ascii_string_to_unsigned(value, 8, 0, 0777, &mask, NULL))
        return bad_value(error, "umask", value, "an octal mask up to 0777");
    config->umask = (mode_t)mask;
    config->has_umask = true;
    return true;
}

/* The mount is found again by its type, so it cannot have another. */
static bool set_subtype(mount_config *config G_GNUC_UNUSED, const char *value,
                        GError **error)
{
    return strcmp(value, "quorumfs") == 0 ||
           bad_value(error, "subtype", value, "'quorumfs'");
}

/* Passed on: `set` is NULL and `pass` true. Accepted only: both are not. */
static const struct {
    const char *name; /* with a final '=' if it takes a value */
    bool (*set)(mount_config *config, const char *value, GError **error);
    bool pass;
} rows[] = {
    {"ro", set_ro, false},
    {"rw", set_rw, false},
    {"force", set_force, false},
    {"remount", refuse_remount, false},
    {"allow_other", set_allow_other, false},
    {"state-dir=", set_state_dir, false},
    {"qmp=", set_qmp, false},
    {"cache=", set_cache, false},
    {"uid=", set_uid, false},
    {"gid=", set_gid, false},
    {"umask=", set_umask, false},
    {"subtype=", set_subtype, false},
    {"fsname=", NULL, true},
    {"default_permissions", NULL, true},
    {"auto_unmount", NULL, true},
    {"nosuid", NULL, true},
    {"nodev", NULL, true},
    {"noexec", NULL, true},
    {"noatime", NULL, true},
    {"nodiratime", NULL, false},
    {"sync", NULL, true},
    {"dirsync", NULL, true},
    {"suid", NULL, false},
    {"dev", NULL, false},
    {"exec", NULL, false},
    {"async", NULL, false},
    {"atime", NULL, false},
    {"diratime", NULL, false},
    {"relatime", NULL, false},
    {"norelatime", NULL, false},
    {"strictatime", NULL, false},
    {"nostrictatime", NULL, false},
    {"lazytime", NULL, false},
    {"nolazytime", NULL, false},
    {"auto", NULL, false},
    {"noauto", NULL, false},
    {"defaults", NULL, false},
    {"user", NULL, false},
    {"user=", NULL, false},
    {"nouser", NULL, false},
    {"users", NULL, false},
    {"owner", NULL, false},
    {"group", NULL, false},
    {"nofail", NULL, false},
    {"_netdev", NULL, false},
    {"comment=", NULL, false},
};

static bool unknown_option(const char *option, const char *name, bool has_value,
                           GError **error)
{
    g_autoptr(GPtrArray) known = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) settings = g_ptr_array_new();
    config_add_disk_settings(settings);
    for (guint i = 0; i < settings->len; i++)
        g_ptr_array_add(known,
                        g_strdup_printf("%s=", (char *)g_ptr_array_index(settings, i)));
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        g_ptr_array_add(known, g_strdup(rows[i].name));
    g_ptr_array_add(known, NULL);
    g_autofree char *word = g_strdup_printf("%s%s", name, has_value ? "=" : "");
    g_autofree char *hint = config_hint(word, (const char *const *)known->pdata);
    /* A slip in "password=" must not put the password into a log. */
    if (strcasestr(name, "pass") || strstr(hint, "'password"))
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                    "unknown option '%s' (a password is given as password-file=PATH)",
                    word);
    else
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "unknown option '%s'%s",
                    option, hint);
    return false;
}

static config_set_result apply_to_disks(mount_config *config, const char *name,
                                        const char *value, GError **error)
{
    config_set_result result = CONFIG_SET_UNKNOWN;
    for (guint i = 0; i < config->disks->len; i++) {
        result = config_set_disk(g_ptr_array_index(config->disks, i), name, value, NULL,
                                 error);
        if (result != CONFIG_SET_OK)
            break;
    }
    return result;
}

/* A comma within a value is written "\,". libfuse reads them the same way. */
static char *unescape(const char *escaped)
{
    GString *text = g_string_new(NULL);
    for (const char *p = escaped; *p; p++) {
        if (*p == '\\' && p[1])
            p++;
        g_string_append_c(text, *p);
    }
    return g_string_free(text, FALSE);
}

static bool missing_or_extra_value(const char *name, bool takes_value, GError **error)
{
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                takes_value ? "'%s' needs a value" : "'%s' takes no value", name);
    return false;
}

/* The row for a name, preferring the one that takes a value if there is one; -1. */
static int find_row(const char *name, bool has_value)
{
    int found = -1;
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        size_t length = strcspn(rows[i].name, "=");
        if (strncmp(rows[i].name, name, length) != 0 || name[length])
            continue;
        found = (int)i;
        if ((rows[i].name[length] == '=') == has_value)
            break;
    }
    return found;
}

static bool apply_option(mount_config *config, const char *option, GError **error)
{
    g_autofree char *name = g_strndup(option, strcspn(option, "="));
    bool has_value = option[strlen(name)] == '=';
    g_autofree char *value = has_value ? unescape(option + strlen(name) + 1) : NULL;

    if (g_str_has_prefix(name, "x-") || g_str_has_prefix(name, "X-"))
        return true;
    config_set_result result = apply_to_disks(config, name, value, error);
    if (result != CONFIG_SET_UNKNOWN)
        return result == CONFIG_SET_OK;
    int row = find_row(name, has_value);
    if (row < 0)
        return unknown_option(option, name, has_value, error);
    bool takes_value = g_str_has_suffix(rows[row].name, "=");
    if (takes_value != has_value || (value && !*value))
        return missing_or_extra_value(name, takes_value, error);
    if (rows[row].pass)
        g_ptr_array_add(config->fuse_options, g_strdup(option));
    return !rows[row].set || rows[row].set(config, value, error);
}

bool config_apply_options(mount_config *config, const char *options, GError **error)
{
    while (*options) {
        size_t length = 0;
        while (options[length] && options[length] != ',')
            length += options[length] == '\\' && options[length + 1] ? 2 : 1;
        g_autofree char *option = g_strndup(options, length);
        if (*option && !apply_option(config, option, error))
            return false;
        options += length + (options[length] == ',');
    }
    return true;
}
