/*
 * config-words.c: IMAGE and CONFIG words of the command line.
 *
 * What names a format, a protocol or a helper is decided by the word alone, never by which
 * files happen to exist, so that a file with a strange name cannot change what a script
 * means. A colon after the first '/' belongs to a path.
 */
#include "formats/nbd.h"
#include "fuse/config-internal.h"
#include <string.h>

static const char *const formats[] = {"raw", "qcow", "qcow2", NULL};

bool config_check_format(const char *format, GError **error)
{
    if (g_strv_contains(formats, format))
        return true;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                "unknown format '%s' (raw, qcow or qcow2)", format);
    return false;
}

/* The length of the word's "FMT:", or 0. */
static size_t scheme_length(const char *word)
{
    size_t length = strcspn(word, ":/");
    return word[length] == ':' ? length + 1 : 0;
}

/* It is the word that is wrong. The error does not show a password. */
static bool check_remote(const char *source, GError **error)
{
    g_autoptr(GError) cause = NULL;
    if (nbd_check_source(source, &cause))
        return true;
    g_set_error_literal(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, cause->message);
    return false;
}

bool config_set_source(replica_options *replica, const char *word, const char *base,
                       GError **error)
{
    const char *path = word;
    g_autofree char *format = NULL;
    size_t scheme = scheme_length(word);
    if (scheme > 0) {
        format = g_strndup(word, scheme - 1);
        if (g_strv_contains(formats, format))
            path = word + scheme;
    }
    bool remote = chain_is_remote(path);
    if (remote && !check_remote(path, error))
        return false;
    if (scheme > 0 && path == word && !remote) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                    "'%s': unknown format '%s' (raw, qcow or qcow2; a path with a colon "
                    "is written './%s')",
                    word, format, word);
        return false;
    }
    if (!*path) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "'%s': no path", word);
        return false;
    }
    if (path != word) {
        g_free(replica->format);
        replica->format = g_steal_pointer(&format);
    }
    g_free(replica->source);
    g_free(replica->path);
    replica->source = g_strdup(word);
    replica->path = remote ? g_strdup(path) : config_absolute(base, path);
    return true;
}

replica_options *config_parse_image(const char *word, const char *format, GError **error)
{
    if (format && !config_check_format(format, error))
        return NULL;
    replica_options *replica = replica_options_new();
    replica->format = g_strdup(format);
    if (!config_set_source(replica, word, NULL, error)) {
        replica_options_free(replica);
        return NULL;
    }
    return replica;
}

bool config_is_config_file(const char *word)
{
    return scheme_length(word) == 0 &&
           (g_str_has_suffix(word, ".conf") || g_str_has_suffix(word, ".xml"));
}

char *config_replica_name(unsigned index)
{
    char text[16];
    char *at = text + sizeof text - 1;
    *at = '\0';
    for (unsigned n = index + 1; n > 0; n = (n - 1) / 26)
        *--at = (char)('a' + (n - 1) % 26);
    return g_strdup(at);
}

static bool load_config_file(mount_config *config, const char *file, const char *format,
                             const char *name, GError **error)
{
    if (format || name) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                    "--%s is for images (the configuration names its own)",
                    format ? "format" : "name");
        return false;
    }
    g_free(config->file);
    config->file = config_absolute(NULL, file);
    return g_str_has_suffix(file, ".xml") ? config_load_libvirt(config, file, error)
                                          : config_load_keyfile(config, file, error);
}

bool config_from_words(mount_config *config, char *const *words, unsigned n_words,
                       const char *format, const char *name, GError **error)
{
    if (n_words == 1 && config_is_config_file(words[0]))
        return load_config_file(config, words[0], format, name, error);
    if (n_words == 0 || n_words > VOTE_REPLICAS_MAX) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                    n_words ? "%u images are too many (at most %u)" : "no image given",
                    n_words, VOTE_REPLICAS_MAX);
        return false;
    }
    if (name && !config_check_name("file", name, error))
        return false;
    disk_options *d = disk_options_new();
    g_ptr_array_add(config->disks, d);
    g_free(d->name);
    g_free(d->file);
    d->name = g_strdup("disk");
    d->file = g_strdup(name ? name : "disk.img");
    for (unsigned i = 0; i < n_words; i++) {
        if (config_is_config_file(words[i])) {
            g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                        "'%s': one configuration or images, not both (an image of that "
                        "name is written 'raw:%s')",
                        words[i], words[i]);
            return false;
        }
        replica_options *replica = config_parse_image(words[i], format, error);
        if (!replica)
            return false;
        g_ptr_array_add(d->replicas, replica);
        g_free(replica->name);
        replica->name = config_replica_name(i);
    }
    return true;
}
