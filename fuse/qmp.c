/*
 * qmp.c: the server: one loop with poll() for all sockets, and a few workers for commands
 * that may take long.
 *
 * A client belongs to the loop alone: its buffers, its state, its descriptor. Commands of
 * one client run one after another; while one of them is with a worker the client is `busy`
 * and nothing more is read from it, so that input waits in the socket and not in memory. A
 * worker sees only its job, whose answer comes back to the loop through `done`.
 *
 * What bounds memory: QMP_MESSAGE_MAX of a message, READ_SIZE of input per client,
 * QMP_OUTPUT_MAX of answers that a client does not read (then it is disconnected: it must
 * not cost the daemon more), QMP_CLIENTS_MAX clients, and one job per client.
 *
 * Nothing blocks the loop: sockets are non-blocking, and what can wait for a replica is
 * marked slow in the table.
 */
#include "fuse/qmp-client.h"
#include "fuse/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAUSE_MS 100

typedef struct qmp_job {
    qmp_client *client; /* the loop's; a worker does not look inside */
    const qmp_command *command;
    qmp_request request;
    char *reply;
    bool succeeded;
} qmp_job;

struct qmp_server {
    const qmp_command *commands;
    size_t n_commands;
    void *opaque;
    char *path;
    dev_t dev; /* of the socket's name: only our own is removed */
    ino_t ino;
    int listener, wake; /* wake: an eventfd that makes the loop look around */
    pthread_t threads[1 + QMP_WORKERS]; /* the loop, the workers */
    unsigned n_threads, n_joined;
    GPtrArray *clients; /* of qmp_client; this and `paused` are the loop's alone */
    bool paused;        /* no descriptors left: accept again after a while */

    GMutex mutex; /* guards what follows; nothing is called while it is held */
    GCond work;
    GQueue waiting, done; /* of qmp_job */
    GQueue events;        /* of char*: lines for all that have negotiated */
    size_t event_bytes;
    bool stop;

    atomic_uint hearers; /* clients that have negotiated */
};

/* ---- Jobs -------------------------------------------------------------------------- */

static void job_free(qmp_job *job)
{
    qmp_request_clear(&job->request);
    g_free(job->reply);
    g_free(job);
}

static void job_run(qmp_server *server, qmp_job *job)
{
    g_autoptr(GError) error = NULL;
    json_t *value = job->command->run(server->opaque, job->request.arguments, &error);
    job->succeeded = value != NULL;
    if (value) {
        job->reply = qmp_reply(value, job->request.id);
        if (strlen(job->reply) <= QMP_REPLY_MAX)
            return;
        job->succeeded = false;
        g_free(job->reply);
        g_set_error(&error, QMP_ERROR, QMP_ERROR_GENERIC,
                    "The answer is larger than %u MiB (ask for less)",
                    QMP_REPLY_MAX >> 20);
    }
    job->reply = qmp_reply_error(error, job->request.id);
}

static void wake_loop(qmp_server *server)
{
    uint64_t one = 1;
    (void)!write(server->wake, &one, sizeof one);
}

static void *worker_main(void *data)
{
    qmp_server *server = data;
    g_mutex_lock(&server->mutex);
    while (!server->stop) {
        qmp_job *job = g_queue_pop_head(&server->waiting);
        if (!job) {
            g_cond_wait(&server->work, &server->mutex);
            continue;
        }
        g_mutex_unlock(&server->mutex);
        job_run(server, job);
        g_mutex_lock(&server->mutex);
        g_queue_push_tail(&server->done, job);
        wake_loop(server);
    }
    g_mutex_unlock(&server->mutex);
    return NULL;
}

/* ---- Commands ---------------------------------------------------------------------- */

static const qmp_command *find_command(const qmp_server *server, const char *name)
{
    for (size_t i = 0; i < server->n_commands; i++)
        if (strcmp(server->commands[i].name, name) == 0)
            return &server->commands[i];
    return NULL;
}

