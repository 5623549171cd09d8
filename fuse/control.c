/*
 * control.c: the verbs. What they answer is made elsewhere (status.c, explain.c), and what
 * they begin is in status.
 */
#include "fuse/control.h"
#include "fuse/control-events.h"
#include "fuse/explain.h"
#include "fuse/qmp.h"
#include "fuse/status.h"
#include "quorum/scrub.h"
#include <errno.h>

struct control {
    const daemon_context *daemon;
    void (*on_quit)(void *opaque);
    void *opaque;
    qmp_server *server;
};

static json_t *run_version(void *opaque, json_t *arguments, GError **error)
{
    (void)opaque, (void)arguments, (void)error;
    return qmp_version();
}

static json_t *run_quit(void *opaque, json_t *arguments, GError **error)
{
    (void)opaque, (void)arguments, (void)error;
    return json_object();
}

static void after_quit(void *opaque)
{
    control *c = opaque;
    c->on_quit(c->opaque);
}

static json_t *run_status(void *opaque, json_t *arguments, GError **error)
{
    (void)arguments;
    const control *c = opaque;
    g_autofree char *text = status_json(c->daemon);
    json_t *status = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (!status)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "The status cannot be read");
    return status;
}

static disk *find_disk(const control *c, const char *name)
{
    for (guint i = 0; i < c->daemon->disks->len; i++)
        if (g_strcmp0(disk_name(c->daemon->disks->pdata[i]), name) == 0)
            return c->daemon->disks->pdata[i];
    return NULL;
}

/* The disk that a verb is about, or NULL with an error. */
static disk *named_disk(const control *c, const json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "disk"));
    disk *d = find_disk(c, name);
    if (!d)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Disk '%s' not found", name);
    return d;
}

static json_t *run_explain(void *opaque, json_t *arguments, GError **error)
{
    uint64_t offset = (uint64_t)json_integer_value(json_object_get(arguments, "offset"));
    uint64_t length = (uint64_t)json_integer_value(json_object_get(arguments, "length"));
    disk *d = named_disk(opaque, arguments, error);
    if (!d)
        return NULL;
    json_t *object = NULL;
    int result = explain_json(d, offset, length, &object);
    if (result == -EINVAL)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "The range must start below the disk's end, %" G_GUINT64_FORMAT
                    ", and be no longer than %u bytes",
                    disk_size(d), DISK_EXPLAIN_MAX);
    else if (result == -E2BIG)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "The range has too many pieces that differ (ask for less)");
    else if (result < 0)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Disk '%s': %s", disk_name(d),
                    g_strerror(-result));
    return object;
}

/* An empty answer, or why there is nothing to be done. */
static json_t *answer(const disk *d, int result, const char *what, GError **error)
{
    if (result == 0)
        return json_object();
    if (result == -EPERM)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "Disk '%s': %s needs a majority, and a threshold of %u of %u is none",
                    disk_name(d), what, disk_threshold(d), disk_replica_count(d));
    else if (result == -EROFS)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "Disk '%s': %s needs a disk that can be written to", disk_name(d),
                    what);
    else if (result == -EBUSY)
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "Disk '%s' is being scrubbed already", disk_name(d));
    else
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE,
                    "Disk '%s' is not being scrubbed", disk_name(d));
    return NULL;
}

static json_t *run_scrub(void *opaque, json_t *arguments, GError **error)
{
    const scrub_options options = {
        .repair = json_is_true(json_object_get(arguments, "repair")),
        .speed = (uint64_t)json_integer_value(json_object_get(arguments, "speed"))};
    disk *d = named_disk(opaque, arguments, error);
    return d ? answer(d, scrub_start(d, &options), "a repair", error) : NULL;
}

static json_t *run_scrub_cancel(void *opaque, json_t *arguments, GError **error)
{
    disk *d = named_disk(opaque, arguments, error);
    return d ? answer(d, scrub_cancel(d), "a scrub", error) : NULL;
}

static json_t *run_resync(void *opaque, json_t *arguments, GError **error)
{
    disk *d = named_disk(opaque, arguments, error);
    return d ? answer(d, disk_resync(d), "a resync", error) : NULL;
}

/* ---- Replicas ------------------------------------------------------------------------ */

static bool find_replica(disk *d, const char *name, unsigned *ret_index, GError **error)
{
    for (unsigned i = 0; i < disk_replica_count(d); i++) {
        replica_status status;
        disk_replica_status(d, i, &status);
        *ret_index = i;
        if (strcmp(status.name, name) == 0)
            return true;
    }
    g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Disk '%s' has no replica '%s'",
                disk_name(d), name);
    return false;
}

