/*
 * rejoin.c: a replica that hung or failed comes back (R5, W4).
 *
 * Each has a thread while it is out, because opening a file that hangs may take as long as
 * the file hangs. What it does, until it succeeds or the disk is closed, with growing pauses:
 *
 *   1. Waits until nothing that the replica was ever asked is under way on it: what returned
 *      late might else change what has been copied meanwhile.
 *   2. Takes its chain out, drops what the page cache holds of it (a page that could not be
 *      written looks clean there, W4), and closes it. What a writer of it had not written yet
 *      is lost, as in a crash.
 *   3. Opens it anew, with all that an open checks, and makes it ready to be written to.
 *   4. Under an exclusive lock of the whole disk: gives it the disk's size, notes what it
 *      missed, durably, and puts it in. It is stale then, and resync does the rest.
 *
 * What it missed: the changes that it was not asked for or did not take, which were noted one
 * by one, and what it took and may have lost: whatever was written since all replicas were
 * flushed together lies in regions whose intent bit is set, as no bit is cleared while a
 * replica is out (W5). These were noted when it went out, if the others could go on without
 * it. Another file than the one that was opened has missed everything.
 *
 * If they could not, that was an outage: what was written since the last flush is in the state
 * that a crash leaves, and is treated as after one (W6): the regions with an intent bit are
 * reconciled before they are served again, and all who were in until the outage vote there, if
 * they come back before that. So what has no quorum is not decided as soon as there are enough
 * replicas to decide it, but OUTAGE_US later: somebody who is still out may hold what was
 * flushed, and the first who came back may have rotted.
 *
 * A disk that is written to but remembers nothing (no session) cannot tell what was missed:
 * there a replica stays out.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

#define PAUSE_FIRST_US (G_USEC_PER_SEC / 5)
#define PAUSE_MAX_US   (10 * G_USEC_PER_SEC)
/* Who was in for so long begins with the first pause again. */
#define SETTLED_US (60 * G_USEC_PER_SEC)
/* What the end of a disk waits for threads that may be stuck in an open. */
#define STOP_US (2 * G_USEC_PER_SEC)

struct rejoin {
    disk *disk;
    unsigned replica;
    GThread *thread;
    bool runs;    /* under rejoin_lock */
    bool hurries; /* likewise: somebody asked; until it was tried */
    /* The thread's: */
    gint64 pause, back_us;
    char *told; /* the last error that was journalled */
};

/* ---- Who is out ----------------------------------------------------------------------- */

bool disk_is_gone(int error)
{
    return error == -ETIMEDOUT || error == -ENOTCONN;
}

void disk_lose_all(disk *d, const disk_reading *reading, const char *op)
{
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(reading->gone, i))
            disk_lose(d, i, op, reading->ballots[i].error);
}

static bool is_out(disk *d, unsigned i)
{
    g_mutex_lock(&d->state_lock);
    replica_state now = d->replicas[i].state;
    g_mutex_unlock(&d->state_lock);
    return disk_is_out(now);
}

/* ---- Opening it anew -------------------------------------------------------------------- */

/* A look without a range lock: who is removed meanwhile has no chain any more. */
static bool is_under_way(disk *d, unsigned i, bool *ret_open)
{
    g_rw_lock_reader_lock(&d->attach_lock);
    const chain *c = d->replicas[i].chain;
    bool waits = c && chain_abandoned(c) > 0;
    g_rw_lock_reader_unlock(&d->attach_lock);
    *ret_open = c != NULL;
    return waits;
}

/* 1 and 2. False: something is still under way, or it was removed. */
static bool take_out(disk *d, unsigned i)
{
    rangelock_held held;
    bool open, waits = is_under_way(d, i, &open);
    if (waits || !open)
        return !waits;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    /* Who still waited for it may have given up meanwhile. */
    bool quiet = !is_under_way(d, i, &open) && is_out(d, i);
    chain *old = quiet ? disk_set_chain(d, i, NULL) : NULL;
    rangelock_release(d->range_lock, &held);
    if (old) {
        chain_forget_cache(old);
        chain_close(old);
    }
    return quiet;
}

/* Images that are named now may not have been there when the disk was opened. */
chain *disk_open_anew(const disk *d, const replica_options *options, GError **error)
{
    path_policy *policy = path_policy_copy(d->policy);
    chain *c = NULL;
    if (chain_is_remote(options->path) ||
        path_policy_add_image(policy, options->path, error))
        c = disk_open_chain(options, policy, d->writable, error);
    path_policy_free(policy);
    return c;
}

