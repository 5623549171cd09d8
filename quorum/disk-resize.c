/*
 * disk-resize.c: a new size for all replicas, or for none.
 *
 * Under a lock of the whole disk. A resize to the present size changes nothing and tells
 * whether a replica can do it at all, so that no replica is shrunk before another says
 * -ENOTSUP. If too few could be resized, the others are put back. Shrinking loses what
 * lay behind the new end, and putting back gives zeroes there: as after any change that
 * failed as a whole (W3) old and new bytes stand side by side then, and reads vote.
 *
 * A crash may leave replicas of both sizes. The resize is on record before the first of them
 * is changed, and until all have been flushed; the next open for writing finishes it if some
 * replica has the new size, and else forgets it. Nobody was told of it yet, so either is right.
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

/* The replicas have one of these sizes; the new one is recorded as under way. That is
 * forgotten only when each replica has its size on stable storage. */
static int resize_replicas(disk *d, disk_change *change, uint64_t from, uint64_t to)
{
    uint64_t took = 0;
    change->offset = MIN(from, to);
    change->length = MAX(from, to) - change->offset;
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i))
            continue;
        change->results[i] = resize_replica(d, i, to);
        took |= (uint64_t)(change->results[i] == 0) << i;
    }
    bool enough = everywhere(d, took);
    if (!enough)
        resize_undo(d, change, from);
    uint64_t size = enough ? to : from;
    atomic_store(&d->size, size);
    change->event = REPLICA_EVENT_LOST;
    int r = disk_change_finish(d, change);
    forget_behind(d, size);
    int flushed = d->session ? disk_flush_locked(d) : 0;
    int kept = disk_state_resize(d, size, flushed ? from : 0, flushed ? to : 0);
    r = r < 0 ? r : flushed;
    return r < 0 ? r : kept;
}

/* What is remembered covers the larger size while replicas are changed, so that who does
 * not follow can be marked (W2). */
static int resize_locked(disk *d, uint64_t size)
{
    disk_change change;
    uint64_t old_size = atomic_load(&d->size);
    int r = disk_change_begin(d, &change, "resize", 0, 0);
    if (r == 0 && size != old_size)
        r = resize_probe(d, change.asked, old_size);
    if (r == 0 && size != old_size)
        r = disk_state_resize(d, MAX(size, old_size), old_size, size);
    return r < 0 || size == old_size ? r : resize_replicas(d, &change, old_size, size);
}

static bool is_begun(disk *d, uint64_t to)
{
    bool begun = false;
    for (unsigned i = 0; i < d->n; i++)
        begun |= d->replicas[i].chain && chain_size(d->replicas[i].chain) == to;
    return begun;
}

bool disk_resize_resume(disk *d, GError **error)
{
    uint64_t from, to;
    disk_change change;
    if (!d->session || !state_get_resize(d->store, &from, &to))
        return true;
    bool begun = is_begun(d, to);
    int r = disk_change_begin(d, &change, "resize", 0, 0);
    if (r == 0)
        r = begun ? resize_replicas(d, &change, from, to)
                  : resize_replicas(d, &change, to, from);
    if (r == 0 || !state_get_resize(d->store, &from, &to)) /* done, or undone */
        return true;
    g_set_error(error, DISK_ERROR, DISK_ERROR_SIZES,
                "a resize from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT
                " bytes was cut off, and can neither be finished nor undone: %s",
                from, to, g_strerror(-r));
    return false;
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
