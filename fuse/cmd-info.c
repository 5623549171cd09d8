/*
 * cmd-info.c: info. The chain is opened as a read-only mount would open it, so that what
 * is said here is what would happen there.
 */
#include "fuse/cli.h"
#include <string.h>

typedef struct info_words {
    const char *format;
    GPtrArray *options; /* -o */
    bool chain, json;
} info_words;

static path_policy *make_policy(const disk_options *d, const replica_options *replica,
                                GError **error)
{
    path_policy *policy = path_policy_new();
    bool good = chain_is_remote(replica->path) ||
                path_policy_add_image(policy, replica->path, error);
    for (guint i = 0; good && i < d->allow_dirs->len; i++)
        good = path_policy_add_dir(policy, g_ptr_array_index(d->allow_dirs, i), error);
    if (good)
        return policy;
    path_policy_free(policy);
    return NULL;
}

/* The policy is only needed while layers are opened. */
static chain *open_chain(const disk_options *d, GError **error)
{
    const replica_options *replica = g_ptr_array_index(d->replicas, 0);
    path_policy *policy = make_policy(d, replica, error);
    if (!policy)
        return NULL;
    const chain_options options = {
        .path = replica->path,
        .format = replica->format,
        .decoder = d->decoder,
        .password_file = replica->password_file,
        .timeout_ms = d->timeout_ms,
        .policy = policy,
    };
    chain *c = chain_open(&options, error);
    path_policy_free(policy);
    return c;
}