/* Which file it is, and whether it is the one that is recorded. Who was open in this session
 * changed since the last was closed. */
static bool identify(disk *d, unsigned i, const chain *c, identity *ret_now,
                     bool *ret_other, GError **error)
{
    disk_replica *replica = &d->replicas[i];
    state_replica record;
    generation_record recorded;
    g_clear_pointer(&replica->identity, identity_source_close);
    if (chain_get_layer(c, 0)->remote) {
        identity_set_remote(ret_now, disk_size(d));
    } else {
        replica->identity = identity_source_open(c, error);
        if (!replica->identity)
            return false;
        int failed = identity_read(replica->identity, false, ret_now);
        if (failed) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "cannot be looked at: %s",
                        g_strerror(-failed));
            return false;
        }
    }
    state_get_generation(d->store, i, &record, &recorded);
    recorded.clean = recorded.clean && !replica->file;
    *ret_other = !generation_trusted(generation_compare(&recorded, ret_now));
    return true;
}

static bool make_ready(disk *d, chain *c, GError **error)
{
    if (!d->writable)
        return true;
    if (chain_writable(c))
        return chain_begin_writing(c, error);
    const char *why = chain_read_only_reason(c);
    g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS, "cannot be written: %s",
                why ? why : "it is read-only");
    return false;
}

/* ---- Coming back ------------------------------------------------------------------------ */

/* Of the whole disk a lock is held. A file that was part of the disk and missed a resize is
 * resized, another one is not touched. */
static bool fits(disk *d, unsigned i, chain *c, bool other, GError **error)
{
    chain *all[VOTE_REPLICAS_MAX];
    unsigned n = 0;
    for (unsigned k = 0; k < d->n; k++)
        if (k != i && d->replicas[k].chain)
            all[n++] = d->replicas[k].chain;
    all[n++] = c;
    if (!chain_check_distinct(all, n, error))
        return false;
    uint64_t size = disk_size(d);
    if (chain_size(c) == size)
        return true;
    disk_wait_for(d, i);
    int r = d->writable && !other ? chain_resize(c, size) : -EROFS;
    disk_wait_for_ever();
    if (r < 0)
        g_set_error(error, DISK_ERROR, DISK_ERROR_SIZES,
                    "has %" G_GUINT64_FORMAT
                    " bytes where the disk has %" G_GUINT64_FORMAT
                    ", and cannot be resized: %s",
                    chain_size(c), size, g_strerror(-r));
    return r == 0;
}

/* Under a lock of the whole disk. */
static void note_missed(disk *d, unsigned i, bool other)
{
    disk_replica *replica = &d->replicas[i];
    uint64_t size = disk_size(d);
    g_mutex_lock(&d->state_lock);
    if (d->session && d->outage) {
        state_unreconcile(d->store);
        disk_wait_for_all(d);
        d->outage = false;
    }
    if (other)
        rangeset_add(&replica->missed, 0, size);
    /* What was copied to it and not flushed may be lost as well. */
    rangeset_add_part(&replica->missed, &replica->copied, 0, size);
    rangeset_clear(&replica->copied);
    if (!other)
        disk_miss_dirty(d, i);
    g_mutex_unlock(&d->state_lock);
}

/* Durable, before it votes anywhere: all as one, as nobody is served meanwhile. */
static int record_missed(disk *d, unsigned i, const identity *now)
{
    state_replica recorded;
    g_mutex_lock(&d->record_lock);
    g_mutex_lock(&d->state_lock);
    state_note_stale(d->store, i, &d->replicas[i].missed);
    g_mutex_unlock(&d->state_lock);
    state_get_replica(d->store, i, &recorded);
    recorded.state = STATE_STALE_RANGES;
    recorded.identity = *now;
    int r = state_set_replica(d->store, i, &recorded);
    g_mutex_unlock(&d->record_lock);
    return r;
}

static replica_state back_in(disk *d, unsigned i)
{
    disk_replica *replica = &d->replicas[i];
    g_mutex_lock(&d->state_lock);
    replica_transition(d, i, REPLICA_EVENT_RETURNED);
    if (rangeset_count(&replica->missed) == 0) {
        replica_transition(d, i, REPLICA_EVENT_RESYNC_BEGINS);
        replica_transition(d, i, REPLICA_EVENT_CAUGHT_UP);
    }
    replica->suspect = replica->behind_recorded = false;
    replica_state now = replica->state;
    g_mutex_unlock(&d->state_lock);
    return now;
}

