/*
 * config.c: the struct that every reader fills, and the small parsers that they share.
 */
#include "fuse/config-internal.h"
#include <string.h>
#include <unistd.h>

/* Words longer than this are nobody's typing error. */
#define NEAREST_WORD_MAX 63u
#define NEAREST_DISTANCE 3u

G_DEFINE_QUARK(config - error - quark, config_error)

mount_config *mount_config_new(void)
{
    mount_config *config = g_new0(mount_config, 1);
    config->disks = g_ptr_array_new_with_free_func((GDestroyNotify)disk_options_free);
    config->fuse_options = g_ptr_array_new_with_free_func(g_free);
    return config;
}

void mount_config_free(mount_config *config)
{
    if (!config)
        return;
    g_ptr_array_unref(config->disks);
    g_ptr_array_unref(config->fuse_options);
    g_free(config->file);
    g_free(config->mountpoint);
    g_free(config->state_dir);
    g_free(config->socket_path);
    g_free(config);
}

void config_make_read_only(mount_config *config)
{
    config->read_only = true;
    for (guint i = 0; i < config->disks->len; i++)
        ((disk_options *)g_ptr_array_index(config->disks, i))->read_only = true;
}

void config_make_offline(mount_config *config)
{
    config_make_read_only(config);
    for (guint i = 0; i < config->disks->len; i++)
        ((disk_options *)g_ptr_array_index(config->disks, i))->on_divergence_repair =
            false;
}

void config_make_forced(mount_config *config)
{
    config->force = true;
    for (guint i = 0; i < config->disks->len; i++)
        ((disk_options *)g_ptr_array_index(config->disks, i))->force = true;
}

/* Insertions, deletions, replacements and swaps of neighbours that make `b` of `a`, the
 * last three rows of the table at a time. Both words are at most NEAREST_WORD_MAX. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned rows[3][NEAREST_WORD_MAX + 1];
    size_t length = strlen(b);
    for (unsigned j = 0; j <= length; j++)
        rows[0][j] = j;
    unsigned i = 1;
    for (; a[i - 1]; i++) {
        unsigned *row = rows[i % 3], *above = rows[(i + 2) % 3];
        const unsigned *higher = rows[(i + 1) % 3];
        row[0] = i;
        for (unsigned j = 1; j <= length; j++) {
            row[j] =
                MIN(above[j - 1] + (a[i - 1] != b[j - 1]), MIN(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = MIN(row[j], higher[j - 2] + 1);
        }
    }
    return rows[(i - 1) % 3][length];
}

const char *config_nearest(const char *word, const char *const *known)
{
    if (strlen(word) > NEAREST_WORD_MAX)
        return NULL;
    const char *best = NULL;
    unsigned best_distance = NEAREST_DISTANCE + 1;
    for (; *known; known++) {
        if (strlen(*known) > NEAREST_WORD_MAX)
            continue;
        unsigned distance = edit_distance(word, *known);
        if (distance < best_distance && 2 * distance < strlen(word)) {
            best = *known;
            best_distance = distance;
        }
    }
    return best;
}

char *config_hint(const char *word, const char *const *known)
{
    const char *nearest = config_nearest(word, known);
    return nearest ? g_strdup_printf(" (did you mean '%s'?)", nearest) : g_strdup("");
}

/* Plain digits or 0x...; nothing that strtoull would forgive. */
static bool parse_number(const char *text, uint64_t *ret_value, const char **ret_rest)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const char *digits = hex ? text + 2 : text;
    if (!(hex ? g_ascii_isxdigit(*digits) : g_ascii_isdigit(*digits)))
        return false;
    errno = 0;
    char *end;
    guint64 value = g_ascii_strtoull(digits, &end, hex ? 16 : 10);
    if (errno)
        return false;
    *ret_value = value;
    *ret_rest = end;
    return true;
}

bool config_parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char units[] = "KMGT";
    uint64_t value;
    const char *rest;
    if (!parse_number(text, &value, &rest))
        return false;
    unsigned shift = 0;
    if (*rest) {
        const char *unit = strchr(units, g_ascii_toupper(*rest));
        if (!unit || rest[1])
            return false;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (value > UINT64_MAX >> shift)
        return false;
    *ret_bytes = value << shift;
    return true;
}

bool config_parse_time_ms(const char *text, unsigned *ret_ms)
{
    uint64_t value, scale = 1000;
    const char *rest;
    if (!parse_number(text, &value, &rest))
        return false;
    if (strcmp(rest, "ms") == 0)
        scale = 1;
    else if (*rest && strcmp(rest, "s") != 0)
        return false;
    /* A limit that poll() and friends can take. */
    if (value > G_MAXINT / scale)
        return false;
    *ret_ms = (unsigned)(value * scale);
    return true;
}

bool config_check_name(const char *what, const char *name, GError **error)
{
    static const char *const taken[] = {".",           "..",      ".quorumfs",
                                        "status.json", "metrics", NULL};
    const char *why = NULL;
    if (!*name)
        why = "is empty";
    else if (!g_utf8_validate(name, -1, NULL))
        why = "is not UTF-8";
    else if (strlen(name) > 200)
        why = "is too long";
    else if (strchr(name, '/'))
        why = "contains '/'";
    else if (g_strv_contains(taken, name))
        why = "is taken";
    for (const char *p = name; !why && *p; p++)
        if (g_ascii_iscntrl(*p))
            why = "contains a control character";
    if (!why)
        return true;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "%s name '%s' %s", what, name,
                why);
    return false;
}

char *config_absolute(const char *base, const char *path)
{
    if (g_path_is_absolute(path))
        return g_strdup(path);
    g_autofree char *here = base ? g_strdup(base) : g_get_current_dir();
    return g_build_filename(here, path, NULL);
}
