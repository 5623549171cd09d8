/*
 * disk-flush.c: a flush of all replicas (W4).
 *
 * It takes as many rounds as the replica with the most steps; in each, all that are not done
 * yet share a submission.
 *
 * One flush runs at a time. Those that are asked for meanwhile wait for the next one, share it,
 * and are all told its result: that must be so, because the kernel tells of
 * a lost write only once for each descriptor. Of two flushes that run side by side one would
 * fail and the other one succeed, without what both had to cover. Whoever begins after a
 * failure finds the replica out.
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
        disk_wait_for(d, i);
        int r = chain_flush_step(d->replicas[i].chain, &flushes[i], i, list);
        if (r > 0)
            more |= UINT64_C(1) << i;
        else
            change->results[i] = r;
        flushes[i].result = 0;
    }
    disk_wait_for_ever();
    disk_run_list(d, list);
    for (size_t k = 0; k < list->count; k++) {
        const io_op *op = &list->ops[k];
        if (op->result != 0 && flushes[op->owner].result == 0)
            flushes[op->owner].result = op->result;
    }
    return more;
}

static int flush_all(disk *d)
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

/* ---- Taking turns ---------------------------------------------------------------------- */

/* Longer than that nobody waits for others to come. */
#define GATHER_MAX_US 1000

typedef enum flusher_state { FLUSH_WAITS, FLUSH_LEADS, FLUSH_DONE } flusher_state;

/* One that waits for a flush that begins after it was asked for. */
struct disk_flusher {
    disk_flusher *next;
    GCond wake;
    flusher_state state;
    int result;
};

static void flusher_wake(disk_flusher *flusher, flusher_state next)
{
    flusher->state = next;
    g_cond_signal(&flusher->wake);
}

/* As many as came the last time will soon be here again, if they do nothing but write and
 * flush: to flush for each one alone would take longer than to wait for them. The turns'
 * lock is held. */
static void gather(disk_turns *turns)
{
    gint64 most = MIN(turns->took_us / 2, GATHER_MAX_US);
    gint64 until = g_get_monotonic_time() + most;
    while (turns->n_waiting < turns->expected &&
           g_cond_wait_until(&turns->gathered, &turns->lock, until))
        ;
}

/* For all that wait; then the turn goes to one of those that have come meanwhile. The turns'
 * lock is held, and given up meanwhile. */
static int lead_flush(disk *d, const disk_flusher *self)
{
    disk_turns *turns = &d->flush_turns;
    gather(turns);
    disk_flusher *all = g_steal_pointer(&turns->waiting);
    unsigned n = turns->n_waiting;
    turns->n_waiting = 0;
    g_mutex_unlock(&turns->lock);
    gint64 start = g_get_monotonic_time();
    int r = flush_all(d);
    g_mutex_lock(&turns->lock);
    turns->took_us = g_get_monotonic_time() - start;
    for (disk_flusher *flusher = all, *next; flusher; flusher = next) {
        next = flusher->next; /* once it is awake and the lock is free it is gone */
        flusher->result = r;
        if (flusher != self)
            flusher_wake(flusher, FLUSH_DONE);
    }
    turns->expected = n + turns->n_waiting;
    turns->taken = turns->waiting != NULL;
    if (turns->taken)
        flusher_wake(turns->waiting, FLUSH_LEADS);
    return r;
}

int disk_flush_locked(disk *d)
{
    disk_turns *turns = &d->flush_turns;
    disk_flusher self = {.state = FLUSH_WAITS};
    g_cond_init(&self.wake);
    g_mutex_lock(&turns->lock);
    self.next = turns->waiting;
    turns->waiting = &self;
    turns->n_waiting++;
    g_cond_signal(&turns->gathered);
    while (turns->taken && self.state == FLUSH_WAITS)
        g_cond_wait(&self.wake, &turns->lock);
    bool done = self.state == FLUSH_DONE;
    turns->taken |= !done;
    int r = done ? self.result : lead_flush(d, &self);
    g_mutex_unlock(&turns->lock);
    g_cond_clear(&self.wake);
    return r;
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
