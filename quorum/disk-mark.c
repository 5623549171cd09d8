/*
 * disk-mark.c: the marks that a session puts into its images (generation.h has what they
 * prove, and in which order they and the record are written).
 *
 * They are written before the first change of the session and not sooner, so that a disk that
 * is only read leaves its images as they are. A replica that cannot be marked keeps the mark
 * that is recorded of it: if that is because it fails, the change that follows will tell.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

/* In the record, after it is in the images. Other records of replicas are kept away, or they
 * would put back what they read before. */
static int record_marks(disk *d, uint64_t marked)
{
    qcow2_mark marks[VOTE_REPLICAS_MAX];
    g_mutex_lock(&d->record_lock);
    for (unsigned i = 0; i < d->n; i++) {
        state_replica recorded;
        state_get_replica(d->store, i, &recorded);
        marks[i] = recorded.identity.mark;
        if (disk_has_bit(marked, i))
            state_get_mark(d->store, i, false, &marks[i]);
    }
    int r = state_set_marks(d->store, marks);
    g_mutex_unlock(&d->record_lock);
    return r;
}

static int write_mark(disk *d, unsigned i, bool clean)
{
    qcow2_mark mark;
    state_get_mark(d->store, i, clean, &mark);
    disk_wait_for(d, i);
    int r = chain_write_mark(d->replicas[i].chain, &mark);
    disk_wait_for_ever();
    return r;
}

/* mark_lock is held. */
static int mark_set(disk *d, uint64_t set)
{
    uint64_t marked = 0;
    for (unsigned i = 0; i < d->n; i++) {
        int r = disk_has_bit(set, i) ? write_mark(d, i, false) : -ENOTSUP;
        marked |= (uint64_t)(r == 0) << i;
        if (disk_is_gone(r))
            disk_lose(d, i, "mark", r);
    }
    return marked == 0 ? 0 : record_marks(d, marked);
}

int disk_mark(disk *d)
{
    if (!d->session || atomic_load_explicit(&d->marked, memory_order_acquire))
        return 0;
    g_mutex_lock(&d->mark_lock);
    bool already = atomic_load(&d->marked);
    int r = already ? 0 : mark_set(d, disk_takers(d));
    if (r == 0)
        atomic_store(&d->marked, true);
    g_mutex_unlock(&d->mark_lock);
    return r;
}

int disk_mark_replica(disk *d, unsigned i)
{
    if (!d->session || !atomic_load(&d->marked))
        return 0; /* with the others */
    g_mutex_lock(&d->mark_lock);
    int r = mark_set(d, UINT64_C(1) << i);
    g_mutex_unlock(&d->mark_lock);
    return r;
}

bool disk_mark_end(disk *d)
{
    bool known = true;
    uint64_t in_sync = atomic_load(&d->in_sync);
    if (!d->session || !atomic_load(&d->marked))
        return true;
    for (unsigned i = 0; i < d->n; i++) {
        int r = disk_has_bit(in_sync, i) ? write_mark(d, i, true) : 0;
        known = known && (r == 0 || r == -ENOTSUP);
    }
    return known;
}
