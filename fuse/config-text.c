/*
 * config-text.c: what the readers of text have in common, whatever its syntax.
 */
#include "fuse/config-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIG_BYTES_MAX (1u << 20)

char *config_one_line(char *text)
{
    for (char *p = text; *p; p++)
        if (g_ascii_iscntrl(*p))
            *p = '?';
    return text;
}

char *config_read_text(const char *file, GError **error)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    const char *why = NULL;
    g_autofree char *text = g_malloc(CONFIG_BYTES_MAX + 1);
    size_t length = 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        why = g_strerror(errno);
    else if (!S_ISREG(st.st_mode))
        why = "not a regular file";
    while (!why && length <= CONFIG_BYTES_MAX) {
        ssize_t got = read(fd, text + length, CONFIG_BYTES_MAX + 1 - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            why = g_strerror(errno);
        if (got <= 0)
            break;
        length += (size_t)got;
    }
    if (fd >= 0)
        close(fd);
    if (!why && length > CONFIG_BYTES_MAX)
        why = "larger than 1 MiB";
    if (!why && !g_utf8_validate(text, (gssize)length, NULL))
        why = "not UTF-8 text";
    if (why) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "%s: %s", file, why);
        return NULL;
    }
    text[length] = '\0';
    return g_steal_pointer(&text);
}

static bool set_disk_file(disk_options *d, const char *value, GError **error)
{
    if (!config_check_name("file", value, error))
        return false;
    g_free(d->file);
    d->file = g_strdup(value);
    return true;
}

/* A key without a value cannot be written in a keyfile. */
static config_set_result set_flag(bool *flag, const char *key, const char *value,
                                  GError **error)
{
    *flag = strcmp(value, "true") == 0;
    if (*flag || strcmp(value, "false") == 0)
        return CONFIG_SET_OK;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID, "%s=%s: not true or false",
                key, value);
    return CONFIG_SET_FAILED;
}

static bool set_disk_alias(disk_options *d, const char *value, GError **error)
{
    if (!config_check_name("alias", value, error))
        return false;
    g_free(d->alias);
    d->alias = g_strdup(value);
    return true;
}

config_set_result config_set_disk_key(disk_options *d, const char *key, const char *value,
                                      const char *base, GError **error)
{
    if (strcmp(key, "file") == 0)
        return set_disk_file(d, value, error) ? CONFIG_SET_OK : CONFIG_SET_FAILED;
    if (strcmp(key, "alias") == 0)
        return set_disk_alias(d, value, error) ? CONFIG_SET_OK : CONFIG_SET_FAILED;
    if (strcmp(key, "read-only") == 0)
        return set_flag(&d->read_only, key, value, error);
    if (strcmp(key, "blkverify") == 0)
        return set_flag(&d->blkverify, key, value, error);
    return config_set_disk(d, key, value, base, error);
}

void config_add_disk_keys(GPtrArray *names)
{
    static const char *const own[] = {"file", "alias", "read-only"};
    config_add_disk_settings(names);
    for (size_t i = 0; i < G_N_ELEMENTS(own); i++)
        g_ptr_array_add(names, (gpointer)own[i]);
}

char *config_default_file(const mount_config *config, const disk_options *d)
{
    return config->disks->len == 1 ? g_strdup("disk.img")
                                   : g_strdup_printf("%s.img", d->name);
}

const disk_options *config_name_files(mount_config *config)
{
    g_autoptr(GHashTable) files = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < config->disks->len; i++) {
        disk_options *d = g_ptr_array_index(config->disks, i);
        if (!d->file)
            d->file = config_default_file(config, d);
        if (!g_hash_table_add(files, d->file))
            return d;
    }
    return NULL;
}
