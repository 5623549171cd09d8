/*
 * cmd-mount.c: mount.
 */
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include "fuse/daemon.h"
#include <errno.h>
#include <stdlib.h>

/* Absolute, because the daemon leaves the working directory. A dead mount there is the
 * daemon's to clear, so nothing below the path is touched: a slash at its end would. */
static bool set_mountpoint(mount_config *config, const char *word)
{
    char *path = realpath(word, NULL);
    if (!path && errno == ENOTCONN) {
        g_autofree char *plain = g_canonicalize_filename(word, NULL);
        path = realpath(plain, NULL);
    }
    if (!path) {
        cli_error("mount point %s: %s", word, g_strerror(errno));
        return false;
    }
    config->mountpoint = g_strdup(path);
    free(path);
    return true;
}

static int mount_words(mount_config *config, GPtrArray *words, const char *format,
                       const char *name, const char *threshold, GPtrArray *options,
                       bool dry_run)
{
    g_autoptr(GError) error = NULL;
    if (!config_from_words(config, (char *const *)words->pdata, words->len - 1, format,
                           name, &error) ||
        !cli_apply_options(config, threshold, options, &error)) {
        cli_error("%s", error->message);
        return cli_config_exit(error, CLI_USAGE, CLI_FAILED);
    }
    if (!set_mountpoint(config, g_ptr_array_index(words, words->len - 1)))
        return CLI_FAILED;
    config->foreground |= config->debug;
    if (config->read_only)
        config_make_read_only(config);
    if (config->force)
        config_make_forced(config);
    return dry_run ? CLI_OK : daemon_mount(config);
}

int cmd_mount(int argc, char **argv)
{
    const char *name = NULL, *threshold = NULL, *format = NULL;
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    mount_config *config = mount_config_new();
    const cli_option options[] = {
        {.name = "name", .value = &name},
        {.name = "threshold", .value = &threshold},
        {.name = "format", .value = &format},
        {.name = "foreground", .letter = 'f', .flag = &config->foreground},
        {.name = "debug", .letter = 'd', .flag = &config->debug},
        {.letter = 's', .flag = &config->single_thread},
        {.name = "force", .flag = &config->force},
        {.letter = 'o', .values = mount_options},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code < 0 && words->len < 2)
        code = cli_usage_error("mount", CLI_USAGE,
                               words->len ? "no mount point given" : "no image given");
    if (code < 0)
        code = mount_words(config, words, format, name, threshold, mount_options, false);
    mount_config_free(config);
    return code;
}

int cmd_mount_helper(int argc, char **argv)
{
    bool sloppy = false, fake = false, no_mtab = false, verbose = false;
    const char *type = NULL, *namespace = NULL;
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {
        {.letter = 's', .flag = &sloppy},         {.letter = 'f', .flag = &fake},
        {.letter = 'n', .flag = &no_mtab},        {.letter = 'v', .flag = &verbose},
        {.letter = 't', .value = &type},          {.letter = 'N', .value = &namespace},
        {.letter = 'o', .values = mount_options}, {0},
    };
    char *name = argv[0];
    argv[0] = (char *)"mount";
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    argv[0] = name;
    if (code < 0 && words->len != 2)
        code = cli_usage_error("mount", CLI_USAGE,
                               "usage: %s SPEC DIR [-sfnv] [-o OPTIONS]", name);
    if (code >= 0)
        return code;
    mount_config *config = mount_config_new();
    code = mount_words(config, words, NULL, NULL, NULL, mount_options, fake);
    mount_config_free(config);
    return code;
}
