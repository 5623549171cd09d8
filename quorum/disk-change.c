/*
 * disk-change.c: what follows when not every replica took a change (W2, W3, W4).
 *
 * A change that at least `threshold` replicas took succeeds. Those that did not take it
 * hold old or torn bytes: they are out before the range lock is given up, so no read can
 * ask them for that range, and the journal says so durably before the guest hears of
 * success (W2).
 *
 * A change that fewer took fails as a whole, and then nobody goes out. Taking out those
 * that failed would leave too few; taking out those that did not would throw away good
 * copies of everything else; and the usual cause, a full file system, passes: the guest
 * repeats the write and all replicas are equal again. The range may meanwhile hold old
 * bytes here, new ones there and torn ones elsewhere. Two reads still never disagree (W3):
 * a read is a function of what the replicas in sync hold, and as no write intervenes only
 * the set of those that are asked can change, and only shrink. With a threshold of more
 * than half, at most one version of a sector can ever reach it, however many replicas
 * drop out or cannot be read: a read returns that version or EIO. With a threshold of half
 * or less two versions could, and the loss of one replica could turn the vote; so there
 * the range is read back under the writer's lock, and as long as a second version of some
 * sector reaches the threshold, all but the winners are out. At least `threshold` remain.
 *
 * A replica whose flush failed is out in any case (W4), even if too few are left then.
 *
 * Concurrent changes: one that was not even asked of a replica that is out may be done
 * before the journal knows of that one; it waits for that (await_recorded).
 *
 * Concurrent failures: who is out is decided under state_lock and counts only replicas
 * that are still in sync then, so two writes cannot both succeed by different majorities
 * that have fewer than `threshold` replicas in common with those that are left.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

int disk_change_begin(disk *d, disk_change *ret_change, const char *op, uint64_t offset,
                      uint64_t length)
{
    uint64_t end = (offset + length + VOTE_SECTOR - 1) & ~(uint64_t)(VOTE_SECTOR - 1);
    uint64_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
    ret_change->op = op;
    ret_change->offset = offset & ~(uint64_t)(VOTE_SECTOR - 1);
    ret_change->length = length ? MIN(end, size) - ret_change->offset : 0;
    ret_change->asked = atomic_load_explicit(&d->in_sync, memory_order_acquire);
    ret_change->data = NULL;
    ret_change->lost = 0;
    ret_change->event = REPLICA_EVENT_CHANGE_FAILED;
    if (disk_set_size(ret_change->asked) >= d->threshold)
        return 0;
    DISK_COUNT(d->quorum_failures, 1);
    return -EIO;
}

static uint64_t change_failed(const disk *d, const disk_change *change)
{
    uint64_t failed = 0;
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(change->asked, i) && change->results[i] != 0)
            failed |= UINT64_C(1) << i;
    return failed;
}

/* The result for the guest, and who is out. A replica that dropped out while this change
 * ran does not count as having taken it. */
static int decide(disk *d, const disk_change *change, uint64_t failed, uint64_t *ret_out)
{
    int results[VOTE_REPLICAS_MAX];
    unsigned n = 0;
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i))
            continue;
        bool dropped = d->replicas[i].state != REPLICA_IN_SYNC;
        results[n++] = change->results[i] == 0 && dropped ? -EIO : change->results[i];
    }
    int r = vote_errno(results, n, d->threshold);

    *ret_out = 0;
    bool all_out = r == 0 || change->event == REPLICA_EVENT_FLUSH_FAILED;
    uint64_t losing = all_out ? failed : change->lost;
    for (unsigned i = 0; i < d->n; i++) {
        disk_replica *replica = &d->replicas[i];
        bool took = disk_has_bit(change->asked & ~failed, i);
        if (disk_has_bit(losing, i) && replica_transition(d, i, change->event))
            *ret_out |= UINT64_C(1) << i;
        if (replica->state != REPLICA_IN_SYNC && !took)
            replica->stale_bytes +=
                rangeset_add(&replica->missed, change->offset, change->length);
    }
    if (failed != 0 && failed != change->asked)
        rangeset_add(&d->differing, change->offset, change->length);
    g_mutex_unlock(&d->state_lock);
    return r;
}

/* Waits until the journal has on disk who is out: a success without them must not outlive
 * the knowledge that they missed it (W2). */
static void await_recorded(disk *d)
{
    g_mutex_lock(&d->state_lock);
    while (d->unrecorded != 0)
        g_cond_wait(&d->recorded, &d->state_lock);
    g_mutex_unlock(&d->state_lock);
}

static void journal_state(disk *d, const disk_change *change, unsigned i, int error)
{
    journal_loser loser = {.replica = d->replicas[i].name, .error = -error};
    g_autofree char *action =
        g_strdup_printf("%s -> %s", replica_state_name(REPLICA_IN_SYNC),
                        replica_state_name(REPLICA_FAILED));
    disk_journal(d, (journal_record){
                        .event = JOURNAL_REPLICA_STATE,
                        .op = change->op,
                        .offset = change->offset,
                        .length = change->length,
                        .losers = &loser,
                        .n_losers = 1,
                        .error = -error,
                        .action = action,
                    });
}