static json_t *run_capabilities(qmp_server *server, qmp_client *client, json_t *arguments,
                                GError **error)
{
    json_t *wanted = json_array_get(json_object_get(arguments, "enable"), 0);
    if (wanted) { /* there are none to be had */
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "Capability '%s' not available",
                    json_is_string(wanted) ? json_string_value(wanted) : "");
        return NULL;
    }
    client->negotiated = true;
    atomic_fetch_add(&server->hearers, 1);
    return json_object();
}

static json_t *list_commands(const qmp_server *server)
{
    json_t *list = json_array();
    for (size_t i = 0; i < server->n_commands; i++)
        json_array_append_new(list, json_pack("{s:s}", "name", server->commands[i].name));
    return list;
}

static bool may_run(const qmp_client *client, const qmp_command *command,
                    const qmp_request *request, GError **error)
{
    bool negotiates = strcmp(request->execute, "qmp_capabilities") == 0;
    if (!client->negotiated && !negotiates) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
        return false;
    }
    if (client->negotiated && negotiates) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Capabilities negotiation is already complete, command ignored");
        return false;
    }
    if (!command) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "The command %s has not been found", request->execute);
        return false;
    }
    return qmp_check_arguments(command->parameters, request->arguments, error);
}

/* The server's own two; false if it is neither. */
static bool run_own(qmp_server *server, qmp_client *client, qmp_job *job)
{
    g_autoptr(GError) error = NULL;
    json_t *value = NULL;
    if (job->command->run)
        return false;
    if (strcmp(job->command->name, "qmp_capabilities") == 0)
        value = run_capabilities(server, client, job->request.arguments, &error);
    else
        value = list_commands(server);
    job->reply = value ? qmp_reply(value, job->request.id)
                       : qmp_reply_error(error, job->request.id);
    return true;
}

static void job_answer(qmp_server *server, qmp_client *client, qmp_job *job)
{
    qmp_client_say(client, job->reply);
    if (job->succeeded && job->command->after)
        job->command->after(server->opaque);
    job_free(job);
}

static void job_delegate(qmp_server *server, qmp_client *client, qmp_job *job)
{
    client->busy = true;
    g_mutex_lock(&server->mutex);
    g_queue_push_tail(&server->waiting, job);
    g_cond_signal(&server->work);
    g_mutex_unlock(&server->mutex);
}

static void take_request(qmp_server *server, qmp_client *client, const GString *text)
{
    g_autoptr(GError) error = NULL;
    qmp_job *job = g_new0(qmp_job, 1);
    job->client = client;
    if (!qmp_request_parse(text->str, text->len, &job->request, &error)) {
        job->reply = qmp_reply_error(error, job->request.id);
        job_answer(server, client, job);
        return;
    }
    job->command = find_command(server, job->request.execute);
    if (!may_run(client, job->command, &job->request, &error)) {
        job->reply = qmp_reply_error(error, job->request.id);
        job_answer(server, client, job);
    } else if (run_own(server, client, job)) {
        job_answer(server, client, job);
    } else if (job->command->slow) {
        job_delegate(server, client, job);
    } else {
        job_run(server, job);
        job_answer(server, client, job);
    }
}

/* Works off what has been received, up to a command that a worker runs. */
static void client_work(qmp_server *server, qmp_client *client)
{
    while (!client->busy && !client->dead && client->input_at < client->input_end) {
        size_t used;
        qmp_item item = qmp_stream_feed(&client->stream, client->input + client->input_at,
                                        client->input_end - client->input_at, &used);
        client->input_at += used;
        if (item == QMP_ITEM_VALUE) {
            take_request(server, client, client->stream.value);
        } else if (item == QMP_ITEM_BAD) {
            g_autoptr(GError) error =
                g_error_new_literal(QMP_ERROR, QMP_ERROR_GENERIC, client->stream.error);
            g_autofree char *line = qmp_reply_error(error, NULL);
            qmp_client_say(client, line);
        }
    }
}

