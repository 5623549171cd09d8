/*
 * disk-members.c: the operator takes a replica out of a disk that is in use, and puts one in
 * its place.
 *
 * Under an exclusive lock of the whole disk, like every exchange of a chain. One that is put in
 * is another file as far as anybody knows: it has missed everything, and is filled by resync
 * (W2, O4). If it cannot be opened nothing has changed.
 *
 * A replica that was removed is not waited for: regions become clean without it, and it is
 * filled as a whole if it is ever there again, also at the next open.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

static bool refuse(GError **error, const char *why)
{
    g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS, "%s", why);
    return false;
}

/* Whether those that remain are enough everywhere. */
static bool may_go(disk *d, unsigned i, GError **error)
{
    uint64_t bit = UINT64_C(1) << i;
    g_mutex_lock(&d->state_lock);
    bool gone = d->replicas[i].state == REPLICA_REMOVED;
    bool enough = disk_quorum_everywhere(d, disk_takers(d) & ~bit, 0, IMAGE_SIZE_MAX);
    g_mutex_unlock(&d->state_lock);
    if (gone)
        return refuse(error, "is removed already");
    if (disk_set_size(disk_members(d) & ~bit) < d->threshold) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "The number of children cannot be lower than the vote threshold %u",
                    d->threshold);
        return false;
    }
    return enough || refuse(error, "the others lack a quorum somewhere (wait until they "
                                   "are in sync)");
}

/* *ret_chain: what is to be closed when the lock is given up. */
static bool remove_locked(disk *d, unsigned i, chain **ret_chain, GError **error)
{
    if (!may_go(d, i, error))
        return false;
    g_mutex_lock(&d->state_lock);
    replica_state from = d->replicas[i].state;
    replica_transition(d, i, REPLICA_EVENT_REMOVED);
    rangeset_clear(&d->replicas[i].missed);
    rangeset_clear(&d->replicas[i].copied);
    g_mutex_unlock(&d->state_lock);
    *ret_chain = disk_set_chain(d, i, NULL);
    disk_journal_state(d, "remove", i, 0, from, REPLICA_REMOVED);
    if (disk_state_record(d, i) == 0)
        return true;
    return refuse(error, "was removed, but the state directory cannot be written");
}

bool disk_remove_replica(disk *d, unsigned i, GError **error)
{
    chain *c = NULL;
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    bool removed = remove_locked(d, i, &c, error);
    rangelock_release(d->range_lock, &held);
    if (c)
        disk_close_hung(c, NULL);
    return removed;
}

/* What is recorded names the new file, and says that it has nothing. */
static int record_new(disk *d, unsigned i)
{
    int map[VOTE_REPLICAS_MAX];
    for (unsigned k = 0; k < d->n; k++)
        map[k] = k == i ? -1 : (int)k;
    return disk_state_reshape(d, map);
}

/* With what the disk, and the one before, had for all that was not said. */
static replica_options *complete_options(const disk *d, unsigned i,
                                         const replica_options *options)
{
    const replica_options *before = d->replicas[i].options;
    replica_options *all = replica_options_copy(options);
    if (all->decoder < 0)
        all->decoder = before->decoder;
    if (!all->timeout_ms)
        all->timeout_ms = before->timeout_ms;
    g_free(all->name);
    all->name = g_strdup(before->name);
    return all;
}

static bool fits_in(disk *d, const chain *c, GError **error)
{
    uint64_t size = disk_size(d);
    if (!chain_writable(c)) {
        const char *why = chain_read_only_reason(c);
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS, "cannot be written: %s",
                    why ? why : "it is read-only");
        return false;
    }
    if (chain_size(c) == size)
        return true;
    g_set_error(error, DISK_ERROR, DISK_ERROR_SIZES,
                "has %" G_GUINT64_FORMAT " bytes where the disk has %" G_GUINT64_FORMAT
                " (qemu-img resize)",
                chain_size(c), size);
    return false;
}

/* Before anything is changed for it. What it shares with others, and a size that changes in
 * this moment, is found out when it is put in. */
static bool can_be_put(disk *d, unsigned i, const replica_options *options,
                       GError **error)
{
    replica_options *all = complete_options(d, i, options);
    chain *c = disk_open_anew(d, all, error);
    bool fits = c && fits_in(d, c, error);
    chain_close(c);
    replica_options_free(all);
    return fits;
}

static int add_locked(disk *d, unsigned i, const replica_options *options)
{
    disk_replica *replica = &d->replicas[i];
    replica_options *all = complete_options(d, i, options);
    replica_options_free(replica->options);
    replica->options = all;
    int r = record_new(d, i);
    if (r < 0)
        return r;
    g_rw_lock_writer_lock(&d->attach_lock);
    replica->source = g_intern_string(options->source);
    g_rw_lock_writer_unlock(&d->attach_lock);
    g_mutex_lock(&d->state_lock);
    rangeset_add(&replica->missed, 0, disk_size(d));
    replica_transition(d, i, REPLICA_EVENT_ADDED);
    g_mutex_unlock(&d->state_lock);
    return 0;
}

static void take_back(disk *d, unsigned i)
{
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    g_mutex_lock(&d->state_lock);
    replica_transition(d, i, REPLICA_EVENT_REMOVED);
    rangeset_clear(&d->replicas[i].missed);
    g_mutex_unlock(&d->state_lock);
    disk_state_record(d, i);
    rangelock_release(d->range_lock, &held);
}

/* Nobody else opens what it was, or is. */
static bool put_claimed(disk *d, unsigned i, const replica_options *options,
                        GError **error)
{
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    bool free = disk_has_bit(atomic_load(&d->removed), i);
    int r = free ? add_locked(d, i, options) : 0;
    rangelock_release(d->range_lock, &held);
    if (!free)
        return refuse(error, "is part of the disk (remove it first)");
    if (r < 0) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_STALE,
                    "the state directory cannot be written: %s", g_strerror(-r));
        return false;
    }
    if (disk_rejoin_try(d, i, error) == REJOIN_BACK)
        return true;
    take_back(d, i);
    return false;
}

static bool can_fill(const disk *d, GError **error)
{
    return (d->session && 2 * d->threshold > d->n) ||
           refuse(error, "only a writable disk with a threshold of more than half can "
                         "fill a replica");
}

static bool put(disk *d, unsigned i, const replica_options *options, GError **error)
{
    if (!disk_rejoin_claim(d, i))
        return refuse(error, "is still being opened: the file that it was hangs (try "
                             "again when it answers)");
    bool done = put_claimed(d, i, options, error);
    disk_rejoin_release(d, i);
    return done;
}

bool disk_put_replica(disk *d, unsigned i, const replica_options *options, GError **error)
{
    if (!can_fill(d, error))
        return false;
    if (!disk_has_bit(atomic_load(&d->removed), i))
        return refuse(error, "is part of the disk (remove it first)");
    return can_be_put(d, i, options, error) && put(d, i, options, error);
}

bool disk_replace_replica(disk *d, unsigned i, const replica_options *options,
                          GError **error)
{
    if (!can_fill(d, error) || !can_be_put(d, i, options, error))
        return false;
    if (!disk_has_bit(atomic_load(&d->removed), i) && !disk_remove_replica(d, i, error))
        return false;
    return put(d, i, options, error);
}
