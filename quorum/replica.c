/*
 * replica.c: the states of a replica.
 *
 *              change-failed  outvoted   lost    flush-failed  resync-begins  caught-up  resync-stops
 *   in-sync    stale          stale      failed  failed        -              -          -
 *   stale      -              -          failed  failed        resyncing      -          -
 *   resyncing  -              -          failed  failed        -              in-sync    stale
 *   failed     -              -          -       -             -              -          -
 *
 * in-sync: asked by reads, writes and flushes. A read that fails changes nothing: the
 * replica just does not vote on those sectors (R3).
 * stale: missed changes in some ranges (W2, W3). It does not vote there and votes everywhere
 * else; it takes all writes, and its part in flushes.
 * resyncing: the same while somebody copies to it what it missed (resync.c).
 * failed: cannot be trusted to hold what it took (W4), or has another size. Asked for
 * nothing until the disk is opened again.
 *
 * Invariants: bit i of disk.in_sync is set exactly if replica i is in-sync, bit i of
 * disk.partly exactly if it is stale or resyncing. They change only here, under state_lock,
 * and are read anywhere. What a replica missed is in `missed`, under state_lock too; nobody
 * in-sync has missed anything.
 */
#include "quorum/disk-internal.h"

static const char *const state_names[] = {
    [REPLICA_IN_SYNC] = "in-sync",
    [REPLICA_STALE] = "stale",
    [REPLICA_RESYNCING] = "resyncing",
    [REPLICA_FAILED] = "failed",
};

static const replica_state transitions[][REPLICA_EVENTS] = {
    [REPLICA_IN_SYNC] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_STALE,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_STALE,
            [REPLICA_EVENT_LOST] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_RESYNC_BEGINS] = REPLICA_IN_SYNC,
            [REPLICA_EVENT_CAUGHT_UP] = REPLICA_IN_SYNC,
            [REPLICA_EVENT_RESYNC_STOPS] = REPLICA_IN_SYNC,
        },
    [REPLICA_STALE] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_STALE,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_STALE,
            [REPLICA_EVENT_LOST] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_RESYNC_BEGINS] = REPLICA_RESYNCING,
            [REPLICA_EVENT_CAUGHT_UP] = REPLICA_STALE,
            [REPLICA_EVENT_RESYNC_STOPS] = REPLICA_STALE,
        },
    [REPLICA_RESYNCING] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_RESYNCING,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_RESYNCING,
            [REPLICA_EVENT_LOST] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_RESYNC_BEGINS] = REPLICA_RESYNCING,
            [REPLICA_EVENT_CAUGHT_UP] = REPLICA_IN_SYNC,
            [REPLICA_EVENT_RESYNC_STOPS] = REPLICA_STALE,
        },
    [REPLICA_FAILED] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_FAILED,
            [REPLICA_EVENT_LOST] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_RESYNC_BEGINS] = REPLICA_FAILED,
            [REPLICA_EVENT_CAUGHT_UP] = REPLICA_FAILED,
            [REPLICA_EVENT_RESYNC_STOPS] = REPLICA_FAILED,
        },
};

const char *replica_state_name(replica_state value)
{
    return state_names[value];
}

replica_state replica_state_after(replica_state from, replica_event event)
{
    return transitions[from][event];
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
