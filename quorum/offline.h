/*
 * offline.h: making the replicas of a disk equal that nobody uses meanwhile: opened with
 * disk_options.offline, so that nothing happens to it but what is asked for here and in
 * repair.h.
 *
 * By the vote: disk_offline_reconcile, disk_offline_catch_up, then disk_repair_range where
 * replicas differ. By one replica that is right: disk_offline_trust, disk_repair_range with it,
 * disk_offline_settle. Then disk_close, after which what is recorded of the replicas is what
 * they hold, so that the next mount trusts them.
 *
 * Threads: one. 0 or -errno.
 */
#ifndef QUORUM_OFFLINE_H
#define QUORUM_OFFLINE_H

#include "quorum/repair.h"

/* Bytes of regions that the last session left to be reconciled (W6). */
uint64_t disk_offline_unreconciled(disk *d);
bool disk_offline_is_unreconciled(disk *d, uint64_t offset, uint64_t length);
/* Does so, up to the first region that cannot be. `cancel` not 0: stops, with -EINTR. */
int disk_offline_reconcile(disk *d, const volatile int *cancel);

/* Whether replica i missed something in the range by what is recorded. */
bool disk_offline_is_stale(disk *d, unsigned i, uint64_t offset, uint64_t length);
/* Compares what stale replicas missed with what the others agree on, and writes what differs.
 * They are current again where that was possible; where the others have no majority they stay
 * stale. `progress` (may be NULL) is called now and then with how far it is. Not 0: a replica
 * could not be written or flushed, the saver refused, or it was cancelled (-EINTR). */
int disk_offline_catch_up(disk *d, const volatile int *cancel,
                          void (*progress)(void *opaque, uint64_t offset), void *opaque);

/* Whatever is recorded, every replica counts as current from now on, until the disk is closed;
 * on record stays what was there. */
void disk_offline_trust(disk *d);
/* `equal`: all replicas are equal everywhere, and that goes on record. If not, the record
 * is what it was before disk_offline_trust. */
int disk_offline_settle(disk *d, bool equal);

/* Writes to one replica alone, and compares. `stale`: it is stale in this range from then on,
 * on record before it is written to. At most DISK_REQUEST_MAX. */
int disk_offline_put_back(disk *d, unsigned i, uint64_t offset, const void *data,
                          size_t length, bool stale);

#endif
