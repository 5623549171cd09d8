/*
 * cli.c: options, words and messages of the sub-commands.
 */
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

/* getopt_long's value for the option of row i, past every letter. */
#define LONG_BASE 256

static void print_error(const char *command, const char *format, va_list args)
    G_GNUC_PRINTF(2, 0);

static void print_error(const char *command, const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    for (char *p = text; *p; p++)
        if (g_ascii_iscntrl(*p))
            *p = '?';
    if (command)
        fprintf(stderr, "quorumfs: %s (quorumfs help %s)\n", text, command);
    else
        fprintf(stderr, "quorumfs: %s\n", text);
}

void cli_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_error(NULL, format, args);
    va_end(args);
}

int cli_usage_error(const char *command, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_error(command, format, args);
    va_end(args);
    return code;
}

int cli_config_exit(const GError *error, int usage, int failed)
{
    return g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_USAGE) ||
                   g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_UNAVAILABLE)
               ? usage
               : failed;
}

/* getopt's tables out of ours; `letters` starts with ':' so that a missing value can be
 * told from an unknown option. */
static struct option *make_tables(const cli_option *options, GString *letters)
{
    GArray *table = g_array_new(TRUE, TRUE, sizeof(struct option));
    const struct option help = {"help", no_argument, NULL, LONG_BASE - 1};
    g_array_append_val(table, help);
    g_string_assign(letters, ":h");
    for (int i = 0; options[i].name || options[i].letter; i++) {
        const cli_option *o = &options[i];
        if (o->letter)
            g_string_append_c(letters, o->letter);
        if (o->letter && !o->flag)
            g_string_append_c(letters, ':');
        const struct option row = {o->name, o->flag ? no_argument : required_argument,
                                   NULL, LONG_BASE + i};
        if (o->name)
            g_array_append_val(table, row);
    }
    return (struct option *)(void *)g_array_free(table, FALSE);
}

static const cli_option *find_option(const cli_option *options, int got)
{
    if (got >= LONG_BASE)
        return &options[got - LONG_BASE];
    for (int i = 0; options[i].name || options[i].letter; i++)
        if (options[i].letter == got)
            return &options[i];
    return NULL;
}

static int unknown_option(const char *command, const cli_option *options, char **argv,
                          int usage)
{
    if (optopt > 0 && optopt < LONG_BASE - 1)
        return cli_usage_error(command, usage, "unknown option '-%c'", optopt);
    const char *word = argv[optind - 1];
    g_autofree char *name = g_strndup(word, strcspn(word, "="));
    if (optopt >= LONG_BASE - 1)
        return cli_usage_error(command, usage, "option '%s' takes no value", name);
    g_autoptr(GPtrArray) known = g_ptr_array_new_with_free_func(g_free);
    for (int i = 0; options[i].name || options[i].letter; i++)
        if (options[i].name)
            g_ptr_array_add(known, g_strdup_printf("--%s", options[i].name));
    g_ptr_array_add(known, NULL);
    g_autofree char *hint = config_hint(name, (const char *const *)known->pdata);
    if (*hint) {
        cli_error("unknown option '%s'%s", name, hint);
        return usage;
    }
    return cli_usage_error(command, usage, "unknown option '%s'", name);
}

static void take_option(const cli_option *option)
{
    if (option->flag)
        *option->flag = true;
    else if (option->value)
        *option->value = optarg;
    else
        g_ptr_array_add(option->values, optarg);
}

int cli_parse(int argc, char **argv, const cli_option *options, int usage,
              GPtrArray *words)
{
    g_autoptr(GString) letters = g_string_new(NULL);
    g_autofree struct option *table = make_tables(options, letters);
    int got;
    optind = 0; /* starts over, with the order of words free */
    while ((got = getopt_long(argc, argv, letters->str, table, NULL)) != -1) {
        if (got == LONG_BASE - 1 || got == 'h')
            return help_print(stdout, argv[0]) ? CLI_OK : usage;
        if (got == ':')
            return cli_usage_error(argv[0], usage, "option '%s' needs a value",
                                   argv[optind - 1]);
        if (got == '?')
            return unknown_option(argv[0], options, argv, usage);
        take_option(find_option(options, got));
    }
    for (int i = optind; i < argc; i++)
        g_ptr_array_add(words, argv[i]);
    return -1;
}

bool cli_apply_options(mount_config *config, const char *threshold, GPtrArray *options,
                       GError **error)
{
    for (guint i = 0; threshold && i < config->disks->len; i++)
        if (config_set_disk(g_ptr_array_index(config->disks, i), "threshold", threshold,
                            NULL, error) != CONFIG_SET_OK)
            return false;
    for (guint i = 0; i < options->len; i++)
        if (!config_apply_options(config, g_ptr_array_index(options, i), error))
            return false;
    return true;
}

char *cli_read_file(const char *path, size_t limit, size_t *ret_length)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return NULL;
    g_autoptr(GString) text = g_string_new(NULL);
    ssize_t got = 0;
    char part[16384];
    while (text->len <= limit) {
        got = read(fd, part, sizeof part);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        g_string_append_len(text, part, got);
    }
    int failure = got < 0 ? errno : text->len > limit ? EFBIG : 0;
    close(fd);
    if (failure) {
        errno = failure;
        return NULL;
    }
    if (ret_length)
        *ret_length = text->len;
    return g_string_free(g_steal_pointer(&text), FALSE);
}

const char *cli_size_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    static char ring[8][24];
    static unsigned turn;
    char *text = ring[turn++ % G_N_ELEMENTS(ring)];
    double value = (double)bytes;
    unsigned unit = 0;
    while (value >= 1024 && unit + 1 < G_N_ELEMENTS(units)) {
        value /= 1024;
        unit++;
    }
    int digits = unit == 0 || value >= 100 || value == (double)(uint64_t)value ? 0 : 2;
    snprintf(text, sizeof ring[0], "%.*f %s", digits, value, units[unit]);
    return text;
}
