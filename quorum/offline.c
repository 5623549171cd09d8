/*
 * offline.c: see offline.h.
 *
 * What a stale replica missed is not copied as resync.c does it, but compared first: a replica
 * that is stale as a whole, because somebody touched its file, mostly holds the right bytes,
 * and what is overwritten has to be saved. A run in which the others have no majority stays
 * missed; the rest of its region does not wait for it in memory, but on record it does, as
 * only whole regions are.
 */
#include "quorum/offline.h"
#include "quorum/disk-internal.h"
#include <errno.h>
#include <string.h>

static bool is_cancelled(const volatile int *cancel)
{
    return cancel && *cancel;
}

/* ---- Reconciling ------------------------------------------------------------------------- */

uint64_t disk_offline_unreconciled(disk *d)
{
    return d->store ? state_unreconciled_bytes(d->store) : 0;
}

bool disk_offline_is_unreconciled(disk *d, uint64_t offset, uint64_t length)
{
    return d->store && state_is_unreconciled(d->store, offset, length);
}

int disk_offline_reconcile(disk *d, const volatile int *cancel)
{
    uint64_t offset;
    int r = 0;
    while (d->session && r == 0 && disk_next_unreconciled(d, 0, &offset))
        r = is_cancelled(cancel) ? -EINTR : disk_reconcile_region(d, offset);
    return r;
}

/* ---- Catching up ------------------------------------------------------------------------- */

bool disk_offline_is_stale(disk *d, unsigned i, uint64_t offset, uint64_t length)
{
    return d->store && state_is_stale(d->store, i, offset, length);
}

/* A stretch of the reading that has winners. */
typedef int give_fn(disk *d, const disk_reading *reading, unsigned i, size_t at,
                    size_t end, const uint8_t *right);

/* As disk_save_differing, but for what it tells of the replica. */
static int give(disk *d, const disk_reading *reading, unsigned i, size_t at, size_t end,
                const uint8_t *right)
{
    int r = disk_write_differing(d, reading, i, at, end, right);
    if (r < 0)
        return r;
    g_mutex_lock(&d->state_lock);
    rangeset_remove(&d->replicas[i].missed, reading->offset + at, end - at);
    rangeset_add(&d->replicas[i].copied, reading->offset + at, end - at);
    g_mutex_unlock(&d->state_lock);
    return 0;
}

static int for_won(disk *d, const disk_reading *reading, unsigned i,
                   const disk_verdict *verdict, const uint8_t *right, give_fn *fn)
{
    size_t at = 0;
    int r = 0;
    for (unsigned k = 0; k <= verdict->ranges->len && r == 0; k++) {
        const vote_range *range = k < verdict->ranges->len
                                      ? &g_array_index(verdict->ranges, vote_range, k)
                                      : NULL;
        if (range && range->winners)
            continue;
        size_t end = range ? range->offset : reading->length;
        if (at < end)
            r = fn(d, reading, i, at, end, right);
        at = range ? range->offset + range->length : end;
    }
    return r;
}

/* What the reading's winners hold, to all that are behind. */
static int give_all(disk *d, const disk_reading *reading, uint64_t behind,
                    const disk_verdict *verdict, const uint8_t *right)
{
    int r = 0;
    for (unsigned i = 0; i < d->n && r == 0; i++)
        if (disk_has_bit(behind, i))
            r = for_won(d, reading, i, verdict, right, disk_save_differing);
    if (r == 0)
        r = disk_save_commit(d);
    for (unsigned i = 0; i < d->n && r == 0; i++)
        if (disk_has_bit(behind, i))
            r = for_won(d, reading, i, verdict, right, give);
    return r;
}

static void set_abstaining(disk_reading *reading, uint64_t set, bool abstains)
{
    for (unsigned i = 0; i < VOTE_REPLICAS_MAX; i++)
        if (disk_has_bit(set, i))
            reading->ballots[i].abstains = abstains;
}

/* Where the same replicas vote as on its first byte. */
static int fill_piece(disk *d, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
    disk_reading reading;
    disk_verdict verdict;
    uint64_t voters = disk_voter_run(d, offset, end, ret_end);
    uint64_t behind = disk_takers(d) & ~voters;
    if (behind == 0)
        return 0;
    disk_thread *thread = disk_thread_get(d->n);
    uint8_t *right = disk_thread_joined(thread);
    disk_gather(d, thread, voters | behind, offset, (size_t)(*ret_end - offset),
                &reading);
    disk_recover(d, &reading);
    set_abstaining(&reading, behind, true);
    disk_vote(d, &reading, right, &verdict);
    set_abstaining(&reading, behind, false);
    disk_lose_all(d, &reading, "repair");
    int r = reading.gone ? -ETIMEDOUT : give_all(d, &reading, behind, &verdict, right);
    disk_verdict_clear(&verdict);
    disk_reading_clear(&reading);
    return r;
}

static int fill_range(disk *d, uint64_t offset, uint64_t end)
{
    rangelock_held held;
    disk_lock_sectors(d, &held, offset, end - offset, RANGELOCK_EXCLUSIVE);
    int r = 0;
    for (uint64_t next; offset < end && r == 0; offset = next)
        r = fill_piece(d, offset, end, &next);
    rangelock_release(d->range_lock, &held);
    return r;
}

static bool has_missed(disk *d, unsigned i, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, run_end;
    g_mutex_lock(&d->state_lock);
    bool missed = rangeset_run(&d->replicas[i].missed, offset, end, &run_end);
    g_mutex_unlock(&d->state_lock);
    return missed || run_end < end;
}

