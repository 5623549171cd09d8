/*
 * fuzz-xml.c: configurations. An input that begins with '<', or a byte order mark, is libvirt
 * XML, any other a keyfile: a configuration that fits together, or one error line. What was
 * taken comes back from either form as it is.
 */
#include "fuse/config-internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* This ends the program as libFuzzer expects it; g_error would not. */
#define must(condition, ...)                                                             \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "broken: " #condition ": " __VA_ARGS__);                     \
            abort();                                                                     \
        }                                                                                \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef bool parse_function(mount_config *config, const char *file, const char *text,
                            GError **error);
typedef char *write_function(const mount_config *config, GError **error);

static void check_config(const mount_config *config)
{
    must(config->disks->len > 0, "no disk");
    for (guint i = 0; i < config->disks->len; i++) {
        const disk_options *d = g_ptr_array_index(config->disks, i);
        must(d->name && d->file, "disk %u has no name", i);
        must(d->replicas->len > 0 && d->replicas->len <= VOTE_REPLICAS_MAX &&
                 d->threshold <= d->replicas->len,
             "threshold %u of %u", d->threshold, d->replicas->len);
        for (guint k = 0; k < d->replicas->len; k++) {
            const replica_options *replica = g_ptr_array_index(d->replicas, k);
            must(replica->name && replica->path, "replica %u has no name", k);
        }
    }
}

static void check_error(const GError *error)
{
    must(error && error->domain == CONFIG_ERROR, "no error of a configuration");
    must(g_utf8_validate(error->message, -1, NULL), "an error that is not UTF-8");
    for (const char *p = error->message; *p; p++)
        must(!g_ascii_iscntrl(*p), "a control character in an error");
}

static mount_config *parse_text(parse_function *parse, const char *text, GError **error)
{
    mount_config *config = mount_config_new();
    if (parse(config, "/etc/vm", text, error)) {
        check_config(config);
        return config;
    }
    mount_config_free(config);
    return NULL;
}

static void check_form(const mount_config *config, write_function *write,
                       parse_function *parse)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = write(config, &error);
    if (!text) {
        check_error(error);
        return;
    }
    mount_config *again = parse_text(parse, text, &error);
    must(again, "%s: is not read again: %s", error ? error->message : "", text);
    g_autofree char *second = write(again, &error);
    must(g_strcmp0(text, second) == 0, "%s became %s", text, second ? second : "nothing");
    mount_config_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = g_strndup((const char *)data, size);
    if (strlen(text) != size || !g_utf8_validate(text, -1, NULL))
        return 0;
    bool xml = text[0] == '<' || g_str_has_prefix(text, "\xef\xbb\xbf");
    mount_config *config =
        parse_text(xml ? config_parse_libvirt : config_parse_keyfile, text, &error);
    if (!config) {
        check_error(error);
        return 0;
    }
    check_form(config, config_write_keyfile, config_parse_keyfile);
    check_form(config, config_write_libvirt, config_parse_libvirt);
    mount_config_free(config);
    return 0;
}