/* An empty answer, or the error with the replica's name. */
static json_t *replica_answer(bool done, const char *name, GError **why, GError **error)
{
    if (done)
        return json_object();
    g_set_error(
        error, QMP_ERROR, QMP_ERROR_GENERIC, "%s%s%s%s",
        g_str_has_prefix((*why)->message, "replica '") ? "" : "replica '",
        g_str_has_prefix((*why)->message, "replica '") ? "" : name,
        g_str_has_prefix((*why)->message, "replica '") ? "" : "': ", (*why)->message);
    g_clear_error(why);
    return NULL;
}

static json_t *run_replica_remove(void *opaque, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "replica"));
    GError *why = NULL;
    unsigned i;
    disk *d = named_disk(opaque, arguments, error);
    if (!d || !find_replica(d, name, &i, error))
        return NULL;
    return replica_answer(disk_remove_replica(d, i, &why), name, &why, error);
}

typedef bool (*put_fn)(disk *d, unsigned i, const replica_options *options,
                       GError **error);

static json_t *put_image(void *opaque, json_t *arguments, put_fn put, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "replica"));
    const char *word = json_string_value(json_object_get(arguments, "image"));
    GError *why = NULL;
    unsigned i;
    disk *d = named_disk(opaque, arguments, error);
    if (!d || !find_replica(d, name, &i, error))
        return NULL;
    replica_options *options = config_parse_image(word, NULL, &why);
    bool done = false;
    if (options) {
        g_free(options->name);
        options->name = g_strdup(name);
        done = put(d, i, options, &why);
    }
    replica_options_free(options);
    return replica_answer(done, name, &why, error);
}

static json_t *run_replica_put(void *opaque, json_t *arguments, GError **error)
{
    return put_image(opaque, arguments, disk_put_replica, error);
}

static json_t *run_replica_replace(void *opaque, json_t *arguments, GError **error)
{
    return put_image(opaque, arguments, disk_replace_replica, error);
}

/* ---- The table ----------------------------------------------------------------------- */

static const qmp_parameter capabilities_parameters[] = {
    {"enable", QMP_ARRAY, true},
    {0},
};
static const qmp_parameter explain_parameters[] = {
    {"disk", QMP_STRING, false},
    {"offset", QMP_UINT, false},
    {"length", QMP_UINT, true},
    {0},
};

static const qmp_parameter scrub_parameters[] = {
    {"disk", QMP_STRING, false},
    {"repair", QMP_BOOL, true},
    {"speed", QMP_UINT, true},
    {0},
};
static const qmp_parameter replica_parameters[] = {
    {"disk", QMP_STRING, false},
    {"replica", QMP_STRING, false},
    {0},
};
static const qmp_parameter put_parameters[] = {
    {"disk", QMP_STRING, false},
    {"replica", QMP_STRING, false},
    {"image", QMP_STRING, false},
    {0},
};
static const qmp_parameter disk_parameters[] = {
    {"disk", QMP_STRING, false},
    {0},
};

static const qmp_command commands[] = {
    {.name = "qmp_capabilities", .parameters = capabilities_parameters},
    {.name = "query-version", .run = run_version},
    {.name = "query-commands"},
    {.name = "quit", .run = run_quit, .after = after_quit},
    {.name = "quorumfs-status", .run = run_status},
    {.name = "quorumfs-explain",
     .parameters = explain_parameters,
     .slow = true,
     .run = run_explain},
    {.name = "quorumfs-scrub", .parameters = scrub_parameters, .run = run_scrub},
    {.name = "quorumfs-scrub-cancel",
     .parameters = disk_parameters,
     .run = run_scrub_cancel},
    {.name = "quorumfs-resync", .parameters = disk_parameters, .run = run_resync},
    {.name = "quorumfs-replica-remove",
     .parameters = replica_parameters,
     .slow = true,
     .run = run_replica_remove},
    {.name = "quorumfs-replica-put",
     .parameters = put_parameters,
     .slow = true,
     .run = run_replica_put},
    {.name = "quorumfs-replica-replace",
     .parameters = put_parameters,
     .slow = true,
     .run = run_replica_replace},
};

control *control_start(const daemon_context *daemon, void (*on_quit)(void *opaque),
                       void *opaque, GError **error)
{
    control *c = g_new0(control, 1);
    c->daemon = daemon;
    c->on_quit = on_quit;
    c->opaque = opaque;
    c->server =
        qmp_server_start(daemon->socket_path, commands, G_N_ELEMENTS(commands), c, error);
    if (!c->server) {
        g_prefix_error(error, "control socket: ");
        g_clear_pointer(&c, g_free);
    }
    return c;
}

void control_tell(control *c, const char *line)
{
    if (qmp_server_is_heard(c->server))
        control_events_tell(c->server, line);
}

bool control_stop(control *c, gint64 patience_us)
{
    if (c && !qmp_server_stop(c->server, patience_us))
        return false;
    g_free(c);
    return true;
}
