/*
 * qmp-message.c: requests taken apart, answers put together. The texts of errors are
 * QEMU's, because clients compare them.
 */
#include "fuse/qmp.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

G_DEFINE_QUARK(quorumfs - qmp - error, qmp_error)

static const char *const classes[] = {
    [QMP_ERROR_GENERIC] = "GenericError",
    [QMP_ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
    [QMP_ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
};

qmp_error qmp_error_from_class(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(classes); i++)
        if (g_strcmp0(name, classes[i]) == 0)
            return (qmp_error)i;
    return QMP_ERROR_GENERIC;
}

static void set_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void set_error(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (error)
        *error = g_error_new_valist(QMP_ERROR, QMP_ERROR_GENERIC, format, args);
    va_end(args);
}

/* ---- Requests ---------------------------------------------------------------------- */

static bool take_member(const char *name, json_t *value, qmp_request *request,
                        GError **error)
{
    if (strcmp(name, "execute") == 0) {
        if (!json_is_string(value)) {
            set_error(error, "QMP input member 'execute' must be a string");
            return false;
        }
        request->execute = g_strdup(json_string_value(value));
    } else if (strcmp(name, "arguments") == 0) {
        if (!json_is_object(value)) {
            set_error(error, "QMP input member 'arguments' must be an object");
            return false;
        }
        request->arguments = json_incref(value);
    } else if (strcmp(name, "id") != 0) {
        set_error(error, "QMP input member '%s' is unexpected", name);
        return false;
    }
    return true;
}

static bool take_members(json_t *object, qmp_request *request, GError **error)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        if (!take_member(name, value, request, error))
            return false;
    }
    if (!request->execute) {
        set_error(error, "QMP input lacks member 'execute'");
        return false;
    }
    if (!request->arguments)
        request->arguments = json_object();
    return true;
}

bool qmp_request_parse(const char *text, size_t length, qmp_request *ret_request,
                       GError **error)
{
    json_error_t problem;
    memset(ret_request, 0, sizeof *ret_request);
    json_t *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &problem);
    if (!object) {
        set_error(error, "JSON parse error, %s", problem.text);
        return false;
    }
    bool good = json_is_object(object);
    if (!good) {
        set_error(error, "QMP input must be a JSON object");
    } else {
        ret_request->id = json_incref(json_object_get(object, "id"));
        good = take_members(object, ret_request, error);
    }
    json_decref(object);
    return good;
}

void qmp_request_clear(qmp_request *request)
{
    g_free(request->execute);
    json_decref(request->arguments);
    json_decref(request->id);
    memset(request, 0, sizeof *request);
}

static bool has_type(const json_t *value, qmp_type type)
{
    switch (type) {
    case QMP_STRING:
        return json_is_string(value);
    case QMP_UINT:
        return json_is_integer(value) && json_integer_value(value) >= 0;
    case QMP_BOOL:
        return json_is_boolean(value);
    case QMP_ARRAY:
        return json_is_array(value);
    }
    return false;
}

static const qmp_parameter *find_parameter(const qmp_parameter *parameters,
                                           const char *name)
{
    for (const qmp_parameter *p = parameters; p && p->name; p++)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}

bool qmp_check_arguments(const qmp_parameter *parameters, json_t *arguments,
                         GError **error)
{
    static const char *const types[] = {
        [QMP_STRING] = "string",
        [QMP_UINT] = "uint64",
        [QMP_BOOL] = "boolean",
        [QMP_ARRAY] = "array",
    };
    for (const qmp_parameter *p = parameters; p && p->name; p++) {
        const json_t *value = json_object_get(arguments, p->name);
        if (!value && !p->optional) {
            set_error(error, "Parameter '%s' is missing", p->name);
            return false;
        }
        if (value && !has_type(value, p->type)) {
            set_error(error, "Invalid parameter type for '%s', expected: %s", p->name,
                      types[p->type]);
            return false;
        }
    }
    const char *name;
    json_t *value;
    json_object_foreach(arguments, name, value)
    {
        if (!find_parameter(parameters, name)) {
            set_error(error, "Parameter '%s' is unexpected", name);
            return false;
        }
    }
    return true;
}

/* ---- Answers ----------------------------------------------------------------------- */

/* Takes over `object`. */
static char *line_of(json_t *object)
{
    char *text = json_dumps(object, JSON_ENSURE_ASCII);
    char *line = g_strconcat(text ? text : "{}", "\r\n", NULL);
    free(text);
    json_decref(object);
    return line;
}

static char *answer(const char *member, json_t *value, json_t *id)
{
    json_t *object = json_object();
    json_object_set_new(object, member, value);
    if (id)
        json_object_set(object, "id", id);
    return line_of(object);
}

char *qmp_reply(json_t *value, json_t *id)
{
    return answer("return", value, id);
}

char *qmp_reply_error(const GError *error, json_t *id)
{
    qmp_error code =
        error->domain == QMP_ERROR ? (qmp_error)error->code : QMP_ERROR_GENERIC;
    g_autofree char *desc = g_utf8_make_valid(error->message, -1);
    return answer("error", json_pack("{s:s, s:s}", "class", classes[code], "desc", desc),
                  id);
}

char *qmp_event(const char *name, json_t *data)
{
    gint64 now = g_get_real_time();
    json_t *line = json_pack("{s:s, s:o, s:{s:I, s:I}}", "event", name, "data", data,
                             "timestamp", "seconds", (json_int_t)(now / G_USEC_PER_SEC),
                             "microseconds", (json_int_t)(now % G_USEC_PER_SEC));
    return line_of(line);
}

json_t *qmp_version(void)
{
    int major = 0, minor = 0, micro = 0;
    sscanf(QUORUMFS_VERSION, "%d.%d.%d", &major, &minor, &micro);
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "major", major, "minor", minor,
                     "micro", micro, "package", "quorumfs-" QUORUMFS_VERSION);
}

char *qmp_greeting(void)
{
    return line_of(
        json_pack("{s:{s:o, s:[]}}", "QMP", "version", qmp_version(), "capabilities"));
}