static bool put_in_locked(disk *d, unsigned i, chain *c, const identity *now, bool other,
                          GError **error)
{
    if (!is_out(d, i)) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS, "was removed meanwhile");
        return false;
    }
    if (!fits(d, i, c, other, error))
        return false;
    note_missed(d, i, other);
    int r = d->session ? record_missed(d, i, now) : 0;
    if (r < 0) {
        g_set_error(error, DISK_ERROR, DISK_ERROR_STALE,
                    "the state directory cannot be written: %s", g_strerror(-r));
        return false;
    }
    replica_state from = d->replicas[i].state;
    disk_set_chain(d, i, c);
    disk_journal_state(d, "rejoin", i, 0, from, back_in(d, i));
    disk_mark_replica(d, i);
    disk_state_record(d, i);
    return true;
}

static bool put_in(disk *d, unsigned i, chain *c, const identity *now, bool other,
                   GError **error)
{
    rangelock_held held;
    rangelock_acquire(d->range_lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    bool in = put_in_locked(d, i, c, now, other, error);
    rangelock_release(d->range_lock, &held);
    return in;
}

/* The disk was closed while the open hung: the image is not touched, and nobody journals. */
static bool is_left(disk *d)
{
    g_mutex_lock(&d->rejoin_lock);
    bool left = d->left;
    g_mutex_unlock(&d->rejoin_lock);
    return left;
}

/* 3 and 4. */
static bool come_back(disk *d, unsigned i, GError **error)
{
    identity now = {.kind = IDENTITY_NONE};
    bool other = false;
    chain *c = disk_open_anew(d, d->replicas[i].options, error);
    if (c && is_left(d)) {
        chain_close(c);
        return true;
    }
    if (c && (!d->store || identify(d, i, c, &now, &other, error)) &&
        make_ready(d, c, error) && put_in(d, i, c, &now, other, error)) {
        disk_worker_wake(d);
        return true;
    }
    chain_close(c);
    return false;
}

rejoin_result disk_rejoin_try(disk *d, unsigned i, GError **error)
{
    if (!take_out(d, i))
        return REJOIN_WAITS;
    return come_back(d, i, error) ? REJOIN_BACK : REJOIN_FAILED;
}

/* ---- The thread ------------------------------------------------------------------------- */

/* The same reason is told once. */
static void tell(rejoin *r, const char *why)
{
    disk *d = r->disk;
    const disk_replica *replica = &d->replicas[r->replica];
    journal_loser loser = {.replica = replica->name};
    if (g_strcmp0(r->told, why) == 0 || is_left(d))
        return;
    g_free(r->told);
    r->told = g_strdup(why);
    g_autofree char *action = g_strdup_printf("cannot come back: %s", why);
    disk_journal(d, (journal_record){.event = JOURNAL_REPLICA_STATE,
                                     .op = "rejoin",
                                     .losers = &loser,
                                     .n_losers = 1,
                                     .action = action});
}

/* False: the disk is being closed, or the replica is not out any more. */
static bool goes_on(rejoin *r)
{
    disk *d = r->disk;
    gint64 until = g_get_monotonic_time() + r->pause;
    g_mutex_lock(&d->rejoin_lock);
    while (!d->closing && !r->hurries &&
           g_cond_wait_until(&d->rejoin_wake, &d->rejoin_lock, until))
        ;
    r->runs = !d->closing && is_out(d, r->replica);
    bool runs = r->runs;
    g_cond_broadcast(&d->rejoin_wake);
    g_mutex_unlock(&d->rejoin_lock);
    return runs;
}

/* What came of it is in the replica's state by now. */
static void note_tried(rejoin *r)
{
    g_mutex_lock(&r->disk->rejoin_lock);
    r->hurries = false;
    g_mutex_unlock(&r->disk->rejoin_lock);
}

static void *work(void *opaque)
{
    rejoin *r = opaque;
    while (goes_on(r)) {
        g_autoptr(GError) error = NULL;
        rejoin_result result = disk_rejoin_try(r->disk, r->replica, &error);
        note_tried(r);
        if (result != REJOIN_WAITS)
            r->pause = MIN(r->pause * 2, PAUSE_MAX_US);
        if (result == REJOIN_FAILED)
            tell(r, error->message);
        if (result != REJOIN_BACK)
            continue;
        g_clear_pointer(&r->told, g_free);
        r->back_us = g_get_monotonic_time();
    }
    return NULL;
}

/* What is recorded tells what was missed, or nothing is written. */
static bool can_rejoin(const disk *d)
{
    return !d->offline && (d->session || !d->writable);
}

void disk_rejoin_start(disk *d, unsigned i)
{
    disk_replica *replica = &d->replicas[i];
    if (!can_rejoin(d) || !is_out(d, i))
        return;
    g_mutex_lock(&d->rejoin_lock);
    rejoin *r = replica->rejoin;
    if (!r && !d->closing) {
        r = replica->rejoin = g_new0(rejoin, 1);
        r->disk = d;
        r->replica = i;
    }
    if (!d->closing && !r->runs) {
        if (r->thread)
            g_thread_join(r->thread); /* it has let go of the lock for the last time */
        if (g_get_monotonic_time() - r->back_us > SETTLED_US)
            r->pause = PAUSE_FIRST_US;
        r->runs = true;
        r->thread = g_thread_new("rejoin", work, r);
    }
    g_mutex_unlock(&d->rejoin_lock);
}

bool disk_rejoin_claim(disk *d, unsigned i)
{
    disk_replica *replica = &d->replicas[i];
    gint64 until = g_get_monotonic_time() + STOP_US;
    g_mutex_lock(&d->rejoin_lock);
    rejoin *r = replica->rejoin;
    if (!r) {
        r = replica->rejoin = g_new0(rejoin, 1);
        r->disk = d;
        r->replica = i;
    }
    r->hurries = r->runs;
    g_cond_broadcast(&d->rejoin_wake);
    while (r->runs && g_cond_wait_until(&d->rejoin_wake, &d->rejoin_lock, until))
        ;
    bool claimed = !r->runs;
    if (claimed) {
        r->runs = true;
        r->hurries = false;
    }
    g_mutex_unlock(&d->rejoin_lock);
    return claimed;
}

void disk_rejoin_release(disk *d, unsigned i)
{
    g_mutex_lock(&d->rejoin_lock);
    rejoin *r = d->replicas[i].rejoin;
    r->runs = r->hurries = false;
    g_cond_broadcast(&d->rejoin_wake);
    g_mutex_unlock(&d->rejoin_lock);
    disk_rejoin_start(d, i); /* it may be out again already */
}

void disk_rejoin_hurry(disk *d)
{
    g_mutex_lock(&d->rejoin_lock);
    for (unsigned i = 0; i < d->n; i++)
        if (d->replicas[i].rejoin && d->replicas[i].rejoin->runs)
            d->replicas[i].rejoin->hurries = true;
    g_cond_broadcast(&d->rejoin_wake);
    g_mutex_unlock(&d->rejoin_lock);
}

bool disk_rejoin_hurries(disk *d)
{
    bool any = false;
    g_mutex_lock(&d->rejoin_lock);
    for (unsigned i = 0; i < d->n; i++) {
        const rejoin *r = d->replicas[i].rejoin;
        any |= r && r->runs && r->hurries;
    }
    g_mutex_unlock(&d->rejoin_lock);
    return any;
}

static bool ended(const disk *d)
{
    for (unsigned i = 0; i < d->n; i++)
        if (d->replicas[i].rejoin && d->replicas[i].rejoin->runs)
            return false;
    return true;
}

bool disk_rejoin_stop(disk *d)
{
    gint64 until = g_get_monotonic_time() + STOP_US;
    g_mutex_lock(&d->rejoin_lock);
    d->closing = true;
    g_cond_broadcast(&d->rejoin_wake);
    while (!ended(d) && g_cond_wait_until(&d->rejoin_wake, &d->rejoin_lock, until))
        ;
    bool all = ended(d);
    g_mutex_unlock(&d->rejoin_lock);
    for (unsigned i = 0; i < d->n && all; i++) {
        g_mutex_lock(&d->rejoin_lock); /* the worker still runs, and may look at it */
        rejoin *r = g_steal_pointer(&d->replicas[i].rejoin);
        g_mutex_unlock(&d->rejoin_lock);
        if (!r)
            continue;
        if (r->thread)
            g_thread_join(r->thread);
        g_free(r->told);
        g_free(r);
    }
    return all;
}