/* ---- The loop ---------------------------------------------------------------------- */

static void accept_client(qmp_server *server)
{
    int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    server->paused = fd < 0 && errno != EAGAIN && errno != ECONNABORTED;
    if (fd < 0)
        return;
    if (server->clients->len == QMP_CLIENTS_MAX) {
        g_autoptr(GError) error = g_error_new_literal(QMP_ERROR, QMP_ERROR_GENERIC,
                                                      "Too many clients (try again)");
        g_autofree char *line = qmp_reply_error(error, NULL);
        (void)!send(fd, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT);
        close(fd);
        return;
    }
    qmp_client *client = qmp_client_new(fd);
    g_ptr_array_add(server->clients, client);
    g_autofree char *greeting = qmp_greeting();
    qmp_client_say(client, greeting);
}

/* ---- Events ------------------------------------------------------------------------- */

bool qmp_server_is_heard(qmp_server *server)
{
    return atomic_load(&server->hearers) > 0;
}

/* Should the loop not keep up, what does not fit is lost to all, and the journal has it. */
void qmp_server_emit(qmp_server *server, const char *name, json_t *data)
{
    char *line = qmp_event(name, data);
    size_t length = strlen(line);
    g_mutex_lock(&server->mutex);
    bool fits = !server->stop && server->event_bytes + length <= QMP_OUTPUT_MAX;
    if (fits) {
        g_queue_push_tail(&server->events, line);
        server->event_bytes += length;
        wake_loop(server);
    }
    g_mutex_unlock(&server->mutex);
    if (!fits)
        g_free(line);
}

static void hand_out(qmp_server *server, GQueue *events)
{
    char *line;
    while ((line = g_queue_pop_head(events))) {
        for (guint i = 0; i < server->clients->len; i++) {
            qmp_client *client = server->clients->pdata[i];
            if (client->negotiated)
                qmp_client_say(client, line);
        }
        g_free(line);
    }
}

/* Returns false when the server is to stop. */
static bool take_done(qmp_server *server)
{
    uint64_t count;
    (void)!read(server->wake, &count, sizeof count);
    GQueue done, events;
    g_mutex_lock(&server->mutex);
    done = server->done;
    g_queue_init(&server->done);
    events = server->events;
    g_queue_init(&server->events);
    server->event_bytes = 0;
    bool stop = server->stop;
    g_mutex_unlock(&server->mutex);
    hand_out(server, &events);
    qmp_job *job;
    while ((job = g_queue_pop_head(&done))) {
        qmp_client *client = job->client;
        client->busy = false;
        job_answer(server, client, job);
        client_work(server, client);
    }
    return !stop;
}

/* What the loop waits for. A busy client's input stays in its socket; poll would report
 * that the other side is gone again and again, so it is not asked at all. */
static struct pollfd client_interest(const qmp_client *client)
{
    short events = 0;
    if (qmp_client_unsent(client) > 0)
        events |= POLLOUT;
    if (!client->busy && !client->eof)
        events |= POLLIN;
    return (struct pollfd){events && !client->dead ? client->fd : -1, events, 0};
}

static void client_serve(qmp_server *server, qmp_client *client, short events)
{
    if (events & POLLOUT ||
        (events & (POLLERR | POLLHUP) && qmp_client_unsent(client) > 0))
        qmp_client_send(client);
    if (events && !client->busy && !client->eof) {
        qmp_client_receive(client);
        client_work(server, client);
    }
}

static void drop_finished(qmp_server *server)
{
    for (guint i = server->clients->len; i-- > 0;) {
        const qmp_client *client = server->clients->pdata[i];
        if (!qmp_client_finished(client))
            continue;
        if (client->negotiated)
            atomic_fetch_sub(&server->hearers, 1);
        g_ptr_array_remove_index(server->clients, i);
    }
}

