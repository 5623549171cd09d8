/*
 * verdict.h: how a mount ended. The daemon leaves it in the state directory, as its last deed:
 * nobody else can tell whoever unmounts whether all was flushed, and when it was the kernel
 * may keep the process for as long as a replica hangs.
 */
#ifndef FUSE_VERDICT_H
#define FUSE_VERDICT_H

#include "fuse/daemon.h"
#include <jansson.h>
#include <sys/types.h>

typedef struct verdict verdict;

verdict *verdict_new(void);
void verdict_free(verdict *v);

/* A disk after its last flush, which returned `flushed`: what its replicas are. */
void verdict_add_disk(verdict *v, disk *d, int flushed);
/* What came of closing the disk that was added last: 0 or -errno. */
void verdict_set_closed(verdict *v, int closed);
/* The first error of any disk, 0 if there is none; and whether a replica hangs. */
int verdict_error(const verdict *v);
bool verdict_hangs(const verdict *v);

/* `stuck`: something did not end, and no disk is closed. If it cannot be written, whoever
 * unmounts is told that nothing is known. */
void verdict_write(const verdict *v, const char *state_dir, bool stuck);
/* When a mount begins: the verdict of an earlier one is removed, and room is kept for this one's. */
void verdict_reserve(const char *state_dir, unsigned n_replicas);

/* What the daemon `pid` wrote (a new reference), or NULL: it has written nothing (yet).
 * {"pid", "stuck": bool, "disks": [{"name", "error": TEXT or null, "replicas": [{"name",
 * "state", "stale-bytes"}]}]} */
json_t *verdict_read(const char *state_dir, json_int_t pid);

#endif
