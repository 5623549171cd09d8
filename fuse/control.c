/*
 * control.c: the verbs. What they answer is made elsewhere (status.c, explain.c).
 */
#include "fuse/control.h"
#include "fuse/explain.h"
#include "fuse/qmp.h"
#include "fuse/status.h"
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

static json_t *run_explain(void *opaque, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "disk"));
    uint64_t offset = (uint64_t)json_integer_value(json_object_get(arguments, "offset"));
    uint64_t length = (uint64_t)json_integer_value(json_object_get(arguments, "length"));
    disk *d = find_disk(opaque, name);
    if (!d) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Disk '%s' not found", name);
        return NULL;
    }
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
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Disk '%s': %s", name,
                    g_strerror(-result));
    return object;
}

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

void control_stop(control *c)
{
    if (!c)
        return;
    qmp_server_stop(c->server);
    g_free(c);
}
