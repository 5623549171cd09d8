/*
 * disk-close.c: a disk is closed, whatever its replicas do.
 *
 * Who hangs is not waited for without end (R5): closing a file may take as long as it hangs,
 * so that is done by a thread of its own, and what has not come back by then is left to the
 * end of the process.
 */
#include "quorum/disk-internal.h"
#include "quorum/scrub.h"

/* How long closing a replica that hung is waited for. */
#define CLOSE_US (2 * G_USEC_PER_SEC)

/* What hangs stays as it is until the process ends; reachable, so that nobody takes it for lost. */
static void leave_behind(void *hanging)
{
    static GMutex lock;
    static GSList *left;
    g_mutex_lock(&lock);
    left = g_slist_prepend(left, hanging);
    g_mutex_unlock(&lock);
}

typedef struct closing {
    chain *chain;
    identity_source *identity;
    GMutex lock;
    GCond done;
    bool closed; /* under lock */
} closing;

static void *close_apart(void *opaque)
{
    closing *c = opaque;
    chain_close(c->chain);
    identity_source_close(c->identity);
    g_mutex_lock(&c->lock);
    c->closed = true;
    g_cond_signal(&c->done);
    g_mutex_unlock(&c->lock);
    return NULL;
}

/* To close a file may take as long as it hangs; so long nobody waits (R5). */
void disk_close_hung(chain *hung, identity_source *source)
{
    closing *c = g_new0(closing, 1);
    gint64 until = g_get_monotonic_time() + CLOSE_US;
    c->chain = hung;
    c->identity = source;
    GThread *thread = g_thread_new("close", close_apart, c);
    g_mutex_lock(&c->lock);
    while (!c->closed && g_cond_wait_until(&c->done, &c->lock, until))
        ;
    bool closed = c->closed;
    g_mutex_unlock(&c->lock);
    if (closed) {
        g_thread_join(thread);
        g_free(c);
    } else {
        g_thread_unref(thread);
        leave_behind(c);
    }
}

/* What identifies those that are out is not looked at any more (disk_state_end). */
static void close_chains(disk *d)
{
    for (unsigned i = 0; i < d->n; i++) {
        chain *c = disk_set_chain(d, i, NULL);
        replica_state last = d->replicas[i].state;
        bool out =
            last == REPLICA_HUNG || last == REPLICA_FAILED || last == REPLICA_REMOVED;
        if (out && (c || d->replicas[i].identity))
            disk_close_hung(c, g_steal_pointer(&d->replicas[i].identity));
        else
            chain_close(c);
    }
}

void disk_free(disk *d, bool flushed)
{
    bool marked = flushed && disk_mark_end(d);
    close_chains(d);
    disk_state_close(d, marked);
    disk_worker_free(d);
    for (unsigned i = 0; i < d->n; i++) {
        disk_replica *replica = &d->replicas[i];
        rangeset_clear(&replica->differing);
        rangeset_clear(&replica->missed);
        rangeset_clear(&replica->copied);
        replica_options_free(replica->options);
        g_free(replica->name);
    }
    g_free(d->replicas);
    path_policy_free(d->policy);
    rangelock_free(d->range_lock);
    scrub_free(d->scrub);
    rangeset_clear(&d->differing);
    rangeset_clear(&d->no_quorum);
    rangeset_clear(&d->to_repair);
    g_mutex_clear(&d->state_lock);
    g_cond_clear(&d->recorded);
    g_mutex_clear(&d->record_lock);
    g_mutex_clear(&d->flush_turns.lock);
    g_cond_clear(&d->flush_turns.gathered);
    g_mutex_clear(&d->mark_lock);
    g_rw_lock_clear(&d->attach_lock);
    g_mutex_clear(&d->rejoin_lock);
    g_cond_clear(&d->rejoin_wake);
    g_free(d->read_only_reason);
    g_free(d->degraded_reason);
    g_free(d->name);
    g_free(d->file);
    g_free(d);
}

/* As after a crash: a thread of it may come back at any time, and puts nothing in. */
static void leave_disk(disk *d)
{
    g_mutex_lock(&d->rejoin_lock);
    d->left = true;
    g_mutex_unlock(&d->rejoin_lock);
    leave_behind(d);
}

int disk_close(disk *d)
{
    if (!d)
        return 0;
    scrub_stop(d);
    bool all_back = disk_rejoin_stop(d);
    disk_worker_stop(d);
    disk_state_tidy(d);
    int r = disk_flush(d);
    if (all_back)
        disk_free(d, r == 0);
    else
        leave_disk(d);
    return r;
}
