/*
 * disk-behind.c: what a replica that is out may have lost, on record with the flushes that
 * succeed without it.
 *
 * What it took since all were flushed together lies in regions whose intent bit is set (rejoin.c).
 * A flush promises what is in them (W6): from then on the replica must not be taken for one
 * that holds it, also after a crash, when those that flushed may not be there. So that is
 * stale on stable storage before the flush is acknowledged. Not what is still to be
 * reconciled: there nobody is ahead yet.
 */
#include "quorum/disk-internal.h"

static uint64_t miss_reconciled(disk *d, disk_replica *replica, uint64_t offset,
                                uint64_t length)
{
    uint64_t end = offset + length, added = 0, at, run;
    while (offset < end && state_next_unreconciled(d->store, offset, &at, &run) &&
           at < end) {
        added += rangeset_add(&replica->missed, offset, at - offset);
        offset = at + run;
    }
    if (offset < end)
        added += rangeset_add(&replica->missed, offset, end - offset);
    return added;
}

bool disk_miss_dirty(disk *d, unsigned i)
{
    uint64_t offset, length, added = 0;
    for (uint64_t at = 0; d->session && state_next_dirty(d->store, at, &offset, &length);
         at = offset + length)
        added += miss_reconciled(d, &d->replicas[i], offset, length);
    return added > 0;
}

bool disk_is_out(replica_state now)
{
    return now == REPLICA_HUNG || now == REPLICA_FAILED;
}

/* Returns whose record lacks something. */
static uint64_t note_behind(disk *d)
{
    uint64_t set = 0;
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        disk_replica *replica = &d->replicas[i];
        if (!disk_is_out(replica->state) ||
            (!disk_miss_dirty(d, i) && replica->behind_recorded))
            continue;
        replica->behind_recorded = false;
        state_note_stale(d->store, i, &replica->missed);
        set |= UINT64_C(1) << i;
    }
    g_mutex_unlock(&d->state_lock);
    return set;
}

int disk_record_behind(disk *d)
{
    uint64_t set = note_behind(d);
    int r = state_settle(d->store);
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n && r == 0; i++)
        d->replicas[i].behind_recorded |= disk_has_bit(set, i);
    g_mutex_unlock(&d->state_lock);
    return r;
}
