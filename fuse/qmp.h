/*
 * qmp.h: QMP as QEMU speaks it: messages, and a server on a Unix socket. Knows nothing of
 * disks; the verbs are a table (control.c).
 */
#ifndef FUSE_QMP_H
#define FUSE_QMP_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#define QMP_MESSAGE_MAX (1u << 20)  /* bytes of one message to the server */
#define QMP_REPLY_MAX   (32u << 20) /* bytes of one answer */
#define QMP_OUTPUT_MAX  (64u << 20) /* bytes that wait for one client to read them */
#define QMP_CLIENTS_MAX 64u
#define QMP_WORKERS     4u

/* The classes of QMP. Messages are the "desc". */
#define QMP_ERROR (qmp_error_quark())
GQuark qmp_error_quark(void);
typedef enum qmp_error {
    QMP_ERROR_GENERIC,
    QMP_ERROR_COMMAND_NOT_FOUND,
    QMP_ERROR_DEVICE_NOT_ACTIVE,
} qmp_error;
qmp_error qmp_error_from_class(const char *name); /* unknown or NULL: GENERIC */

typedef enum qmp_type {
    QMP_STRING,
    QMP_UINT, /* of 64 bits, in JSON below 2^63 */
    QMP_BOOL,
    QMP_ARRAY,
} qmp_type;

typedef struct qmp_parameter {
    const char *name;
    qmp_type type;
    bool optional;
} qmp_parameter;

typedef struct qmp_command {
    const char *name;
    const qmp_parameter *parameters; /* up to one without a name; NULL: none */
    /* May wait for a replica: runs on a worker, while others are served. All others run on
     * the server's one loop and must not wait for anything. */
    bool slow;
    /* `arguments` have been checked against `parameters`; never NULL. Returns a new
     * reference, or NULL with a QMP_ERROR. */
    json_t *(*run)(void *opaque, json_t *arguments, GError **error);
    /* Called when the answer to a successful command is on its way. May be NULL. */
    void (*after)(void *opaque);
} qmp_command;

/* ---- Messages (qmp-message.c) ------------------------------------------------------ */

/* One request, taken apart. */
typedef struct qmp_request {
    char *execute;
    json_t *arguments; /* an object; never NULL in a valid request */
    json_t *id;        /* NULL: none. Also there in an invalid request, if it had one. */
} qmp_request;
/* `text` is one JSON value. On failure only `id` can be set; clear it in any case. */
bool qmp_request_parse(const char *text, size_t length, qmp_request *ret_request,
                       GError **error);
void qmp_request_clear(qmp_request *request);

bool qmp_check_arguments(const qmp_parameter *parameters, json_t *arguments,
                         GError **error);

/* Lines with their CRLF. `value` is taken over, `id` borrowed (may be NULL). */
char *qmp_greeting(void);
char *qmp_reply(json_t *value, json_t *id);
char *qmp_reply_error(const GError *error, json_t *id);
/* Of now. `data` is taken over. */
char *qmp_event(const char *name, json_t *data);
/* {"qemu": {"major", "minor", "micro"}, "package"}: query-version, the greeting. */
json_t *qmp_version(void);

/* ---- Sockets (qmp-socket.c) -------------------------------------------------------- */

/* Binds, mode 0600, and listens. A dead socket of ours in the way is replaced; one that
 * answers, and anything that is not a socket, is an error. Non-blocking. -1 on error. */
int qmp_socket_listen(const char *path, GError **error);
int qmp_socket_connect(const char *path, GError **error); /* blocking */

/* ---- The server (qmp.c) ------------------------------------------------------------ */

typedef struct qmp_server qmp_server;

/* `commands` (n of them) and `opaque` must outlive the server. "qmp_capabilities" and
 * "query-commands" must be in the table, so that query-commands can list them, but are the
 * server's own: their `run` is NULL. */
qmp_server *qmp_server_start(const char *path, const qmp_command *commands, size_t n,
                             void *opaque, GError **error);
/* An event for all clients that have negotiated. From any thread, and waits for nobody. `data` is
 * an object and taken over. */
void qmp_server_emit(qmp_server *server, const char *name, json_t *data);
/* Whether there is anybody to hear of it. */
bool qmp_server_is_heard(qmp_server *server);

/* Answers that are ready are sent as far as the clients' sockets take them at once. Waits
 * for commands that are running, at most `patience_us`. Removes the
 * socket, and disconnects all clients. False: a command is still running; what it uses has to
 * remain, and this can be called again. NULL is allowed. */
bool qmp_server_stop(qmp_server *server, gint64 patience_us);

#endif
