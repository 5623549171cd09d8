/*
 * disk-resize.c: a new size for all replicas, or for none.
 *
 * Under a lock of the whole disk. A resize to the present size changes nothing and tells
 * whether a replica can do it at all, so that no replica is shrunk before another says
 * -ENOTSUP. If too few could be resized, the others are put back. Shrinking loses what
 * lay behind the new end, and putting back gives zeroes there: as after any change that
 * failed as a whole (W3) old and new bytes stand side by side then, and reads vote.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

static int resize_replica(disk *d, unsigned i, uint64_t size)
{
    disk_wait_for(d, i);
    int r = chain_resize(d->replicas[i].chain, size);
    disk_wait_for_ever();
    return r;
}

static int resize_probe(disk *d, uint64_t asked, uint64_t old_size)
{
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(asked, i))
            continue;
        int r = resize_replica(d, i, old_size);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A replica that cannot be put back has another size than the disk: it is out. */
static void resize_undo(disk *d, disk_change *change, uint64_t old_size)
{
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i) || change->results[i] != 0)
            continue;
        change->results[i] = resize_replica(d, i, old_size);
        if (change->results[i] != 0)
            change->lost |= UINT64_C(1) << i;
    }
}

static bool everywhere(disk *d, uint64_t took)
{
    g_mutex_lock(&d->state_lock);
    bool enough = disk_quorum_everywhere(d, took, 0, IMAGE_SIZE_MAX);
    g_mutex_unlock(&d->state_lock);
    return enough;
}

/* Nobody has missed anything behind the end. */
static void forget_behind(disk *d, uint64_t size)
{
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++)
        rangeset_remove(&d->replicas[i].missed, size, UINT64_MAX - 1 - size);
    g_mutex_unlock(&d->state_lock);
}

/* What is remembered covers the larger size while replicas are changed, so that who does
 * not follow can be marked (W2). */
static int resize_locked(disk *d, uint64_t size)
{
    disk_change change;
    uint64_t old_size = atomic_load(&d->size), took = 0;
    int r = disk_change_begin(d, &change, "resize", 0, 0);
    if (r == 0 && size != old_size)
        r = resize_probe(d, change.asked, old_size);
    if (r == 0)
        r = disk_state_resize(d, MAX(size, old_size));
    if (r < 0 || size == old_size)
        return r;
    change.offset = MIN(size, old_size);
    change.length = MAX(size, old_size) - change.offset;

    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change.asked, i))
            continue;
        change.results[i] = resize_replica(d, i, size);
        took |= (uint64_t)(change.results[i] == 0) << i;
    }
    if (!everywhere(d, took))
        resize_undo(d, &change, old_size);
    else
        atomic_store(&d->size, size);
    change.event = REPLICA_EVENT_LOST;
    r = disk_change_finish(d, &change);
    forget_behind(d, atomic_load(&d->size));
    int forgotten = disk_state_resize(d, atomic_load(&d->size));
    return r < 0 ? r : forgotten;
}

int disk_resize(disk *d, uint64_t size)
{
    if (!d->writable)
        return -EROFS;
    if (size > IMAGE_SIZE_MAX)
        return -EFBIG;
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    int r = resize_locked(d, size);
    rangelock_release(d->range_lock, &held);
    return r;
}
