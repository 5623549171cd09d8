/*
 * daemon.h: what a running mount consists of, shared by the FUSE side (mount.c), the files
 * in .quorumfs (status.c) and the control socket (control.c).
 */
#ifndef FUSE_DAEMON_H
#define FUSE_DAEMON_H

#include "fuse/config.h"
#include "quorum/journal.h"

/* Built before any thread starts, then only read; disks and journals lock themselves. */
typedef struct daemon_context {
    const mount_config *config;
    GPtrArray *disks;    /* of disk*, in the configuration's order */
    GPtrArray *journals; /* of journal*, same order: one per disk */
    char *state_dir;    /* absolute; disk NAME has its journal in NAME/divergence.jsonl */
    char *socket_path;  /* absolute; where the control socket is */
    int64_t started_us; /* g_get_monotonic_time() at start */
} daemon_context;

/* Opens the disks of `config`, mounts, tells the shell when the disk can be read, serves
 * until unmounted, closes everything. Returns the exit code of quorumfs(1) (0, 1, 32). Unless
 * config->foreground is set the caller's process returns as soon as the mount is ready
 * (or has failed), while a child in a session of its own serves. Prints its own errors. */
int daemon_mount(const mount_config *config);

#endif
