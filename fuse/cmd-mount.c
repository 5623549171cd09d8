/*
 * cmd-mount.c: mount and umount.
 */
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include "fuse/daemon.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <unistd.h>

/* How often a busy mount is tried again: nothing tells us when it stops being busy. */
#define BUSY_RETRY_US 100000

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

static int unmount_as_user(const char *path, bool *ret_busy)
{
    const char *const command[] = {"fusermount3", "-u", "--", path, NULL};
    g_autofree char *said = NULL;
    g_autoptr(GError) error = NULL;
    int status = 0;
    if (!g_spawn_sync(NULL, (char **)command, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL,
                      &said, &status, &error)) {
        cli_error("%s: %s", path, error->message);
        return -1;
    }
    if (status == 0)
        return 0;
    *ret_busy = strstr(said, "busy") != NULL;
    if (!*ret_busy)
        cli_error("%s: %s", path, g_strstrip(said));
    return -1;
}

static int unmount_once(const char *path, bool *ret_busy)
{
    *ret_busy = false;
    if (geteuid() != 0)
        return unmount_as_user(path, ret_busy);
    if (umount2(path, UMOUNT_NOFOLLOW) == 0)
        return 0;
    *ret_busy = errno == EBUSY;
    if (!*ret_busy)
        cli_error("%s: %s", path, g_strerror(errno));
    return -1;
}

static int unmount(const char *path, bool wait)
{
    bool busy;
    while (unmount_once(path, &busy) < 0) {
        if (!busy)
            return -1;
        if (!wait) {
            cli_error("%s: busy (close what uses it, or quorumfs umount --wait %s)", path,
                      path);
            return -1;
        }
        g_usleep(BUSY_RETRY_US);
    }
    return 0;
}

int cmd_umount(int argc, char **argv)
{
    bool wait = false;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {{.name = "wait", .flag = &wait}, {0}};
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 1)
        return cli_usage_error("umount", CLI_USAGE, "one mount point is needed");
    cli_mount mount;
    if (!cli_mount_find(g_ptr_array_index(words, 0), &mount))
        return CLI_FAILED;

    /* Taken before the unmount, while the status still answers; readable when the process
     * has ended, and with it everything is flushed and closed. */
    json_int_t pid = json_integer_value(json_object_get(mount.status, "pid"));
    struct pollfd daemon = {.fd = pid > 0 ? pidfd_open((pid_t)pid, 0) : -1,
                            .events = POLLIN};
    int result = unmount(mount.path, wait);
    while (result == 0 && daemon.fd >= 0 && poll(&daemon, 1, -1) < 0 && errno == EINTR)
        ;
    if (daemon.fd >= 0)
        close(daemon.fd);
    cli_mount_clear(&mount);
    return result == 0 ? CLI_OK : CLI_FAILED;
}
