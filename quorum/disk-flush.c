/*
 * disk-flush.c: a flush of all replicas (W4).
 *
 * It takes as many rounds as the replica with the most steps; in each, all that are not done
 * yet share a submission.
 *
 * Flush covers the writes that were acknowledged before it began, as fsync does, and says
 * nothing of those that run beside it: it locks no range of the disk. Only a resize must
 * not run beside it (image.h), so it shares a byte that lies behind every disk.
 */
#include "quorum/disk-internal.h"

/* One step of every replica of `pending`. Returns those that want another. */
static uint64_t flush_round(disk *d, disk_change *change, uint64_t pending,
                            image_flush_state *flushes)
{
    uint64_t more = 0;
    io_list *list = &disk_thread_get(0)->list;
    io_list_clear(list);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(pending, i))
            continue;
        int r = chain_flush_step(d->replicas[i].chain, &flushes[i], i, list);
        if (r > 0)
            more |= UINT64_C(1) << i;
        else
            change->results[i] = r;
        flushes[i].result = 0;
    }
    if (list->count > 0)
        io_list_run(list);
    for (size_t k = 0; k < list->count; k++) {
        const io_op *op = &list->ops[k];
        if (op->result != 0 && flushes[op->owner].result == 0)
            flushes[op->owner].result = op->result;
    }
    return more;
}

int disk_flush_locked(disk *d)
{
    disk_change change;
    int r = disk_change_begin(d, &change, "flush", 0, 0);
    if (r < 0)
        return r;
    change.event = REPLICA_EVENT_FLUSH_FAILED;
    image_flush_state flushes[VOTE_REPLICAS_MAX] = {0};
    for (uint64_t pending = change.asked; pending != 0;)
        pending = flush_round(d, &change, pending, flushes);
    return disk_change_finish(d, &change);
}

int disk_flush(disk *d)
{
    if (!d->writable)
        return 0;
    DISK_COUNT(d->flushes, 1);
    rangelock_held held;
    disk_lock_size(d, &held);
    int r = disk_flush_locked(d);
    rangelock_release(d->range_lock, &held);
    return r;
}
