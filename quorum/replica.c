/*
 * replica.c: the states of a replica.
 *
 *              change-failed  flush-failed  outvoted
 *   in-sync    failed         failed        failed
 *   failed     failed         failed        failed
 *
 * in-sync: asked by reads, writes and flushes. A read that fails changes nothing: the
 * replica just does not vote on those sectors (R3).
 * failed: missed a change (W2), cannot be trusted to hold what it took (W4), or holds
 * one of two versions that could both win (W3). Asked for nothing until the disk is opened
 * again.
 *
 * Invariant: bit i of disk.in_sync is set exactly if replica i is in-sync. It changes
 * only here, under state_lock, and is read anywhere.
 */
#include "quorum/disk-internal.h"

static const char *const state_names[] = {
    [REPLICA_IN_SYNC] = "in-sync",
    [REPLICA_FAILED] = "failed",
};

static const replica_state transitions[][3] = {
    [REPLICA_IN_SYNC] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_FAILED,
        },
    [REPLICA_FAILED] =
        {
            [REPLICA_EVENT_CHANGE_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_FLUSH_FAILED] = REPLICA_FAILED,
            [REPLICA_EVENT_OUTVOTED] = REPLICA_FAILED,
        },
};

const char *replica_state_name(replica_state state)
{
    return state_names[state];
}

bool replica_transition(disk *d, unsigned i, replica_event event)
{
    replica_state from = d->replicas[i].state, to = transitions[from][event];
    if (from == to)
        return false;
    d->replicas[i].state = to;
    if (to == REPLICA_IN_SYNC)
        atomic_fetch_or(&d->in_sync, UINT64_C(1) << i);
    else
        atomic_fetch_and(&d->in_sync, ~(UINT64_C(1) << i));
    d->unrecorded |= UINT64_C(1) << i;
    return true;
}
