/*
 * cmd-replica.c: replicas of a mounted disk are taken out, and others put in their place.
 */
#include "fuse/config-internal.h"
#include "fuse/live.h"
#include <string.h>

typedef struct replica_words {
    const char *verb, *mountpoint, *disk, *replica;
    const char *image; /* NULL: none */
} replica_words;

/* The image as the daemon, whose directory is another, can find it: FMT:PATH, or as it is. */
static char *image_word(const char *word, const char *format, GError **error)
{
    replica_options *options = config_parse_image(word, format, error);
    if (!options)
        return NULL;
    g_autofree char *path = NULL;
    char *text = NULL;
    if (chain_is_remote(options->path)) {
        text = g_strdup(options->path);
    } else {
        path = config_absolute(NULL, options->path);
        text = options->format ? g_strconcat(options->format, ":", path, NULL)
                               : g_strdup(path);
    }
    replica_options_free(options);
    return text;
}

static bool run_live(const live_disk *l, const replica_words *w, const char *word)
{
    g_autofree char *verb = g_strconcat(
        "quorumfs-replica-", strcmp(w->verb, "add") == 0 ? "put" : w->verb, NULL);
    json_t *arguments = json_pack("{s:s, s:s}", "disk", w->disk, "replica", w->replica);
    if (word)
        json_object_set_new(arguments, "image", json_string(word));
    if (!live_begin(l, verb, arguments))
        return false;
    if (word)
        printf(
            "%s: replica '%s' is being filled (quorumfs resync --wait tells when it is "
            "in sync)\n",
            w->disk, w->replica);
    else
        printf("%s: replica '%s' is removed\n", w->disk, w->replica);
    return true;
}

static int run(const replica_words *w, const char *format)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *word = NULL;
    live_disk l;
    if (w->image) {
        word = image_word(w->image, format, &error);
        if (!word) {
            cli_error("%s", error->message);
            return CLI_USAGE;
        }
    }
    if (!live_find(&l, w->mountpoint, w->disk))
        return CLI_UNREACHABLE;
    bool done = run_live(&l, w, word);
    live_clear(&l);
    return done ? CLI_OK : CLI_UNREACHABLE;
}

int cmd_replica(int argc, char **argv)
{
    static const char *const verbs[] = {"add", "remove", "replace", NULL};
    const char *format = NULL;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {{.name = "format", .value = &format}, {0}};
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code >= 0)
        return code;
    const char *verb = words->len > 0 ? words->pdata[0] : "";
    if (!g_strv_contains(verbs, verb))
        return cli_usage_error("replica", CLI_USAGE, "add, remove or replace is needed");
    unsigned wanted = strcmp(verb, "remove") == 0 ? 4 : 5;
    if (words->len != wanted)
        return cli_usage_error("replica", CLI_USAGE, "%s takes %s", verb,
                               wanted == 4
                                   ? "a mount point, a disk and a replica"
                                   : "a mount point, a disk, a replica and an image");
    const replica_words w = {.verb = verb,
                             .mountpoint = words->pdata[1],
                             .disk = words->pdata[2],
                             .replica = words->pdata[3],
                             .image = wanted == 5 ? words->pdata[4] : NULL};
    return run(&w, format);
}
