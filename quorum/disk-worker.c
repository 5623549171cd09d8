/*
 * disk-worker.c: the thread that does for a disk what nobody waits for: reconciling the
 * regions that the last session left dirty (W6), bringing stale replicas up to date,
 * repairing what reads found differing, and clearing intent bits when nothing was written
 * for a while (W5).
 *
 * It yields to the guest: while requests come in, it rests after each piece for as long as
 * the piece took.
 */
#include "quorum/disk-internal.h"

#define TIDY_US     (5 * G_USEC_PER_SEC)
#define REST_MAX_US (G_USEC_PER_SEC / 10)

struct disk_worker {
    GThread *thread;
    GMutex lock;
    GCond wake;
    bool ends, woken; /* under lock */
};

/* `idle`: until there is something to do, at most. */
static bool rest(disk_worker *worker, gint64 us, bool idle)
{
    gint64 until = g_get_monotonic_time() + us;
    g_mutex_lock(&worker->lock);
    while (!worker->ends && !(idle && worker->woken) && us > 0 &&
           g_cond_wait_until(&worker->wake, &worker->lock, until))
        ;
    worker->woken = false;
    bool ends = worker->ends;
    g_mutex_unlock(&worker->lock);
    return !ends;
}

void disk_worker_wake(disk *d)
{
    disk_worker *worker = d->worker;
    if (!worker)
        return;
    g_mutex_lock(&worker->lock);
    worker->woken = true;
    g_cond_broadcast(&worker->wake);
    g_mutex_unlock(&worker->lock);
}

/* One that cannot be made equal now does not keep the worker from those behind it. */
static bool reconcile_some(disk *d)
{
    uint64_t offset, from = 0;
    while (disk_next_unreconciled(d, from, &offset)) {
        if (disk_reconcile_region(d, offset) == 0)
            return true;
        from = (offset | (state_intent_region(d->store) - 1)) + 1;
    }
    return false;
}

bool disk_worker_step(disk *d)
{
    return (d->session && reconcile_some(d)) || disk_repair_step(d) ||
           disk_resync_step(d);
}

static void *work(void *opaque)
{
    disk *d = opaque;
    uint64_t seen = disk_requests(d);
    gint64 pause = 0, tidied = -TIDY_US;
    bool busy = true;
    while (rest(d->worker, pause, !busy)) {
        gint64 before = g_get_monotonic_time();
        busy = disk_worker_step(d);
        if (!busy && before - tidied >= TIDY_US) {
            disk_state_tidy(d);
            tidied = before;
        }
        bool guest = disk_requests(d) != seen;
        seen = disk_requests(d);
        gint64 took = g_get_monotonic_time() - before;
        pause = !busy ? tidied + TIDY_US - before : guest ? MIN(took, REST_MAX_US) : 0;
    }
    return NULL;
}

void disk_worker_start(disk *d)
{
    if (!d->session && !d->on_divergence_repair)
        return;
    disk_worker *worker = g_new0(disk_worker, 1);
    g_mutex_init(&worker->lock);
    g_cond_init(&worker->wake);
    d->worker = worker;
    worker->thread = g_thread_new("worker", work, d);
}

void disk_worker_stop(disk *d)
{
    disk_worker *worker = d->worker;
    if (!worker || !worker->thread)
        return;
    g_mutex_lock(&worker->lock);
    worker->ends = true;
    g_cond_broadcast(&worker->wake);
    g_mutex_unlock(&worker->lock);
    g_thread_join(g_steal_pointer(&worker->thread));
}

void disk_worker_free(disk *d)
{
    disk_worker *worker = g_steal_pointer(&d->worker);
    if (!worker)
        return;
    g_cond_clear(&worker->wake);
    g_mutex_clear(&worker->lock);
    g_free(worker);
}
