/*
 * replica.c: the states of a replica.
 *
 *              change-failed  outvoted  lost    flush-failed  gone    resync-begins  caught-up  resync-stops  returned  removed  added
 *   in-sync    stale          stale     failed  failed        hung    -              -          -             -         removed  -
 *   stale      -              -         failed  failed        hung    resyncing      -          -             -         removed  -
 *   resyncing  -              -         failed  failed        hung    -              in-sync    stale         -         removed  -
 *   hung       -              -         failed  failed        -       -              -          -             stale     removed  -
 *   failed     -              -         -       -             -       -              -          -             stale     removed  -
 *   removed    -              -         -       -             -       -              -          -             -         -        failed
 *
 * in-sync: asked by reads, writes and flushes. A read that fails changes nothing: the
 * replica just does not vote on those sectors (R3).
 * stale: missed changes in some ranges (W2, W3). It does not vote there and votes everywhere
 * else; it takes all writes, and its part in flushes. Who caught up in all of them is in sync.
 * resyncing: the same while somebody copies to it what it missed (resync.c).
 * hung: did not answer in time, or cannot be reached (R5). Asked for nothing until all that
 * it was asked has returned and it was opened anew (rejoin.c).
 * failed: cannot be trusted to hold what it took (W4), has another size, or could not be
 * opened. Asked for nothing until it was opened anew.
 * removed: taken out by the operator. Not asked, and not waited for.
 *
 * Invariants: bit i of disk.in_sync is set exactly if replica i is in-sync, bit i of
 * disk.partly exactly if it is stale or resyncing, bit i of disk.removed exactly if it is
 * removed. They change only here, under state_lock, and are read anywhere. What a replica
 * missed is in `missed`, under state_lock too; nobody in-sync has missed anything.
 */
#include "quorum/disk-internal.h"

static const char *const state_names[] = {
    [REPLICA_IN_SYNC] = "in-sync",     [REPLICA_STALE] = "stale",
    [REPLICA_RESYNCING] = "resyncing", [REPLICA_HUNG] = "hung",
    [REPLICA_FAILED] = "failed",       [REPLICA_REMOVED] = "removed",
};

#define TO(event, state) [REPLICA_EVENT_##event] = 1 + REPLICA_##state

/* 1 + the state after; 0: no change. */
static const uint8_t transitions[][REPLICA_EVENTS] = {
    [REPLICA_IN_SYNC] = {TO(CHANGE_FAILED, STALE), TO(OUTVOTED, STALE), TO(LOST, FAILED),
                         TO(FLUSH_FAILED, FAILED), TO(GONE, HUNG), TO(REMOVED, REMOVED)},
    [REPLICA_STALE] = {TO(LOST, FAILED), TO(FLUSH_FAILED, FAILED), TO(GONE, HUNG),
                       TO(RESYNC_BEGINS, RESYNCING), TO(REMOVED, REMOVED)},
    [REPLICA_RESYNCING] = {TO(LOST, FAILED), TO(FLUSH_FAILED, FAILED), TO(GONE, HUNG),
                           TO(CAUGHT_UP, IN_SYNC), TO(RESYNC_STOPS, STALE),
                           TO(REMOVED, REMOVED)},
    [REPLICA_HUNG] = {TO(LOST, FAILED), TO(FLUSH_FAILED, FAILED), TO(RETURNED, STALE),
                      TO(REMOVED, REMOVED)},
    [REPLICA_FAILED] = {TO(RETURNED, STALE), TO(REMOVED, REMOVED)},
    [REPLICA_REMOVED] = {TO(ADDED, FAILED)},
};

const char *replica_state_name(replica_state value)
{
    return state_names[value];
}

replica_state replica_state_after(replica_state from, replica_event event)
{
    uint8_t to = transitions[from][event];
    return to ? (replica_state)(to - 1) : from;
}

static void set_bit(atomic_uint_fast64_t *word, unsigned i, bool on)
{
    if (on)
        atomic_fetch_or(word, UINT64_C(1) << i);
    else
        atomic_fetch_and(word, ~(UINT64_C(1) << i));
}

/* On the way out of sync a replica is in neither word for a moment; on the way in it is in
 * both, so whoever looks at `partly` first does not miss it. */
bool replica_transition(disk *d, unsigned i, replica_event event)
{
    replica_state from = d->replicas[i].state, to = replica_state_after(from, event);
    if (from == to)
        return false;
    d->replicas[i].state = to;
    set_bit(&d->in_sync, i, to == REPLICA_IN_SYNC);
    set_bit(&d->partly, i, to == REPLICA_STALE || to == REPLICA_RESYNCING);
    set_bit(&d->removed, i, to == REPLICA_REMOVED);
    return true;
}

uint64_t disk_voter_run_locked(const disk *d, uint64_t offset, uint64_t end,
                               uint64_t *ret_end)
{
    uint64_t voters = atomic_load(&d->in_sync), partly = atomic_load(&d->partly);
    *ret_end = end;
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(partly, i) &&
            !rangeset_run(&d->replicas[i].missed, offset, *ret_end, ret_end))
            voters |= UINT64_C(1) << i;
    return voters;
}

uint64_t disk_voter_run(disk *d, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
    *ret_end = end;
    if (atomic_load_explicit(&d->partly, memory_order_acquire) == 0)
        return atomic_load_explicit(&d->in_sync, memory_order_acquire);
    g_mutex_lock(&d->state_lock);
    uint64_t voters = disk_voter_run_locked(d, offset, end, ret_end);
    g_mutex_unlock(&d->state_lock);
    return voters;
}

uint64_t disk_takers(disk *d)
{
    uint64_t partly = atomic_load(&d->partly);
    return partly | atomic_load(&d->in_sync);
}

/* A run without an end is as good as one that ends behind every disk. */
bool disk_quorum_everywhere(const disk *d, uint64_t set, uint64_t offset, uint64_t end)
{
    uint64_t run_end;
    do {
        uint64_t voters = disk_voter_run_locked(d, offset, end, &run_end);
        if (disk_set_size(voters & set) < d->threshold)
            return false;
        offset = run_end;
    } while (offset < end);
    return true;
}
