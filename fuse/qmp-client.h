/*
 * qmp-client.h: one client of the server: what it sent and is to be sent. The loop's alone.
 */
#ifndef FUSE_QMP_CLIENT_H
#define FUSE_QMP_CLIENT_H

#include "fuse/qmp-stream.h"
#include "fuse/qmp.h"

typedef struct qmp_client {
    int fd;
    qmp_stream stream;
    char *input; /* received, not yet used: from input_at to input_end */
    size_t input_at, input_end;
    GString *output; /* not yet sent: from output_at */
    size_t output_at;
    bool negotiated;
    bool busy; /* a worker has a command of it */
    bool eof;  /* nothing more will come; what has come is still answered */
    bool mute; /* the other side takes no answers any more; commands still run */
    bool dead; /* does not read: disconnect */
} qmp_client;

/* Takes over `fd`, which is non-blocking. */
qmp_client *qmp_client_new(int fd);
void qmp_client_free(void *client);

size_t qmp_client_unsent(const qmp_client *client);
/* Nothing more is to be done for it. */
bool qmp_client_finished(const qmp_client *client);
/* As far as the socket takes it. */
void qmp_client_send(qmp_client *client);
/* Queues a line, and sends what it can. One that does not read is dead then. */
void qmp_client_say(qmp_client *client, const char *line);
/* Reads what is there into `input`, of which all was used. */
void qmp_client_receive(qmp_client *client);

#endif
