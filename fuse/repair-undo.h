/*
 * repair-undo.h: what an offline repair overwrote is put back, or told. Threads: one. Both print
 * their own errors and return an exit code: 0, or 2.
 */
#ifndef FUSE_REPAIR_UNDO_H
#define FUSE_REPAIR_UNDO_H

#include "fuse/repair-set.h"

/* Every replica holds what it held before again, or nothing is changed: everything is checked
 * first. With dry_run nothing is changed anyway. */
int repair_undo(repair_set *set, const char *id, bool dry_run);
/* One line for each repair and disk, oldest first. */
int repair_undo_list(const repair_set *set);

#endif
