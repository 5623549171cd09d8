/* qmp-client.c: see qmp-client.h. */
#include "fuse/qmp-client.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE (64u << 10)

/* ---- Clients ----------------------------------------------------------------------- */

qmp_client *qmp_client_new(int fd)
{
    qmp_client *client = g_new0(qmp_client, 1);
    client->fd = fd;
    client->input = g_malloc(READ_SIZE);
    client->output = g_string_new(NULL);
    qmp_stream_init(&client->stream, QMP_MESSAGE_MAX);
    return client;
}

void qmp_client_free(void *data)
{
    qmp_client *client = data;
    close(client->fd);
    qmp_stream_clear(&client->stream);
    g_string_free(client->output, TRUE);
    g_free(client->input);
    g_free(client);
}

size_t qmp_client_unsent(const qmp_client *client)
{
    return client->output->len - client->output_at;
}

bool qmp_client_finished(const qmp_client *client)
{
    if (client->busy)
        return false;
    return client->dead || (client->eof && client->input_at == client->input_end &&
                            qmp_client_unsent(client) == 0);
}

void qmp_client_send(qmp_client *client)
{
    while (!client->mute && qmp_client_unsent(client) > 0) {
        ssize_t sent = send(client->fd, client->output->str + client->output_at,
                            qmp_client_unsent(client), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            client->output_at += (size_t)sent;
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            client->mute = true;
    }
    g_string_truncate(client->output, 0);
    client->output_at = 0;
}

void qmp_client_say(qmp_client *client, const char *line)
{
    size_t length = strlen(line);
    if (qmp_client_unsent(client) + length > QMP_OUTPUT_MAX)
        client->dead = true;
    if (client->mute || client->dead)
        return;
    g_string_erase(client->output, 0, (gssize)client->output_at);
    client->output_at = 0;
    g_string_append_len(client->output, line, (gssize)length);
    qmp_client_send(client);
}

void qmp_client_receive(qmp_client *client)
{
    ssize_t got = recv(client->fd, client->input, READ_SIZE, MSG_DONTWAIT);
    client->input_at = 0;
    client->input_end = got > 0 ? (size_t)got : 0;
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        client->eof = true;
}
