/*
 * repair-set.h: a set of replicas that nobody has mounted, for the offline repair and its
 * undoing: its state directory and lock, and its disks, opened to be looked at or to be
 * changed. Threads: one.
 */
#ifndef FUSE_REPAIR_SET_H
#define FUSE_REPAIR_SET_H

#include "fuse/config.h"
#include "quorum/journal.h"
#include "quorum/undo.h"

typedef struct repair_set {
    mount_config *config; /* borrowed; how its disks are opened is changed here */
    char *dir;            /* of its state; need not be there */
    int lock_fd;          /* -1: the directory is not there yet */
} repair_set;

/* Takes the lock if there is anything to be locked; makes nothing. */
bool repair_set_open(repair_set *set, mount_config *config, GError **error);
void repair_set_close(repair_set *set);

/* Read-only, and with a copy of what is recorded of it: no file changes, whatever happens to
 * the disk. disk_close it. */
disk *repair_set_look(repair_set *set, disk_options *options, GError **error);
/* To be changed (disk_options.offline), with its record and its journal. repair_set_end both.
 * No other disk may be open. */
disk *repair_set_begin(repair_set *set, disk_options *options, journal **ret_journal,
                       GError **error);
/* What disk_close returned. */
int repair_set_end(disk *d, journal *records);

/* Makes the state directory, if it is not there, and locks it. */
bool repair_set_make_dir(repair_set *set, GError **error);

/* Which disk this is, for undo.h. Borrowed from the disk. */
void repair_set_about(disk *d, undo_disk *ret_about);
/* STATE/undo/ID/NAME.undo, without NAME if it is NULL, likewise ID; g_free it. */
char *repair_set_undo_path(const repair_set *set, const char *id, const char *name);
/* Makes the directory for a new ID, unless *id is one already; g_free it. */
bool repair_set_make_undo(repair_set *set, char **id, GError **error);
/* The names in it are durable. */
bool repair_set_sync_undo(const repair_set *set, const char *id, GError **error);
/* Removes that disk's file, and then, if there is no other, the directory and *id. */
void repair_set_remove_undo(const repair_set *set, char **id, const char *name);

#endif