static void field(const char *name, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void field(const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *value = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *clean = path_printable(value); /* names come from images */
    printf("%15s: %s\n", name, clean);
}

static void size_field(const char *name, uint64_t bytes)
{
    field(name, "%s (%" G_GUINT64_FORMAT " bytes)", cli_size_text(bytes), bytes);
}

static void print_features(const chain_layer *layer)
{
    g_autoptr(GString) features = g_string_new(NULL);
    const struct {
        bool there;
        const char *name;
    } rows[] = {
        {layer->encrypted, "AES encryption"},      {layer->extended_l2, "extended L2"},
        {layer->lazy_refcounts, "lazy refcounts"}, {layer->dirty, "dirty"},
        {layer->data_file, "external data file"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].there)
            g_string_append_printf(features, "%s%s", features->len ? ", " : "",
                                   rows[i].name);
    if (features->len)
        field("features", "%s", features->str);
}

static void print_layer(const chain_layer *layer)
{
    field("image", "%s", layer->filename);
    if (layer->version)
        field("format", "%s (version %u)", layer->format, layer->version);
    else
        field("format", "%s", layer->format);
    field("decoder", "%s%s%s%s", layer->decoder, layer->note ? " (" : "",
          layer->note ? layer->note : "", layer->note ? ")" : "");
    size_field("virtual size", layer->size);
    field("file", "%s, %s allocated", cli_size_text(layer->file_size),
          cli_size_text(layer->file_allocated));
    if (layer->cluster_size)
        field("cluster size", "%u", layer->cluster_size);
    if (layer->refcount_bits)
        field("refcounts", "%u bits", layer->refcount_bits);
    if (layer->compression)
        field("compression", "%s", layer->compression);
    print_features(layer);
    if (layer->snapshot_count)
        field("snapshots", "%u", layer->snapshot_count);
    if (layer->backing_file)
        field("backing file", "%s (%s)", layer->backing_file,
              layer->backing_format ? layer->backing_format : "format not named");
    if (layer->data_file)
        field("data file", "%s", layer->data_file);
}

static char *set_id_text(const qcow2_mark *mark)
{
    GString *text = g_string_new(NULL);
    for (size_t i = 0; i < sizeof mark->set_id; i++)
        g_string_append_printf(text, "%02x", mark->set_id[i]);
    return g_string_free(text, FALSE);
}

/* What the top says of the set that it is a replica of; once, not for each layer. */
static void print_mark(const chain *c)
{
    qcow2_mark mark;
    const char *why;
    if (strcmp(chain_get_layer(c, 0)->format, "qcow2") != 0 ||
        chain_read_mark(c, &mark, &why) < 0)
        return;
    g_autofree char *set = set_id_text(&mark);
    if (mark.present && mark.replica != 0)
        field("replica of", "set %s, generation %" G_GUINT64_FORMAT ", %s", set,
              mark.generation, mark.clean ? "closed cleanly" : "not closed cleanly");
    else if (why)
        field("replica of", "cannot be noted in the image: %s", why);
}

static void print_chain(const chain *c, bool all)
{
    unsigned depth = chain_depth(c);
    for (unsigned i = 0; i < (all ? depth : 1); i++) {
        if (i > 0)
            putchar('\n');
        if (all && depth > 1)
            field("layer", "%u of %u%s", i, depth - 1, i == 0 ? " (top)" : "");
        print_layer(chain_get_layer(c, i));
        if (i == 0)
            print_mark(c);
    }
    if (!all)
        field("chain", depth == 1 ? "%u layer" : "%u layers (info --chain shows all)",
              depth);
}

static void set_text(json_t *object, const char *key, const char *value)
{
    g_autofree char *valid = value ? g_utf8_make_valid(value, -1) : NULL;
    json_object_set_new(object, key, valid ? json_string(valid) : json_null());
}

static void set_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *layer_object(const chain_layer *layer)
{
    json_t *o = json_object();
    set_text(o, "filename", layer->filename);
    set_text(o, "format", layer->format);
    set_number(o, "version", layer->version);
    set_text(o, "decoder", layer->decoder);
    set_text(o, "note", layer->note);
    set_number(o, "virtual-size", layer->size);
    set_number(o, "file-size", layer->file_size);
    set_number(o, "actual-size", layer->file_allocated);
    set_number(o, "cluster-size", layer->cluster_size);
    set_number(o, "refcount-bits", layer->refcount_bits);
    set_text(o, "compression", layer->compression);
    json_object_set_new(o, "encrypted", json_boolean(layer->encrypted));
    json_object_set_new(o, "extended-l2", json_boolean(layer->extended_l2));
    json_object_set_new(o, "lazy-refcounts", json_boolean(layer->lazy_refcounts));
    json_object_set_new(o, "dirty", json_boolean(layer->dirty));
    set_number(o, "snapshots", layer->snapshot_count);
    set_text(o, "backing-file", layer->backing_file);
    set_text(o, "backing-format", layer->backing_format);
    set_text(o, "data-file", layer->data_file);
    return o;
}

/* null: nothing is noted in the image. */
static json_t *mark_object(const chain *c)
{
    qcow2_mark mark;
    const char *why;
    if (chain_read_mark(c, &mark, &why) < 0 || mark.replica == 0)
        return json_null();
    g_autofree char *set = set_id_text(&mark);
    return json_pack("{s:s, s:I, s:b}", "set", set, "generation",
                     (json_int_t)mark.generation, "clean", (int)mark.clean);
}

/* The same object with and without --chain, but for how many layers it lists. */
static void print_json(const chain *c, bool all)
{
    json_t *layers = json_array();
    for (unsigned i = 0; i < (all ? chain_depth(c) : 1); i++)
        json_array_append_new(layers, layer_object(chain_get_layer(c, i)));
    json_t *object = json_pack(
        "{s:I, s:I, s:o, s:o}", "virtual-size", (json_int_t)chain_size(c), "depth",
        (json_int_t)chain_depth(c), "layers", layers, "replica-of", mark_object(c));
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

static int info_image(mount_config *config, char *const *word, const info_words *words)
{
    g_autoptr(GError) error = NULL;
    if (!config_from_words(config, word, 1, words->format, NULL, &error) ||
        !cli_apply_options(config, NULL, words->options, &error)) {
        cli_error("%s", error->message);
        return cli_config_exit(error, CLI_USAGE, CLI_UNREACHABLE);
    }
    chain *c = open_chain(g_ptr_array_index(config->disks, 0), &error);
    if (!c) {
        cli_error("%s", error->message);
        return CLI_UNREACHABLE;
    }
    if (words->json)
        print_json(c, words->chain);
    else
        print_chain(c, words->chain);
    chain_close(c);
    return CLI_OK;
}

int cmd_info(int argc, char **argv)
{
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) images = g_ptr_array_new();
    info_words words = {.options = mount_options};
    const cli_option options[] = {
        {.name = "chain", .flag = &words.chain},
        {.name = "json", .flag = &words.json},
        {.name = "format", .value = &words.format},
        {.letter = 'o', .values = mount_options},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_USAGE, images);
    if (code >= 0)
        return code;
    if (images->len != 1)
        return cli_usage_error("info", CLI_USAGE, "one image is needed");
    const char *word = g_ptr_array_index(images, 0);
    if (config_is_config_file(word))
        return cli_usage_error("info", CLI_USAGE, "%s is a configuration, not an image",
                               word);
    mount_config *config = mount_config_new();
    code = info_image(config, (char *const *)images->pdata, &words);
    mount_config_free(config);
    return code;
}