/* The regions on record of which nothing is missed any more. */
static void note_copied(disk *d, unsigned i)
{
    uint64_t region = state_stale_region(d->store), from = 0, offset, length;
    while (state_next_stale(d->store, i, from, &offset, &length)) {
        from = offset + length;
        for (uint64_t at = offset & ~(region - 1); at < from; at += region) {
            uint64_t part = MIN(region, disk_size(d) - at);
            if (!has_missed(d, i, at, part))
                state_stale_copied(d->store, i, at, part);
        }
    }
}

static void move(disk *d, unsigned i, replica_event event, int error)
{
    g_mutex_lock(&d->state_lock);
    replica_state from = d->replicas[i].state;
    bool moved = replica_transition(d, i, event);
    replica_state to = d->replicas[i].state;
    g_mutex_unlock(&d->state_lock);
    if (moved)
        disk_journal_state(d, "repair", i, error, from, to);
}

/* What it holds is flushed, then recorded; one that failed to flush is out by then (W4). */
static int flush_replica(disk *d, unsigned i)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    int r = disk_flush_locked(d);
    if (r == 0 && !disk_has_bit(atomic_load(&d->partly), i))
        r = -EIO;
    if (r == 0 && !has_missed(d, i, 0, disk_size(d)))
        r = disk_mark_replica(d, i);
    rangelock_release(d->range_lock, &held);
    return r;
}

static int finish_replica(disk *d, unsigned i)
{
    note_copied(d, i);
    int r = flush_replica(d, i);
    if (r < 0)
        return r;
    g_mutex_lock(&d->state_lock);
    rangeset_clear(&d->replicas[i].copied);
    g_mutex_unlock(&d->state_lock);
    r = state_stale_clear(d->store, i);
    if (r < 0 || has_missed(d, i, 0, disk_size(d)))
        return r;
    move(d, i, REPLICA_EVENT_RESYNC_BEGINS, 0);
    move(d, i, REPLICA_EVENT_CAUGHT_UP, 0);
    return disk_state_record(d, i);
}

/* Before the first change. */
static int begin_changes(disk *d)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    int r = disk_mark(d);
    rangelock_release(d->range_lock, &held);
    return r;
}

int disk_offline_catch_up(disk *d, const volatile int *cancel,
                          void (*progress)(void *opaque, uint64_t offset), void *opaque)
{
    uint64_t behind = atomic_load(&d->partly), size = disk_size(d);
    if (!d->session || behind == 0)
        return 0;
    if (2 * d->threshold <= d->n) /* O4 */
        return -EPERM;
    int result = begin_changes(d);
    for (uint64_t at = 0; at < size && result == 0; at += DISK_REQUEST_MAX) {
        result = is_cancelled(cancel)
                     ? -EINTR
                     : fill_range(d, at, MIN(at + DISK_REQUEST_MAX, size));
        if (progress)
            progress(opaque, at);
    }
    for (unsigned i = 0; i < d->n; i++) {
        int r = disk_has_bit(behind, i) ? finish_replica(d, i) : 0;
        result = result ? result : r;
    }
    return result;
}

/* ---- One replica is right ---------------------------------------------------------------- */

void disk_offline_trust(disk *d)
{
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        rangeset_clear(&d->replicas[i].missed);
        replica_transition(d, i, REPLICA_EVENT_RESYNC_BEGINS);
        replica_transition(d, i, REPLICA_EVENT_CAUGHT_UP);
    }
    g_mutex_unlock(&d->state_lock);
    if (d->store)
        state_reconciled(d->store, 0, disk_size(d));
}

static int record_current(disk *d, unsigned i)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    int r = disk_mark_replica(d, i);
    rangelock_release(d->range_lock, &held);
    if (r < 0)
        return r;
    state_stale_copied(d->store, i, 0, disk_size(d));
    r = state_stale_clear(d->store, i);
    return r < 0 ? r : disk_state_record(d, i);
}

int disk_offline_settle(disk *d, bool equal)
{
    if (!d->session)
        return 0;
    int r = disk_flush(d);
    if (r == 0 && atomic_load(&d->in_sync) != disk_all_replicas(d))
        r = -EIO;
    if (!equal || r < 0) {
        state_unreconcile(d->store);
        return r;
    }
    for (unsigned i = 0; i < d->n && r == 0; i++)
        r = record_current(d, i);
    return r;
}

/* ---- Putting back ------------------------------------------------------------------------ */

static int make_stale(disk *d, unsigned i, uint64_t offset, size_t length)
{
    int r = d->session ? state_mark_stale(d->store, i, offset, length) : 0;
    if (r < 0)
        return r;
    g_mutex_lock(&d->state_lock);
    rangeset_add(&d->replicas[i].missed, offset, length);
    g_mutex_unlock(&d->state_lock);
    move(d, i, REPLICA_EVENT_CHANGE_FAILED, ESTALE);
    return disk_state_record(d, i);
}

int disk_offline_put_back(disk *d, unsigned i, uint64_t offset, const void *data,
                          size_t length, bool stale)
{
    chain *c = d->replicas[i].chain;
    rangelock_held held;
    disk_lock_sectors(d, &held, offset, length, RANGELOCK_EXCLUSIVE);
    int r = disk_mark(d);
    if (r == 0 && stale)
        r = make_stale(d, i, offset, length);
    disk_wait_for(d, i);
    if (r == 0)
        r = chain_write(c, data, offset, length);
    uint8_t *back = disk_thread_joined(disk_thread_get(d->n));
    if (r == 0)
        r = chain_read(c, back, offset, length);
    disk_wait_for_ever();
    if (r == 0 && memcmp(back, data, length) != 0)
        r = -EIO;
    rangelock_release(d->range_lock, &held);
    return r;
}
