/*
 * config-keyfile.c: [disk NAME] and [replica DISK/NAME] groups.
 *
 * GKeyFile merges repeated groups and lets the last of repeated keys win, without a word.
 * So the text is scanned first: every line must be a comment, a new group or a new key of
 * its group, and the errors that have a line number come from there. GKeyFile then only
 * gives the values (escapes, lists).
 */
#include "fuse/config-internal.h"
#include <string.h>

typedef struct keyfile_reader {
    mount_config *config;
    const char *file;
    char *dir; /* of the file: where relative paths start */
    GKeyFile *keys;
    GHashTable *disks; /* name, borrowed -> disk_options*, borrowed */
} keyfile_reader;

static bool invalid(GError **error, const char *file, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static bool invalid(GError **error, const char *file, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = config_one_line(g_strdup_vprintf(format, args));
    va_end(args);
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID, "%s: %s", file, why);
    return false;
}

/* The setters speak of the word alone; here it belongs to a group of a file. */
static bool invalid_group(GError **error, const keyfile_reader *reader, const char *group,
                          GError *cause)
{
    config_error code = g_error_matches(cause, CONFIG_ERROR, CONFIG_ERROR_UNAVAILABLE)
                            ? CONFIG_ERROR_UNAVAILABLE
                            : CONFIG_ERROR_INVALID;
    g_set_error(error, CONFIG_ERROR, (gint)code, "%s: [%s]: %s", reader->file, group,
                config_one_line(cause->message));
    g_error_free(cause);
    return false;
}

/* One line, stripped. *group is the current group, replaced at each "[...]". */
static bool scan_line(const char *file, unsigned number, char *line, char **group,
                      GHashTable *seen, GError **error)
{
    if (!*line || *line == '#')
        return true;
    for (const char *p = line; *p; p++)
        if (g_ascii_iscntrl(*p) && *p != '\t')
            return invalid(error, file, "line %u: a control character", number);
    if (*line == '[') {
        size_t length = strlen(line);
        if (length < 3 || line[length - 1] != ']' ||
            strpbrk(line + 1, "[]") != line + length - 1)
            return invalid(error, file, "line %u: not a group '[NAME]'", number);
        g_free(*group);
        *group = g_strndup(line + 1, length - 2);
        if (!g_hash_table_add(seen, g_strdup_printf("[%s]", *group)))
            return invalid(error, file, "line %u: group [%s] is repeated", number,
                           *group);
        return true;
    }
    char *equals = strchr(line, '=');
    if (!equals || equals == line)
        return invalid(error, file, "line %u: neither KEY=VALUE nor [GROUP]", number);
    if (!*group)
        return invalid(error, file, "line %u: a key before the first [GROUP]", number);
    *equals = '\0';
    g_strchomp(line);
    if (!g_hash_table_add(seen, g_strdup_printf("[%s]%s", *group, line)))
        return invalid(error, file, "line %u: [%s]: key '%s' is repeated", number, *group,
                       line);
    return true;
}

static bool scan(const char *file, const char *text, GError **error)
{
    g_autoptr(GHashTable) seen =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autofree char *group = NULL;
    for (unsigned number = 1; *text; number++) {
        size_t length = strcspn(text, "\n");
        g_autofree char *line = g_strndup(text, length);
        if (!scan_line(file, number, g_strstrip(line), &group, seen, error))
            return false;
        text += length + (text[length] == '\n');
    }
    return true;
}

/* GKeyFile gives a value and an error where only some of the value can be had. */
static char *get_value(const keyfile_reader *reader, const char *group, const char *key,
                       GError **error)
{
    GError *cause = NULL;
    g_autofree char *value = g_key_file_get_string(reader->keys, group, key, &cause);
    if (!cause)
        return g_steal_pointer(&value);
    g_error_free(cause);
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                "%s: bad escape (a backslash is written '\\\\')", key);
    return NULL;
}

static bool unknown_key(const keyfile_reader *reader, const char *group, const char *key,
                        void (*add_names)(GPtrArray *names), GError **error)
{
    g_autoptr(GPtrArray) known = g_ptr_array_new();
    add_names(known);
    g_ptr_array_add(known, NULL);
    g_autofree char *hint = config_hint(key, (const char *const *)known->pdata);
    return invalid(error, reader->file, "[%s]: unknown key '%s'%s", group, key, hint);
}

static bool read_replica(keyfile_reader *reader, const char *group, GError **error)
{
    g_autofree char *disk_name = g_strdup(group + strlen("replica "));
    char *slash = strchr(disk_name, '/');
    if (!slash)
        return invalid(error, reader->file, "[%s]: not [replica DISK/NAME]", group);
    *slash = '\0';
    disk_options *d = g_hash_table_lookup(reader->disks, disk_name);
    if (!d)
        return invalid(error, reader->file, "[%s]: there is no [disk %s]", group,
                       disk_name);
    if (d->replicas->len == VOTE_REPLICAS_MAX)
        return invalid(error, reader->file, "[%s]: more than %u replicas", group,
                       VOTE_REPLICAS_MAX);
    GError *cause = NULL;
    if (!config_check_name("replica", slash + 1, &cause))
        return invalid_group(error, reader, group, cause);

    replica_options *replica = replica_options_new();
    g_ptr_array_add(d->replicas, replica);
    g_free(replica->name);
    replica->name = g_strdup(slash + 1);
    g_auto(GStrv) keys = g_key_file_get_keys(reader->keys, group, NULL, NULL);
    for (char **key = keys; key && *key; key++) {
        g_autofree char *value = get_value(reader, group, *key, &cause);
        if (!value)
            return invalid_group(error, reader, group, cause);
        switch (config_set_replica(replica, *key, value, reader->dir, &cause)) {
        case CONFIG_SET_OK:
            break;
        case CONFIG_SET_FAILED:
            return invalid_group(error, reader, group, cause);
        case CONFIG_SET_UNKNOWN:
            return unknown_key(reader, group, *key, config_add_replica_settings, error);
        }
    }
    if (!replica->path)
        return invalid(error, reader->file, "[%s]: no source=", group);
    return true;
}

