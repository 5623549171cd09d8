/* live.c: see live.h. */
#include "fuse/live.h"
#include "fuse/control.h"

bool live_find(live_disk *l, const char *mountpoint, const char *name)
{
    *l = (live_disk){.mountpoint = mountpoint, .name = name};
    if (!cli_mount_find_live(mountpoint, &l->mount))
        return false;
    const json_t *row = cli_mount_disk(&l->mount, name);
    l->socket = json_string_value(json_object_get(l->mount.status, "socket"));
    if (row && !l->socket)
        cli_error("%s: the status names no control socket", mountpoint);
    if (row && l->socket)
        return true;
    cli_mount_clear(&l->mount);
    return false;
}

void live_clear(live_disk *l)
{
    cli_mount_clear(&l->mount);
}

bool live_call(const live_disk *l, const char *verb, json_t *arguments,
               json_t **ret_answer)
{
    g_autoptr(GError) error = NULL;
    bool done = control_call(l->socket, verb, arguments, ret_answer, &error);
    if (!done)
        cli_error("%s: %s", l->mountpoint, error->message);
    json_decref(arguments);
    return done;
}

bool live_begin(const live_disk *l, const char *verb, json_t *arguments)
{
    json_t *answer = NULL;
    bool begun = live_call(l, verb, arguments, &answer);
    json_decref(answer);
    return begun;
}

json_t *live_row(json_t *rows, const char *key, const char *value)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (g_strcmp0(json_string_value(json_object_get(row, key)), value) == 0)
            return row;
    }
    return NULL;
}

json_t *live_status(const live_disk *l)
{
    json_t *status = NULL;
    if (!live_call(l, "quorumfs-status", json_object(), &status))
        return NULL;
    json_t *row = live_row(json_object_get(status, "disks"), "name", l->name);
    json_incref(row);
    json_decref(status);
    if (!row)
        cli_error("%s: no disk '%s'", l->mountpoint, l->name);
    return row;
}
