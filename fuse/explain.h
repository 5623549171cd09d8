/*
 * explain.h: who holds what in a range, as JSON. The control socket's quorumfs-explain and
 * the offline `quorumfs explain` answer with the same object.
 */
#ifndef FUSE_EXPLAIN_H
#define FUSE_EXPLAIN_H

#include "quorum/disk.h"
#include <jansson.h>

/* The range is widened to whole sectors, and cut at the disk's end. Offset and length 0 to
 * DISK_EXPLAIN_MAX; length 0 means the sector at the offset. *ret_object (a new reference):
 *
 * {"disk", "offset", "length", "runs": [{"offset", "length", "differs", "quorum",
 *   "replicas": [{"replica", "wins", "sha256" | "errno", "kind", "layer", "file",
 *                 "host-offset"?} ...]} ...]}
 *
 * "kind" is "data", "compressed", "zero" or "unallocated"; "host-offset" is there when the
 * bytes have a place in "file". 0 or -errno; -EINVAL: the range is too long or starts past
 * the disk's end; -E2BIG: more than EXPLAIN_ROWS_MAX members of "replicas" in all. */
#define EXPLAIN_ROWS_MAX 32768u
int explain_json(disk *d, uint64_t offset, uint64_t length, json_t **ret_object);

#endif
