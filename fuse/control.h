/*
 * control.h: the control socket. It speaks QMP as QEMU does (shared between the wire,
 * qmp.c, and the verbs, control.c); the sub-commands are clients of it.
 *
 * This version's verbs: qmp_capabilities, query-version, query-commands, quit,
 * quorumfs-status, quorumfs-explain {disk, offset, length} (its answer: explain.h);
 * quorumfs-scrub {disk, repair, speed}, quorumfs-scrub-cancel {disk} and quorumfs-resync
 * {disk}, which answer {} at once, while the rows of the status tell how it goes on (jobs.h).
 */
#ifndef FUSE_CONTROL_H
#define FUSE_CONTROL_H

#include "fuse/daemon.h"
#include <jansson.h>

typedef struct control control;

/* Makes the socket (mode 0600; a dead one of ours at the same path is replaced) and serves
 * it on threads of its own. `quit` calls on_quit(opaque) on a control thread; it must only
 * ask for the end and return. */
control *control_start(const daemon_context *daemon, void (*on_quit)(void *opaque),
                       void *opaque, GError **error);
/* Disconnects all clients, joins the threads, removes the socket. False: after `patience_us` a
 * command is still running; what it uses has to remain, and this can be called again. NULL is
 * allowed. */
bool control_stop(control *c, gint64 patience_us);

/* A record of a journal becomes events (control-events.h). From any thread until control_stop,
 * and waits for nobody. */
void control_tell(control *c, const char *line);

/* Client: connects, negotiates, runs one command. *ret_return is the "return" member (a new
 * reference). `arguments` is borrowed, may be NULL. Errors: the server's desc as it is. */
bool control_call(const char *socket_path, const char *command, json_t *arguments,
                  json_t **ret_return, GError **error);

#endif
