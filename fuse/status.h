/*
 * status.h: what the files in .quorumfs say. Every function returns a new string
 * (g_free), never NULL, and never waits for a replica.
 */
#ifndef FUSE_STATUS_H
#define FUSE_STATUS_H

#include "fuse/daemon.h"

/* What `status --json` prints, pretty-printed, with a final newline; also "socket" (path of
 * the control socket) and "state-dir". */
char *status_json(const daemon_context *daemon);
/* Prometheus text exposition of the same. */
char *status_metrics(const daemon_context *daemon);
/* A GNU ddrescue map of one disk: '?' where nothing is known to differ, '/' where replicas
 * differed and a majority was served, '-' where there was no majority. */
char *status_divergence_map(disk *d);

#endif
