/*
 * control-events.h: the journal as events of the control socket.
 */
#ifndef FUSE_CONTROL_EVENTS_H
#define FUSE_CONTROL_EVENTS_H

#include "fuse/qmp.h"

/* One line of a journal, without its newline. From any thread, and waits for nobody. */
void control_events_tell(qmp_server *server, const char *line);

#endif
