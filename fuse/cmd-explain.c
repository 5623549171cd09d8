/*
 * cmd-explain.c: explain, live through the control socket and offline on images. Both ways
 * give the same object (explain.h), which is printed here.
 */
#include "fuse/cli.h"
#include "fuse/control.h"
#include "fuse/explain.h"
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHORT_DIGEST 12

typedef struct explain_words {
    const char *format, *threshold;
    GPtrArray *options; /* -o */
    bool json;
} explain_words;

static bool parse_range(const char *word, uint64_t *ret_offset, uint64_t *ret_length)
{
    g_autofree char *offset = g_strndup(word, strcspn(word, "+"));
    const char *length = word + strlen(offset);
    *ret_length = 0;
    return config_parse_size(offset, ret_offset) && *ret_offset <= IMAGE_SIZE_MAX &&
           (!*length || (config_parse_size(length + 1, ret_length) && *ret_length > 0));
}

/* "'b' differs", "no majority" ... from a run's replicas. */
static char *verdict(const json_t *run)
{
    if (!json_is_true(json_object_get(run, "differs")))
        return g_strdup("all agree");
    if (!json_is_true(json_object_get(run, "quorum")))
        return g_strdup("no majority");
    GString *losers = g_string_new("differs: ");
    size_t i, n = 0;
    json_t *row;
    json_array_foreach(json_object_get(run, "replicas"), i, row)
    {
        if (json_is_true(json_object_get(row, "wins")))
            continue;
        g_string_append_printf(losers, "%s%s", n++ ? ", " : "",
                               json_string_value(json_object_get(row, "replica")));
    }
    return g_string_free(losers, FALSE);
}

static const char *mark(const json_t *run, const json_t *row)
{
    if (!json_is_true(json_object_get(run, "differs")))
        return "agrees";
    if (json_object_get(row, "errno"))
        return "fails";
    if (!json_is_true(json_object_get(run, "quorum")))
        return "alone";
    return json_is_true(json_object_get(row, "wins")) ? "wins" : "loses";
}

static void print_row(const json_t *run, const json_t *row, int name_width)
{
    const char *digest = json_string_value(json_object_get(row, "sha256"));
    const json_t *host = json_object_get(row, "host-offset");
    bool cut = digest && isatty(STDOUT_FILENO);
    printf("    %-*s  %-6s  ", name_width,
           json_string_value(json_object_get(row, "replica")), mark(run, row));
    if (digest)
        printf("%.*s%s", cut ? SHORT_DIGEST : (int)strlen(digest), digest,
               cut ? "..." : "");
    else
        printf("%s", g_strerror((int)json_integer_value(json_object_get(row, "errno"))));
    g_autofree char *file =
        path_printable(json_string_value(json_object_get(row, "file")));
    printf("  %s", file);
    if (host)
        printf(" @ %" JSON_INTEGER_FORMAT, json_integer_value(host));
    printf(" (layer %" JSON_INTEGER_FORMAT ", %s)\n",
           json_integer_value(json_object_get(row, "layer")),
           json_string_value(json_object_get(row, "kind")));
}

static void print_runs(const json_t *object)
{
    size_t i, j;
    json_t *run, *row;
    json_array_foreach(json_object_get(object, "runs"), i, run)
    {
        g_autofree char *said = verdict(run);
        int width = 1;
        printf("%" JSON_INTEGER_FORMAT "+%" JSON_INTEGER_FORMAT "  %s\n",
               json_integer_value(json_object_get(run, "offset")),
               json_integer_value(json_object_get(run, "length")), said);
        json_array_foreach(json_object_get(run, "replicas"), j, row)
        {
            width = MAX(width, (int)json_string_length(json_object_get(row, "replica")));
        }
        json_array_foreach(json_object_get(run, "replicas"), j, row)
        {
            print_row(run, row, width);
        }
    }
}