static void *loop_main(void *data)
{
    qmp_server *server = data;
    bool serving = true;
    while (serving) {
        struct pollfd fds[2 + QMP_CLIENTS_MAX];
        guint n = server->clients->len;
        fds[0] = (struct pollfd){server->wake, POLLIN, 0};
        fds[1] = (struct pollfd){server->paused ? -1 : server->listener, POLLIN, 0};
        for (guint i = 0; i < n; i++)
            fds[2 + i] = client_interest(server->clients->pdata[i]);
        if (poll(fds, 2 + n, server->paused ? PAUSE_MS : -1) < 0)
            continue;
        server->paused = false;
        for (guint i = 0; i < n; i++)
            if (fds[2 + i].revents)
                client_serve(server, server->clients->pdata[i], fds[2 + i].revents);
        if (fds[0].revents)
            serving = take_done(server);
        drop_finished(server);
        if (fds[1].revents && serving)
            accept_client(server);
    }
    return NULL;
}

/* ---- Start and stop ---------------------------------------------------------------- */

static int start_threads(qmp_server *server)
{
    sigset_t all, before;
    sigfillset(&all); /* signals are for the daemon's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = 0;
    while (result == 0 && server->n_threads < G_N_ELEMENTS(server->threads)) {
        bool first = server->n_threads == 0;
        result = thread_start(&server->threads[server->n_threads],
                              first ? "qmp" : "qmp-worker",
                              first ? loop_main : worker_main, server);
        server->n_threads += result == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

qmp_server *qmp_server_start(const char *path, const qmp_command *commands, size_t n,
                             void *opaque, GError **error)
{
    int listener = qmp_socket_listen(path, error);
    if (listener < 0)
        return NULL;
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake < 0) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "%s: %s", path,
                    g_strerror(errno));
        close(listener);
        unlink(path);
        return NULL;
    }
    qmp_server *server = g_new0(qmp_server, 1);
    server->commands = commands;
    server->n_commands = n;
    server->opaque = opaque;
    server->path = g_strdup(path);
    server->listener = listener;
    server->wake = wake;
    server->clients = g_ptr_array_new_with_free_func(qmp_client_free);
    struct stat st;
    if (lstat(path, &st) == 0) {
        server->dev = st.st_dev;
        server->ino = st.st_ino;
    }
    g_mutex_init(&server->mutex);
    g_cond_init(&server->work);
    json_object_seed(0); /* before there are threads that could both do it */
    int result = start_threads(server);
    if (result == 0)
        return server;
    g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "%s: %s", path, g_strerror(-result));
    qmp_server_stop(server, G_USEC_PER_SEC);
    return NULL;
}

static void remove_socket(const qmp_server *server)
{
    struct stat st;
    if (lstat(server->path, &st) == 0 && st.st_dev == server->dev &&
        st.st_ino == server->ino)
        unlink(server->path);
}

bool qmp_server_stop(qmp_server *server, gint64 patience_us)
{
    if (!server)
        return true;
    g_mutex_lock(&server->mutex);
    server->stop = true;
    g_cond_broadcast(&server->work);
    wake_loop(server);
    g_mutex_unlock(&server->mutex);
    gint64 until = g_get_monotonic_time() + patience_us;
    remove_socket(server);
    while (server->n_joined < server->n_threads &&
           thread_join(server->threads[server->n_joined], until))
        server->n_joined++;
    if (server->n_joined > 0) /* the loop, whose they are */
        g_ptr_array_set_size(server->clients, 0);
    if (server->n_joined < server->n_threads)
        return false;
    g_ptr_array_unref(server->clients);
    g_queue_clear_full(&server->waiting, (GDestroyNotify)job_free);
    g_queue_clear_full(&server->done, (GDestroyNotify)job_free);
    g_queue_clear_full(&server->events, g_free);
    close(server->listener);
    close(server->wake);
    g_cond_clear(&server->work);
    g_mutex_clear(&server->mutex);
    g_free(server->path);
    g_free(server);
    return true;
}
