/*
 * control-client.c: one command on a control socket, for the sub-commands.
 */
#include "fuse/control.h"
#include "fuse/qmp-stream.h"
#include "fuse/qmp.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct connection {
    const char *path;
    int fd;
    qmp_stream stream;
    char input[16384];
    size_t at, end;
} connection;

static bool fail(const connection *c, const char *why, GError **error)
{
    g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "%s: %s", c->path, why);
    return false;
}

static bool send_text(const connection *c, const char *text, GError **error)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t sent = send(c->fd, text, left, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return fail(c, g_strerror(errno), error);
        if (sent > 0) {
            text += sent;
            left -= (size_t)sent;
        }
    }
    return true;
}

static bool receive(connection *c, GError **error)
{
    ssize_t got;
    do
        got = recv(c->fd, c->input, sizeof c->input, 0);
    while (got < 0 && errno == EINTR);
    if (got <= 0)
        return fail(c, got < 0 ? g_strerror(errno) : "the daemon closed the connection",
                    error);
    c->at = 0;
    c->end = (size_t)got;
    return true;
}

/* The next object, or NULL. */
static json_t *next_object(connection *c, GError **error)
{
    qmp_item item = QMP_ITEM_NONE;
    while (item == QMP_ITEM_NONE) {
        if (c->at == c->end && !receive(c, error))
            return NULL;
        size_t used;
        item = qmp_stream_feed(&c->stream, c->input + c->at, c->end - c->at, &used);
        c->at += used;
    }
    json_t *object = item == QMP_ITEM_VALUE
                         ? json_loadb(c->stream.value->str, c->stream.value->len, 0, NULL)
                         : NULL;
    if (!json_is_object(object)) {
        fail(c, "the answer cannot be read", error);
        json_decref(object);
        return NULL;
    }
    return object;
}

static void set_server_error(const json_t *problem, GError **error)
{
    const char *class = json_string_value(json_object_get(problem, "class"));
    const char *desc = json_string_value(json_object_get(problem, "desc"));
    g_set_error_literal(error, QMP_ERROR, (int)qmp_error_from_class(class),
                        desc ? desc : "unknown error");
}

/* Reads up to an object that has `member` (a new reference) or "error"; events may come
 * in between. */
static bool await_member(connection *c, const char *member, json_t **ret_value,
                         GError **error)
{
    for (;;) {
        json_t *object = next_object(c, error);
        if (!object)
            return false;
        json_t *value = json_object_get(object, member);
        const json_t *problem = json_object_get(object, "error");
        bool good = value && !problem;
        if (good)
            *ret_value = json_incref(value);
        else if (problem)
            set_server_error(problem, error);
        json_decref(object);
        if (good || problem)
            return good;
    }
}

static bool execute(connection *c, const char *command, json_t *arguments,
                    json_t **ret_return, GError **error)
{
    json_t *request = json_pack("{s:s}", "execute", command);
    if (arguments)
        json_object_set(request, "arguments", arguments);
    char *text = json_dumps(request, JSON_ENSURE_ASCII);
    bool good = send_text(c, text, error) && send_text(c, "\r\n", error) &&
                await_member(c, "return", ret_return, error);
    free(text);
    json_decref(request);
    return good;
}

bool control_call(const char *socket_path, const char *command, json_t *arguments,
                  json_t **ret_return, GError **error)
{
    connection c = {.path = socket_path};
    c.fd = qmp_socket_connect(socket_path, error);
    if (c.fd < 0)
        return false;
    qmp_stream_init(&c.stream, QMP_REPLY_MAX + QMP_MESSAGE_MAX);
    json_t *greeting = NULL, *nothing = NULL;
    bool good = await_member(&c, "QMP", &greeting, error) &&
                execute(&c, "qmp_capabilities", NULL, &nothing, error) &&
                execute(&c, command, arguments, ret_return, error);
    json_decref(greeting);
    json_decref(nothing);
    qmp_stream_clear(&c.stream);
    close(c.fd);
    return good;
}