static void print_object(const json_t *object, bool json)
{
    if (json) {
        json_dumpf(object, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_runs(object);
    }
}

static int explain_live(const char *mountpoint, const char *name, uint64_t offset,
                        uint64_t length, const explain_words *words)
{
    cli_mount mount;
    if (!cli_mount_find_live(mountpoint, &mount))
        return CLI_UNREACHABLE;
    json_t *object = NULL;
    const char *socket = json_string_value(json_object_get(mount.status, "socket"));
    const json_t *d = cli_mount_disk(&mount, name);
    if (d && !socket)
        cli_error("%s: the status names no control socket", mountpoint);
    if (d && socket) {
        g_autoptr(GError) error = NULL;
        json_t *arguments = json_pack("{s:s, s:I, s:I}", "disk", name, "offset",
                                      (json_int_t)offset, "length", (json_int_t)length);
        if (!control_call(socket, "quorumfs-explain", arguments, &object, &error))
            cli_error("%s: %s", mountpoint, error->message);
        json_decref(arguments);
    }
    cli_mount_clear(&mount);
    if (!object)
        return CLI_UNREACHABLE;
    print_object(object, words->json);
    json_decref(object);
    return CLI_OK;
}

static int explain_disk(const disk_options *options, uint64_t offset, uint64_t length,
                        const explain_words *words)
{
    g_autoptr(GError) error = NULL;
    disk *d = disk_open(options, NULL, &error);
    if (!d) {
        cli_error("%s", error->message);
        return g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS) ? CLI_USAGE
                                                                      : CLI_UNREACHABLE;
    }
    json_t *object = NULL;
    uint64_t size = disk_size(d);
    int result = explain_json(d, offset, length, &object);
    disk_close(d);
    if (result < 0 && offset >= size) {
        cli_error("offset %" G_GUINT64_FORMAT " is past the end of the disk (%" //
                  G_GUINT64_FORMAT " bytes)",
                  offset, size);
        return CLI_USAGE;
    }
    if (result < 0) {
        cli_error("%s", g_strerror(-result));
        return CLI_UNREACHABLE;
    }
    print_object(object, words->json);
    json_decref(object);
    return CLI_OK;
}

static const disk_options *pick_disk(const mount_config *config, const char *name)
{
    if (!name && config->disks->len == 1)
        return g_ptr_array_index(config->disks, 0);
    for (guint i = 0; name && i < config->disks->len; i++) {
        const disk_options *d = g_ptr_array_index(config->disks, i);
        if (strcmp(d->name, name) == 0)
            return d;
    }
    if (name)
        cli_error("the configuration has no disk '%s'", name);
    else
        cli_error("the configuration has %u disks (CONFIG DISK OFFSET[+LENGTH])",
                  config->disks->len);
    return NULL;
}

static int explain_offline(GPtrArray *images, uint64_t offset, uint64_t length,
                           const explain_words *words)
{
    g_autoptr(GError) error = NULL;
    const char *name = NULL;
    unsigned n_images = images->len;
    if (n_images == 2 && config_is_config_file(g_ptr_array_index(images, 0)))
        name = g_ptr_array_index(images, --n_images);
    mount_config *config = mount_config_new();
    int code = CLI_UNREACHABLE;
    if (!config_from_words(config, (char *const *)images->pdata, n_images, words->format,
                           NULL, &error) ||
        !cli_apply_options(config, words->threshold, words->options, &error)) {
        cli_error("%s", error->message);
        code = cli_config_exit(error, CLI_USAGE, CLI_UNREACHABLE);
    } else {
        config_make_offline(config);
        const disk_options *d = pick_disk(config, name);
        code = d ? explain_disk(d, offset, length, words) : CLI_USAGE;
    }
    mount_config_free(config);
    return code;
}

/* A directory is a mount point; so is what answers "not connected", a dead one. */
static bool is_mount_point(const char *word)
{
    struct stat st;
    return stat(word, &st) == 0 ? S_ISDIR(st.st_mode) : errno == ENOTCONN;
}

static int explain_words_run(GPtrArray *images, const explain_words *words)
{
    if (images->len < 2)
        return cli_usage_error("explain", CLI_USAGE, "an image and an offset are needed");
    const char *range = g_ptr_array_index(images, images->len - 1);
    const char *first = g_ptr_array_index(images, 0);
    uint64_t offset, length;
    if (!parse_range(range, &offset, &length))
        return cli_usage_error("explain", CLI_USAGE, "'%s' is not OFFSET[+LENGTH]",
                               range);
    if (length > DISK_EXPLAIN_MAX)
        return cli_usage_error("explain", CLI_USAGE, "'%s' is more than %s", range,
                               cli_size_text(DISK_EXPLAIN_MAX));
    if (!is_mount_point(first)) {
        g_ptr_array_set_size(images, (gint)images->len - 1);
        return explain_offline(images, offset, length, words);
    }
    if (images->len != 3)
        return cli_usage_error("explain", CLI_USAGE,
                               "a mount point needs DISK OFFSET[+LENGTH]");
    if (words->format || words->threshold || words->options->len > 0)
        return cli_usage_error("explain", CLI_USAGE,
                               "--format, --threshold and -o are for images");
    return explain_live(first, g_ptr_array_index(images, 1), offset, length, words);
}

int cmd_explain(int argc, char **argv)
{
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) images = g_ptr_array_new();
    explain_words words = {.options = mount_options};
    const cli_option options[] = {
        {.name = "json", .flag = &words.json},
        {.name = "format", .value = &words.format},
        {.name = "threshold", .value = &words.threshold},
        {.letter = 'o', .values = mount_options},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_USAGE, images);
    return code >= 0 ? code : explain_words_run(images, &words);
}
