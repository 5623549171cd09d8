/*
 * jobs.h: what works on a disk in the background, as rows for status and the control socket,
 * in the shape of QEMU's query-block-jobs.
 */
#ifndef FUSE_JOBS_H
#define FUSE_JOBS_H

#include "quorum/disk.h"
#include <jansson.h>

/* An array; a new reference. A row has type, device (the job's name: TYPE-DISK), len, offset,
 * speed, busy, paused, ready, io-status, status, auto-finalize, auto-dismiss, error?.
 *
 * "scrub": there from the first one on; the last one stays, "concluded". More: repair
 * (bool), result ("completed", "cancelled", "failed") and ended (RFC 3339) once it is
 * concluded, seconds (that it took so far), skipped-bytes, and repair_stats as
 * checked-bytes, differing-bytes, unreadable-bytes, repaired-bytes, failed-bytes,
 * no-majority-bytes and ranges.
 *
 * "resync": while some replica is stale; "running", or "paused" while nobody is being filled
 * because that failed (error) or cannot be done at all. */
json_t *jobs_json(disk *d);

#endif
