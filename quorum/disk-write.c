/*
 * disk-write.c: the requests that change a disk. Each takes its range exclusively (W1),
 * hands the change to every replica in sync and leaves the consequences to disk-change.c.
 *
 * A write is prepared on all replicas, in the order that all threads share (image.h), run in
 * one submission, and finished on every replica that wants it, whatever became of the
 * others. Write-zeroes and discard take the replicas one after the other: they mostly touch
 * metadata, and are rare.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

/* What the replicas prepared, all at once. The caller's data is lent: what a replica did not take in time it may
 * still read, and the caller asks io_thread_abandoned (disk.h). */
static void run_write(const disk *d, disk_thread *thread, disk_change *change)
{
    disk_run_list(d, &thread->list);
    for (size_t k = 0; k < thread->list.count; k++) {
        const io_op *op = &thread->list.ops[k];
        if (op->result != 0 && change->results[op->owner] == 0)
            change->results[op->owner] = op->result;
    }
}

static void write_replicas(disk *d, disk_change *change, uint64_t offset, size_t length,
                           const void *data)
{
    image_change *changes[VOTE_REPLICAS_MAX];
    disk_thread *thread = disk_thread_get(0);
    io_list_clear(&thread->list);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i))
            continue;
        disk_wait_for(d, i);
        change->results[i] = chain_prepare_write(d->replicas[i].chain, data, offset,
                                                 length, i, &thread->list, &changes[i]);
    }
    disk_wait_for_ever();
    run_write(d, thread, change);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i) || !changes[i])
            continue;
        disk_wait_for(d, i);
        change->results[i] =
            chain_finish_write(d->replicas[i].chain, changes[i], change->results[i]);
    }
    disk_wait_for_ever();
}

static int write_locked(disk *d, uint64_t offset, size_t length, const void *data)
{
    disk_change change;
    if (!disk_has_range(d, offset, length))
        return -EINVAL;
    int r = disk_change_begin(d, &change, "write", offset, length);
    if (r < 0)
        return r;
    if (change.offset == offset && change.length == length)
        change.data = data;
    write_replicas(d, &change, offset, length, data);
    return disk_change_finish(d, &change);
}

int disk_write(disk *d, uint64_t offset, size_t length, const void *data)
{
    if (!d->writable)
        return -EROFS;
    if (length > DISK_REQUEST_MAX || offset > IMAGE_SIZE_MAX)
        return -EINVAL;
    DISK_COUNT(d->writes, 1);
    DISK_COUNT(d->write_bytes, length);
    if (length == 0)
        return disk_has_range(d, offset, 0) ? 0 : -EINVAL;
    rangelock_held held;
    int r = disk_lock_equal(d, &held, offset, length, RANGELOCK_EXCLUSIVE);
    if (r < 0)
        return r;
    r = write_locked(d, offset, length, data);
    rangelock_release(d->range_lock, &held);
    return r;
}

typedef int (*clear_fn)(chain *c, uint64_t offset, uint64_t length);

static int clear_locked(disk *d, uint64_t offset, uint64_t length, const char *op,
                        clear_fn clear)
{
    disk_change change;
    if (!disk_has_range(d, offset, length))
        return -EINVAL;
    int r = disk_change_begin(d, &change, op, offset, length);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change.asked, i))
            continue;
        disk_wait_for(d, i);
        change.results[i] = clear(d->replicas[i].chain, offset, length);
    }
    disk_wait_for_ever();
    return disk_change_finish(d, &change);
}

static int clear_range(disk *d, uint64_t offset, uint64_t length, const char *op,
                       clear_fn clear)
{
    if (!d->writable)
        return -EROFS;
    if (length > IMAGE_SIZE_MAX || offset > IMAGE_SIZE_MAX)
        return -EINVAL;
    DISK_COUNT(d->writes, 1);
    if (length == 0)
        return disk_has_range(d, offset, 0) ? 0 : -EINVAL;
    rangelock_held held;
    int r = disk_lock_equal(d, &held, offset, length, RANGELOCK_EXCLUSIVE);
    if (r < 0)
        return r;
    r = clear_locked(d, offset, length, op, clear);
    rangelock_release(d->range_lock, &held);
    return r;
}

int disk_write_zeroes(disk *d, uint64_t offset, uint64_t length)
{
    return clear_range(d, offset, length, "write-zeroes", chain_write_zeroes);
}

int disk_discard(disk *d, uint64_t offset, uint64_t length)
{
    return clear_range(d, offset, length, "discard", chain_discard);
}
