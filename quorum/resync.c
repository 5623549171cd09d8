/*
 * resync.c: gives a stale replica what it missed (W7), a region of the state's stale map at a
 * time, under an exclusive lock of that region: never over a newer write.
 *
 * What is copied is what a read would return, so it needs voters enough without the replica;
 * and a real majority of all replicas (O4): with a threshold of half or less the voters could
 * be the wrong half. It is read back and compared. The replica votes on a run again as soon
 * as that is equal; on stable storage the region stays stale until the replica was flushed.
 *
 * Regions are copied in their order, from the first one that it missed something of to the last;
 * what the others cannot tell now (too few of them agree, or can be read) is left out, and keeps
 * nothing behind it from being copied.
 *
 * States: stale -> resyncing when a copy begins, -> in-sync when nothing is missed any more
 * and all is flushed, -> stale if a copy fails; it is tried again after RETRY_US,
 * or when somebody asks for it (disk_resync).
 */
#include "quorum/disk-internal.h"
#include <errno.h>
#include <string.h>

#define RETRY_US (10 * G_USEC_PER_SEC)

static int copy_run(disk *d, unsigned i, const uint8_t *data, uint64_t offset,
                    size_t length)
{
    chain *target = d->replicas[i].chain;
    bool zero = data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
    disk_wait_for(d, i);
    int r = zero ? chain_discard(target, offset, length)
                 : chain_write(target, data, offset, length);
    uint8_t *back = disk_thread_joined(disk_thread_get(d->n));
    if (r == 0)
        r = chain_read(target, back, offset, length);
    disk_wait_for_ever();
    if (r == 0 && memcmp(back, data, length) != 0)
        r = -EIO;
    return r;
}

/* It votes there again. */
static void note_copied(disk *d, unsigned i, uint64_t offset, uint64_t length)
{
    g_mutex_lock(&d->state_lock);
    rangeset_remove(&d->replicas[i].missed, offset, length);
    rangeset_add(&d->replicas[i].copied, offset, length);
    g_mutex_unlock(&d->state_lock);
}

/* The runs of a region that it missed; all of the region is locked. *ret_left_out: why the
 * others could not tell all of it. */
static int copy_missed(disk *d, unsigned i, uint64_t offset, uint64_t end,
                       int *ret_left_out)
{
    int r = 0;
    const uint8_t *data;
    for (uint64_t at = offset, next; at < end && r == 0; at = next) {
        uint64_t limit = MIN(end, at + DISK_REQUEST_MAX);
        uint64_t voters = disk_voter_run(d, at, limit, &next);
        if (disk_has_bit(voters, i))
            continue;
        int unread = disk_read_run(d, voters, at, (size_t)(next - at), &data);
        if (unread < 0) {
            *ret_left_out = unread;
            continue;
        }
        r = copy_run(d, i, data, at, (size_t)(next - at));
        if (r == 0)
            note_copied(d, i, at, next - at);
    }
    return r;
}

/* It may be out since, and its chain gone; who asks under a range lock knows. */
static bool takes_part(disk *d, unsigned i)
{
    return disk_has_bit(atomic_load(&d->partly), i);
}

static int copy_region(disk *d, unsigned i, uint64_t offset, uint64_t length)
{
    int left_out = 0;
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, offset, length, RANGELOCK_EXCLUSIVE);
    uint64_t end = MIN(offset + length, disk_size(d));
    int r = takes_part(d, i) ? copy_missed(d, i, offset, end, &left_out) : -ESTALE;
    if (left_out < 0)
        d->replicas[i].resync_left_out = left_out;
    if (r == 0 && left_out == 0 && end > offset)
        state_stale_copied(d->store, i, offset, end - offset);
    rangelock_release(d->range_lock, &held);
    return r;
}

static bool move(disk *d, unsigned i, replica_event event, int error)
{
    disk_replica *replica = &d->replicas[i];
    g_mutex_lock(&d->state_lock);
    replica_state from = replica->state;
    bool may = event != REPLICA_EVENT_CAUGHT_UP || rangeset_count(&replica->missed) == 0;
    bool moved = may && replica_transition(d, i, event);
    replica_state to = replica->state;
    g_mutex_unlock(&d->state_lock);
    if (moved)
        disk_journal_state(d, "resync", i, error, from, to);
    return moved;
}

/* Whether nothing is missed. Then that goes for each region that is recorded as stale, also for
 * one of which a resize cut off what was missed. Who misses something later marks it after
 * this, which counts. */
static bool has_all(disk *d, unsigned i)
{
    g_mutex_lock(&d->state_lock);
    bool all = rangeset_count(&d->replicas[i].missed) == 0;
    if (all)
        state_stale_copied(d->store, i, 0, disk_size(d));
    g_mutex_unlock(&d->state_lock);
    return all;
}

/* Nothing is missed: on stable storage that is true after a flush, of all replicas, so that
 * no other flush misses what this one hears. One that fails is not tried again, or it would
 * succeed without what it lost (W4). */
