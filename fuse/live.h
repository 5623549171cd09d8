/*
 * live.h: a disk of a mount, asked by a sub-command through the control socket. Each function
 * prints its own error line.
 */
#ifndef FUSE_LIVE_H
#define FUSE_LIVE_H

#include "fuse/cli.h"

typedef struct live_disk {
    cli_mount mount;
    const char *mountpoint, *name;
    const char *socket; /* the mount's status owns it */
} live_disk;

/* False: there is nothing to be cleared. */
bool live_find(live_disk *l, const char *mountpoint, const char *name);
void live_clear(live_disk *l);

/* Takes `arguments` over. *ret_answer: a new reference. */
bool live_call(const live_disk *l, const char *verb, json_t *arguments,
               json_t **ret_answer);
/* The same, where the answer says no more than that it was done. */
bool live_begin(const live_disk *l, const char *verb, json_t *arguments);
/* The disk's row of the status as it is now; a new reference, or NULL. */
json_t *live_status(const live_disk *l);
/* The row that has this value; borrowed, NULL: none. */
json_t *live_row(json_t *rows, const char *key, const char *value);

#endif
