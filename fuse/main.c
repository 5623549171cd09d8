/*
 * main.c: which sub-command runs.
 */
#include "formats/qcow-libqcow.h"
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv); /* NULL: not in this version */
    int usage;                         /* exit code of a usage error */
} command;

static const command commands[] = {
    {"mount", cmd_mount, CLI_USAGE},
    {"umount", cmd_umount, CLI_USAGE},
    {"status", cmd_status, CLI_USAGE},
    {"events", cmd_events, CLI_USAGE},
    {"explain", cmd_explain, CLI_USAGE},
    {"verify", cmd_verify, CLI_VERIFY_USAGE},
    {"info", cmd_info, CLI_USAGE},
    {"repair", cmd_repair, CLI_VERIFY_USAGE},
    {"scrub", cmd_scrub, CLI_VERIFY_USAGE},
    {"resync", cmd_resync, CLI_VERIFY_USAGE},
    {"replica", cmd_replica, CLI_USAGE},
    {"job", NULL, CLI_USAGE},
    {"import-libvirt", cmd_import_libvirt, CLI_USAGE},
    {"export-libvirt", cmd_export_libvirt, CLI_USAGE},
    {"doctor", NULL, CLI_USAGE},
};

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static int unavailable(const command *c)
{
    cli_error("%s is not available in this version", c->name);
    return c->usage;
}

static int unknown_command(const char *word)
{
    const char *known[G_N_ELEMENTS(commands) + 4] = {"help", "--help", "--version"};
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        known[i + 3] = commands[i].name;
    g_autofree char *hint = config_hint(word, known);
    cli_error("unknown command '%s'%s", word, *hint ? hint : " (quorumfs --help)");
    return CLI_USAGE;
}

static int help(int argc, char **argv)
{
    if (argc < 2)
        return help_print(stdout, NULL) ? CLI_OK : CLI_USAGE;
    const command *c = find_command(argv[1]);
    if (c && !c->run) {
        unavailable(c);
        return CLI_USAGE;
    }
    return help_print(stdout, argv[1]) ? CLI_OK : unknown_command(argv[1]);
}

static int version(void)
{
    puts("quorumfs " QUORUMFS_VERSION);
    return CLI_OK;
}

static bool is_one_of(const char *word, const char *a, const char *b)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0;
}

/* mount(8) runs mount.fuse.quorumfs SPEC DIR ..., mount.fuse3 runs quorumfs SPEC DIR ...:
 * there is no sub-command then, but options or a configuration. */
static int dispatch(int argc, char **argv)
{
    g_autofree char *called_as = g_path_get_basename(argc > 0 ? argv[0] : "");
    if (g_str_has_prefix(called_as, "mount."))
        return cmd_mount_helper(argc, argv);
    if (argc < 2) {
        help_print(stderr, NULL);
        return CLI_USAGE;
    }
    const char *word = argv[1];
    const command *c = find_command(word);
    if (c)
        return c->run ? c->run(argc - 1, argv + 1) : unavailable(c);
    if (strcmp(word, "help") == 0)
        return help(argc - 1, argv + 1);
    if (is_one_of(word, "--help", "-h"))
        return help(1, argv);
    if (is_one_of(word, "--version", "-V"))
        return version();
    if ((word[0] == '-' && argc > 2) || config_is_config_file(word)) {
        argv[0] = (char *)"mount";
        return cmd_mount(argc, argv);
    }
    return unknown_command(word);
}

/* A deep chain has two or three descriptors a layer; the usual soft limit of 1024 is meant
 * for programs that still use select(2). */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* A full disk must not make an empty status of a good one. */
static int finish_output(int code)
{
    bool good = !ferror(stdout);
    good = fflush(stdout) == 0 && good;
    if (good || code != CLI_OK)
        return code;
    cli_error("standard output cannot be written");
    return CLI_UNREACHABLE;
}

/* No file of ours may become descriptor 0, 1 or 2. What was closed is open in the wrong
 * direction, so that its use is still an error. */
static void fill_stdio(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        int null = open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
        if (null > fd)
            close(null);
    }
}

/* What libraries have to say, and the servers of exec:, is a line like ours. */
static void log_line(const char *domain G_GNUC_UNUSED, GLogLevelFlags level,
                     const char *message, gpointer data G_GNUC_UNUSED)
{
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING |
                 G_LOG_LEVEL_MESSAGE))
        cli_error("%s", message);
}

int main(int argc, char **argv)
{
    libqcow_helper_main(argc, argv);
    fill_stdio();
    g_log_set_default_handler(log_line, NULL);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would hide how our children end */
    raise_descriptor_limit();
    return finish_output(dispatch(argc, argv));
}
