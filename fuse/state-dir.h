/*
 * state-dir.h: the directory in which a set of replicas has its state (config.h tells where).
 * Who has its lock, a daemon or an offline repair, has the set for himself.
 */
#ifndef FUSE_STATE_DIR_H
#define FUSE_STATE_DIR_H

#include "quorum/journal.h"

/* A descriptor that holds the lock until it is closed, or -1. `hint`: what can be done if
 * somebody else has it. */
int state_dir_lock(const char *dir, const char *hint, GError **error);

/* DIR/NAME/divergence.jsonl; g_free it. */
char *state_dir_journal_path(const char *dir, const char *name);
/* Makes its directory, too. */
journal *state_dir_open_journal(const char *dir, const char *name, GError **error);

#endif