/* Those that this change took out: durably, then whoever awaits it may go on. */
static void record_out(disk *d, const disk_change *change, uint64_t out)
{
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(out, i))
            journal_state(d, change, i, change->results[i]);
    if (d->journal)
        journal_sync(d->journal);
    g_mutex_lock(&d->state_lock);
    d->unrecorded &= ~out;
    g_cond_broadcast(&d->recorded);
    g_mutex_unlock(&d->state_lock);
}

/* One record for each replica that failed; who took the change stands as the winner if
 * it succeeded. */
static void journal_failures(disk *d, const disk_change *change, uint64_t failed, int r)
{
    const char *takers[VOTE_REPLICAS_MAX];
    unsigned n_takers = 0;
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(change->asked & ~failed, i))
            takers[n_takers++] = d->replicas[i].name;
    journal_record record = {
        .event = JOURNAL_REPLICA_ERROR,
        .op = change->op,
        .offset = change->offset,
        .length = change->length,
        .winner_replicas = takers,
        .n_winner_replicas = r == 0 ? n_takers : 0,
        .winner_has_sha256 = r == 0 && change->data,
        .action = r == 0 ? "served" : "refused",
    };
    if (record.winner_has_sha256)
        journal_digest(change->data, change->length, record.winner_sha256);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(failed, i))
            continue;
        DISK_COUNT(d->replicas[i].write_errors, 1);
        journal_loser loser = {.replica = d->replicas[i].name,
                               .error = -change->results[i]};
        record.losers = &loser;
        record.n_losers = 1;
        record.error = loser.error;
        disk_journal(d, record);
    }
}

static void journal_refused(disk *d, const disk_change *change, int r)
{
    journal_loser losers[VOTE_REPLICAS_MAX];
    unsigned n = 0;
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    if (change->data)
        journal_digest(change->data, change->length, digest);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(change->asked, i))
            continue;
        losers[n] = (journal_loser){.replica = d->replicas[i].name,
                                    .has_sha256 = change->data && !change->results[i],
                                    .error = -change->results[i]};
        if (losers[n].has_sha256)
            memcpy(losers[n].sha256, digest, JOURNAL_DIGEST_SIZE);
        n++;
    }
    DISK_COUNT(d->quorum_failures, 1);
    disk_journal(d, (journal_record){
                        .event = JOURNAL_QUORUM_FAILURE,
                        .op = change->op,
                        .offset = change->offset,
                        .length = change->length,
                        .losers = losers,
                        .n_losers = n,
                        .error = -r,
                        .action = "refused",
                    });
}

/* Whoever does not hold the winner, if another version reaches the threshold too. */
static uint64_t contenders(const disk *d, const vote_range *range, uint64_t asked)
{
    unsigned size[VOTE_REPLICAS_MAX] = {0};
    for (unsigned i = 0; i < d->n; i++) {
        if (range->group[i] == VOTE_NO_GROUP || disk_has_bit(range->winners, i))
            continue;
        if (range->winners && ++size[range->group[i]] >= d->threshold)
            return asked & ~range->winners;
    }
    return 0;
}

/* Returns whether somebody is out, and the piece must be looked at again. */
static bool settle_piece(disk *d, const disk_change *change, uint64_t offset,
                         size_t length)
{
    disk_reading reading;
    disk_verdict verdict;
    uint64_t asked = atomic_load(&d->in_sync), out = 0;
    disk_gather(d, disk_thread_get(d->n), asked, offset, length, &reading);
    disk_recover(d, &reading);
    disk_vote(d, &reading, NULL, &verdict);
    for (unsigned i = 0; i < d->n; i++)
        if (reading.sector_errors[i])
            out |= UINT64_C(1) << i;
    if (disk_set_size(asked & ~out) < d->threshold)
        out = 0;
    for (unsigned k = 0; k < verdict.ranges->len && !out; k++)
        out = contenders(d, &g_array_index(verdict.ranges, vote_range, k), asked);
    disk_verdict_clear(&verdict);
    disk_reading_clear(&reading);

    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(out, i) && !replica_transition(d, i, REPLICA_EVENT_OUTVOTED))
            out &= ~(UINT64_C(1) << i);
    g_mutex_unlock(&d->state_lock);
    if (out != 0)
        record_out(d, change, out);
    return out != 0;
}

static void settle(disk *d, const disk_change *change)
{
    uint64_t end = change->offset + change->length;
    for (uint64_t at = change->offset; at < end;) {
        size_t length = (size_t)MIN(end - at, DISK_REQUEST_MAX);
        while (2 * d->threshold <= disk_set_size(atomic_load(&d->in_sync)) &&
               settle_piece(d, change, at, length))
            ;
        at += length;
    }
}

int disk_change_finish(disk *d, const disk_change *change)
{
    uint64_t failed = change_failed(d, change), out;
    if (failed == 0 && change->asked == disk_all_replicas(d) &&
        atomic_load_explicit(&d->in_sync, memory_order_acquire) == change->asked)
        return 0;

    int r = decide(d, change, failed, &out);
    journal_failures(d, change, failed, r);
    if (out != 0)
        record_out(d, change, out);
    else if (failed != 0 && d->journal)
        journal_sync(d->journal);
    if (r < 0) {
        journal_refused(d, change, r);
        settle(d, change);
        if (d->journal)
            journal_sync(d->journal);
    } else {
        await_recorded(d);
    }
    return r;
}
