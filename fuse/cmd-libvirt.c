/*
 * cmd-libvirt.c: quorumfs import-libvirt and export-libvirt: one configuration in, the
 * other form of it out.
 */
#include "fuse/cli.h"

typedef bool load_function(mount_config *config, const char *file, GError **error);
typedef char *write_function(const mount_config *config, GError **error);

static int convert(const char *file, load_function *load, write_function *write)
{
    mount_config *config = mount_config_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *text = load(config, file, &error) ? write(config, &error) : NULL;
    mount_config_free(config);
    if (!text) {
        cli_error("%s", error->message);
        return CLI_UNREACHABLE;
    }
    fputs(text, stdout);
    return CLI_OK;
}

/* The one word. -1 to go on, else the exit code. */
static int take_word(int argc, char **argv, const char *what, const char **ret_word)
{
    static const cli_option none[] = {{0}};
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    int code = cli_parse(argc, argv, none, CLI_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 1)
        return cli_usage_error(argv[0], CLI_USAGE,
                               words->len ? "too many words" : "no %s given", what);
    *ret_word = g_ptr_array_index(words, 0);
    return -1;
}

int cmd_import_libvirt(int argc, char **argv)
{
    const char *file;
    int code = take_word(argc, argv, "XML file", &file);
    return code >= 0 ? code : convert(file, config_load_libvirt, config_write_keyfile);
}

int cmd_export_libvirt(int argc, char **argv)
{
    const char *file;
    int code = take_word(argc, argv, "configuration", &file);
    if (code >= 0)
        return code;
    if (!config_is_config_file(file))
        return cli_usage_error(argv[0], CLI_USAGE,
                               "'%s' is not a configuration (.conf or .xml)", file);
    return convert(
        file, g_str_has_suffix(file, ".xml") ? config_load_libvirt : config_load_keyfile,
        config_write_libvirt);
}