static bool set_allow_dirs(disk_options *d, const keyfile_reader *reader,
                           const char *group, GError **error)
{
    g_auto(GStrv) dirs =
        g_key_file_get_string_list(reader->keys, group, "allow-dir", NULL, NULL);
    if (!dirs || !*dirs) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "allow-dir: not a list of directories (DIR;DIR)");
        return false;
    }
    for (char **dir = dirs; *dir; dir++)
        if (config_set_disk(d, "allow-dir", *dir, reader->dir, error) != CONFIG_SET_OK)
            return false;
    return true;
}

static bool read_disk(keyfile_reader *reader, disk_options *d, GError **error)
{
    g_autofree char *group = g_strdup_printf("disk %s", d->name);
    g_auto(GStrv) keys = g_key_file_get_keys(reader->keys, group, NULL, NULL);
    for (char **key = keys; key && *key; key++) {
        GError *cause = NULL;
        config_set_result result;
        g_autofree char *value = get_value(reader, group, *key, &cause);
        if (!value)
            return invalid_group(error, reader, group, cause);
        if (strcmp(*key, "allow-dir") == 0)
            result = set_allow_dirs(d, reader, group, &cause) ? CONFIG_SET_OK
                                                              : CONFIG_SET_FAILED;
        else
            result = config_set_disk_key(d, *key, value, reader->dir, &cause);
        if (result == CONFIG_SET_FAILED)
            return invalid_group(error, reader, group, cause);
        if (result == CONFIG_SET_UNKNOWN)
            return unknown_key(reader, group, *key, config_add_disk_keys, error);
    }
    return true;
}

static bool add_disk(keyfile_reader *reader, const char *group, GError **error)
{
    const char *name = group + strlen("disk ");
    GError *cause = NULL;
    if (!config_check_name("disk", name, &cause))
        return invalid_group(error, reader, group, cause);
    disk_options *d = disk_options_new();
    g_ptr_array_add(reader->config->disks, d);
    g_free(d->name);
    g_free(d->file);
    d->name = g_strdup(name);
    d->file = NULL;
    g_hash_table_insert(reader->disks, d->name, d);
    return true;
}

/* Disks first: a replica may stand before its disk. */
static bool read_groups(keyfile_reader *reader, GError **error)
{
    static const char *const kinds[] = {"disk", "replica", NULL};
    g_auto(GStrv) groups = g_key_file_get_groups(reader->keys, NULL);
    for (char **group = groups; *group; group++) {
        if (g_str_has_prefix(*group, "disk ")) {
            if (!add_disk(reader, *group, error))
                return false;
        } else if (!g_str_has_prefix(*group, "replica ")) {
            g_autofree char *word = g_strndup(*group, strcspn(*group, " "));
            g_autofree char *hint = config_hint(word, kinds);
            return invalid(error, reader->file, "unknown group [%s]%s", *group, hint);
        }
    }
    for (char **group = groups; *group; group++)
        if (g_str_has_prefix(*group, "replica ") && !read_replica(reader, *group, error))
            return false;
    for (guint i = 0; i < reader->config->disks->len; i++)
        if (!read_disk(reader, g_ptr_array_index(reader->config->disks, i), error))
            return false;
    return true;
}

static bool check_disks(const keyfile_reader *reader, GError **error)
{
    const GPtrArray *disks = reader->config->disks;
    if (disks->len == 0)
        return invalid(error, reader->file, "no [disk NAME] group");
    for (guint i = 0; i < disks->len; i++) {
        disk_options *d = g_ptr_array_index(disks, i);
        if (d->replicas->len == 0)
            return invalid(error, reader->file,
                           "[disk %s]: no replicas (add [replica %s/a])", d->name,
                           d->name);
        if (d->threshold > d->replicas->len)
            return invalid(error, reader->file,
                           "[disk %s]: threshold=%u: may not exceed children count (%u)",
                           d->name, d->threshold, d->replicas->len);
    }
    const disk_options *second = config_name_files(reader->config);
    return !second ||
           invalid(error, reader->file, "[disk %s]: another disk has the file '%s' too",
                   second->name, second->file);
}

bool config_load_keyfile(mount_config *config, const char *file, GError **error)
{
    g_autofree char *text = config_read_text(file, error);
    return text && config_parse_keyfile(config, file, text, error);
}

bool config_parse_keyfile(mount_config *config, const char *file, const char *text,
                          GError **error)
{
    if (!scan(file, text, error))
        return false;
    g_autoptr(GKeyFile) keys = g_key_file_new();
    GError *cause = NULL;
    if (!g_key_file_load_from_data(keys, text, strlen(text), G_KEY_FILE_KEEP_TRANSLATIONS,
                                   &cause)) {
        invalid(error, file, "%s", cause->message);
        g_error_free(cause);
        return false;
    }
    g_autofree char *path = config_absolute(NULL, file);
    g_autofree char *dir = g_path_get_dirname(path);
    g_autoptr(GHashTable) disks = g_hash_table_new(g_str_hash, g_str_equal);
    keyfile_reader reader = {config, file, dir, keys, disks};
    return read_groups(&reader, error) && check_disks(&reader, error);
}