static int finish(disk *d, unsigned i)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    bool all = has_all(d, i);
    int r = all ? disk_flush_locked(d) : 0;
    if (r == 0 && !takes_part(d, i))
        r = -EIO;
    if (r == 0 && all)
        r = disk_mark_replica(d, i);
    rangelock_release(d->range_lock, &held);
    if (r < 0 || !all)
        return r;
    g_mutex_lock(&d->state_lock);
    rangeset_clear(&d->replicas[i].copied);
    g_mutex_unlock(&d->state_lock);
    r = state_stale_clear(d->store, i);
    if (r == 0 && move(d, i, REPLICA_EVENT_CAUGHT_UP, 0))
        r = disk_state_record(d, i);
    return r;
}

/* The first region, from `from` on, that it missed something of. */
static bool next_region(disk *d, unsigned i, uint64_t from, uint64_t *ret_offset)
{
    bool found = false;
    rangelock_held held;
    disk_lock_size(d, &held);
    uint64_t region = state_stale_region(d->store);
    rangelock_release(d->range_lock, &held);
    g_mutex_lock(&d->state_lock);
    const rangeset *missed = &d->replicas[i].missed;
    for (unsigned k = 0; k < rangeset_count(missed) && !found; k++) {
        rangeset_range range = rangeset_get(missed, k);
        found = range.end > from;
        *ret_offset = MAX(range.start, from) & ~(region - 1);
    }
    g_mutex_unlock(&d->state_lock);
    return found;
}

static bool wants_resync(const disk *d, unsigned i)
{
    const disk_replica *replica = &d->replicas[i];
    return disk_has_bit(atomic_load(&d->partly), i) &&
           g_get_monotonic_time() >= replica->resync_after_us;
}

/* The next region; behind the last one, again from the first, unless something was left out.
 * *ret_others: what is returned is not the replica's fault. */
static int copy_next(disk *d, unsigned i, bool *ret_others)
{
    disk_replica *replica = &d->replicas[i];
    uint64_t offset, region = state_stale_region(d->store);
    bool found = next_region(d, i, replica->resync_from, &offset);
    *ret_others = !found && replica->resync_left_out != 0;
    if (*ret_others)
        return replica->resync_left_out;
    if (!found && !next_region(d, i, 0, &offset))
        return finish(d, i);
    replica->resync_from = offset + region;
    return copy_region(d, i, offset, region);
}

static void resync_some(disk *d, unsigned i)
{
    disk_replica *replica = &d->replicas[i];
    bool others = false;
    rangelock_held held;
    move(d, i, REPLICA_EVENT_RESYNC_BEGINS, 0);
    disk_lock_size(d, &held);
    int r = disk_mark(d);
    rangelock_release(d->range_lock, &held);
    if (r == 0)
        r = copy_next(d, i, &others);
    if (r == 0)
        return;
    replica->resync_from = 0;
    replica->resync_left_out = 0;
    if (!others && disk_is_gone(r)) {
        disk_lock_size(d, &held);
        disk_lose(d, i, "resync", r);
        rangelock_release(d->range_lock, &held);
        return;
    }
    atomic_store(&d->resync_error, r);
    replica->resync_after_us = g_get_monotonic_time() + RETRY_US;
    move(d, i, REPLICA_EVENT_RESYNC_STOPS, r);
}

bool disk_resync_step(disk *d)
{
    if (!d->session || 2 * d->threshold <= d->n)
        return false;
    for (unsigned i = 0; i < d->n; i++) {
        if (!wants_resync(d, i))
            continue;
        resync_some(d, i);
        return true;
    }
    return false;
}

int disk_resync(disk *d)
{
    if (!d->session)
        return -EROFS;
    if (2 * d->threshold <= d->n)
        return -EPERM;
    atomic_store(&d->resync_error, 0);
    for (unsigned i = 0; i < d->n; i++)
        atomic_store(&d->replicas[i].resync_after_us, 0);
    disk_rejoin_hurry(d);
    disk_worker_wake(d);
    return 0;
}

/* One whose time has come counts as being filled: between two attempts at two replicas, too,
 * so that who waits for the end does not see one too early. */
void disk_get_resync_status(disk *d, disk_resync_status *ret_status)
{
    bool possible = d->session && 2 * d->threshold > d->n;
    *ret_status = (disk_resync_status){.error = atomic_load(&d->resync_error),
                                       .running = disk_rejoin_hurries(d)};
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(atomic_load(&d->partly), i))
            continue;
        ret_status->stale = true;
        ret_status->missed += rangeset_bytes(&d->replicas[i].missed);
        ret_status->running |=
            possible && (d->replicas[i].state == REPLICA_RESYNCING || wants_resync(d, i));
    }
    d->resync_peak = ret_status->stale ? MAX(d->resync_peak, ret_status->missed) : 0;
    ret_status->length = d->resync_peak;
    g_mutex_unlock(&d->state_lock);
}
