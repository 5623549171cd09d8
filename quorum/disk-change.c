/*
 * disk-change.c: what follows when not every replica took a change (W2, W3, W4).
 *
 * A change that at least `threshold` replicas took succeeds, where only those count that were
 * current on its range. Those that did not take it hold old or torn bytes there: they are
 * stale in that range before its lock is given up, so no read can ask them for it, and that
 * is on stable storage before the guest hears of success (W2). Elsewhere they vote on.
 *
 * A change that fewer took fails as a whole, and then nobody is stale. Taking out those that
 * failed would leave too few; taking out those that did not would throw away good copies;
 * and the usual cause, a full file system, passes: the guest repeats the write and all
 * replicas are equal again. The range may meanwhile hold old bytes here, new ones there and
 * torn ones elsewhere. Two reads still never disagree (W3): a read is a function of what the
 * replicas current there hold, and as no write intervenes only the set of those that are
 * asked can change, and only shrink. With a threshold of more than half, at most one version
 * of a sector can ever reach it, however many replicas drop out or cannot be read: a read
 * returns that version or EIO. With a threshold of half or less two versions could, and the
 * loss of one replica could turn the vote; so there the range is read back under the writer's
 * lock, and as long as a second version of some sector reaches the threshold, all but the
 * winners are stale there. At least `threshold` remain.
 *
 * A replica whose flush failed is out (W4), even if too few are left then; a flush succeeds if
 * every byte still has enough replicas that flushed it. The exception is a flush that fails as
 * a whole where replicas just had no room for their tables: they have lost nothing, and a full
 * file system under all of them must not end the disk; the guest's next flush tries again.
 *
 * A replica that did not answer in time, or cannot be reached, is out whatever becomes of the
 * change (R5): nothing is asked of it until it was opened anew (rejoin.c). Where the others
 * are too few then, reads fail with EIO until it is back and the region was reconciled.
 *
 * Concurrent changes: one that was not even asked of a replica that is out notes for itself
 * what that one missed, and waits for what others are still recording (await_recorded).
 */
#include "quorum/disk-internal.h"
#include <errno.h>

/* A flush concerns all of the disk. */
static uint64_t change_end(const disk_change *change)
{
    return change->length > 0 ? change->offset + change->length : IMAGE_SIZE_MAX;
}

/* W5. A disk that is offline has no writes that could be lost halfway, only repairs, which
 * are decided anew by whoever looks. */
static int intend(disk *d, disk_change *change)
{
    if (!d->session || d->offline || change->length == 0)
        return 0;
    int r = state_write_begin(d->store, change->offset, change->length);
    change->intended = r == 0;
    return r;
}

int disk_change_begin(disk *d, disk_change *ret_change, const char *op, uint64_t offset,
                      uint64_t length)
{
    uint64_t end = (offset + length + VOTE_SECTOR - 1) & ~(uint64_t)(VOTE_SECTOR - 1);
    uint64_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
    ret_change->op = op;
    ret_change->offset = offset & ~(uint64_t)(VOTE_SECTOR - 1);
    ret_change->length = length ? MIN(end, size) - ret_change->offset : 0;
    ret_change->data = NULL;
    ret_change->lost = 0;
    ret_change->event = REPLICA_EVENT_CHANGE_FAILED;
    ret_change->intended = false;
    int r = length > 0 ? disk_mark(d) : 0;
    if (r < 0)
        return r;
    ret_change->asked = disk_takers(d);
    if (atomic_load(&d->in_sync) == disk_all_replicas(d))
        return intend(d, ret_change);
    g_mutex_lock(&d->state_lock);
    bool enough = disk_quorum_everywhere(d, ret_change->asked, ret_change->offset,
                                         change_end(ret_change));
    g_mutex_unlock(&d->state_lock);
    if (enough)
        return intend(d, ret_change);
    DISK_COUNT(d->quorum_failures, 1);
    return -EIO;
}

/* What deciding about a change has changed. */
typedef struct disk_outcome {
    uint64_t moved; /* replicas in another state than before */
    uint64_t missed;
    replica_state from[VOTE_REPLICAS_MAX],
        to[VOTE_REPLICAS_MAX]; /* of those that moved */
} disk_outcome;

/* Changes the state of replica i; state_lock is held. */
static void move(disk *d, unsigned i, replica_event event, disk_outcome *outcome)
{
    disk_replica *replica = &d->replicas[i];
    replica_state from = replica->state;
    if (event == REPLICA_EVENT_FLUSH_FAILED)
        replica->suspect = true;
    if (!replica_transition(d, i, event))
        return;
    outcome->from[i] = from;
    outcome->to[i] = replica->state;
    outcome->moved |= UINT64_C(1) << i;
}

/* What those who have gone out took and may lose: all that was written to since all replicas
 * were flushed together (W5). That is missed if the others go on without them; if they cannot,
 * nobody knows who has what, as after a crash (rejoin.c). state_lock is held. */
static void note_unflushed(disk *d, const disk_outcome *outcome)
{
    uint64_t out = outcome->moved & ~disk_takers(d), offset, length;
    if (out == 0 || !d->session)
        return;
    if (!disk_quorum_everywhere(d, disk_takers(d), 0, MAX(1, atomic_load(&d->size)))) {
        d->outage = true;
        return;
    }
    for (uint64_t at = 0; state_next_dirty(d->store, at, &offset, &length);
         at = offset + length)
        for (unsigned i = 0; i < d->n; i++)
            if (disk_has_bit(out, i))
                rangeset_add(&d->replicas[i].missed, offset, length);
}

static uint64_t change_failed(const disk *d, const disk_change *change)
{
    uint64_t failed = 0;
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(change->asked, i) && change->results[i] != 0)
            failed |= UINT64_C(1) << i;
    return failed;
}

/* What a replica that did not take the change has missed. state_lock is held. */
static void note_missed(disk *d, const disk_change *change, unsigned i)
{
    rangeset_add(&d->replicas[i].missed, change->offset, change->length);
}

/* The vote of the results, wherever other replicas vote by itself. state_lock is held. A
 * replica that dropped out while the change ran does not count as having taken it. */
static int vote_results(const disk *d, const disk_change *change)
{
    uint64_t at = change->offset, end = change_end(change), run_end;
    int r = 0;
    do {
        int results[VOTE_REPLICAS_MAX];
        unsigned n = 0;
        uint64_t voters = disk_voter_run_locked(d, at, end, &run_end);
        for (unsigned i = 0; i < d->n; i++)
            if (disk_has_bit(voters & change->asked, i))
                results[n++] = change->results[i];
        r = vote_errno(results, n, d->threshold);
        at = run_end;
    } while (r == 0 && at < end);
    return r;
}

/* It was out when the change asked who takes it, and caught up before the change ended: with
 * all but this one. */
static bool fell_between(const disk_change *change, const disk_replica *replica,
                         unsigned i)
{
    return change->length > 0 && !disk_has_bit(change->asked, i) &&
           replica->state == REPLICA_IN_SYNC;
}

/* Whose flush found no room: it is lost to nobody (image.h). */
static uint64_t put_off(const disk *d, const disk_change *change)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(change->asked, i) &&
            (change->results[i] == -ENOSPC || change->results[i] == -EDQUOT))
            set |= UINT64_C(1) << i;
    return set;
}

/* The result for the guest, who has changed state, and who has missed the change. */
static int decide(disk *d, const disk_change *change, uint64_t failed,
                  disk_outcome *ret_outcome)
{
    bool flush = change->event == REPLICA_EVENT_FLUSH_FAILED;
    *ret_outcome = (disk_outcome){0};
    g_mutex_lock(&d->state_lock);
    int r = vote_results(d, change);
    uint64_t losing = r == 0  ? failed
                      : flush ? failed & ~put_off(d, change)
                              : change->lost;
    for (unsigned i = 0; i < d->n; i++) {
        const disk_replica *replica = &d->replicas[i];
        bool took = disk_has_bit(change->asked & ~failed, i);
        if (disk_has_bit(failed, i) && disk_is_gone(change->results[i]))
            move(d, i, REPLICA_EVENT_GONE, ret_outcome);
        else if (disk_has_bit(losing, i) || fell_between(change, replica, i))
            move(d, i, change->event, ret_outcome);
        if (replica->state == REPLICA_IN_SYNC || (took && !disk_is_out(replica->state)))
            continue; /* what who is out by now took may be lost */
        if (r == 0 || !disk_has_bit(change->asked, i)) {
            note_missed(d, change, i);
            ret_outcome->missed |= UINT64_C(1) << i;
        }
    }
    note_unflushed(d, ret_outcome);
    d->unrecorded |= ret_outcome->moved;
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

static void journal_state(disk *d, const disk_change *change, unsigned i, int error,
                          replica_state from, replica_state to)
{
    journal_loser loser = {.replica = d->replicas[i].name, .error = -error};
    g_autofree char *action =
        g_strdup_printf("%s -> %s", replica_state_name(from), replica_state_name(to));
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

void disk_journal_state(disk *d, const char *op, unsigned i, int error,
                        replica_state from, replica_state to)
{
    disk_change nothing = {.op = op};
    journal_state(d, &nothing, i, error, from, to);
}

/* Those whose state changed: durably, then whoever awaits it may go on. */
static void record_moved(disk *d, const disk_change *change, const disk_outcome *outcome)
{
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(outcome->moved, i))
            journal_state(d, change, i,
                          disk_has_bit(change->asked, i) ? change->results[i] : 0,
                          outcome->from[i], outcome->to[i]);
    if (d->journal)
        journal_sync(d->journal);
    g_mutex_lock(&d->state_lock);
    d->unrecorded &= ~outcome->moved;
    g_cond_broadcast(&d->recorded);
    g_mutex_unlock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++)
        if (disk_has_bit(outcome->moved, i))
            disk_rejoin_start(d, i);
}

/* Where too few replicas have missed nothing at all of a region, but, as the change succeeded,
 * enough hold each sector of it, that is recorded for the next open. A region that lies
 * wholly in a change needs it not: whoever missed the change missed all of it. */
static bool remember_exactly(disk *d, uint64_t offset)
{
    bool added = false;
    if (!state_is_crowded(d->store, offset))
        return false;
    uint64_t region = state_stale_region(d->store), start = offset & ~(region - 1);
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        rangeset known = {0};
        rangeset_add_part(&known, &d->replicas[i].missed, start, start + region);
        rangeset_add_part(&known, &d->replicas[i].copied, start, start + region);
        added |= state_set_exact(d->store, i, start, &known);
        rangeset_clear(&known);
    }
    g_mutex_unlock(&d->state_lock);
    return added;
}

/* W2: on stable storage before the guest hears of it. 0 or -errno. */
static int remember(disk *d, const disk_change *change, const disk_outcome *outcome)
{
    int result = 0;
    for (unsigned i = 0; i < d->n && d->session; i++) {
        int r = 0;
        if (disk_has_bit(outcome->missed, i) && change->length > 0)
            r = state_mark_stale(d->store, i, change->offset, change->length);
        if (r == 0 && disk_has_bit(outcome->moved, i))
            r = disk_state_record(d, i);
        result = result ? result : r;
    }
    if (outcome->missed != 0 && d->session && change->length > 0) {
        bool added = remember_exactly(d, change->offset);
        added |= remember_exactly(d, change->offset + change->length - 1);
        if (added && result == 0)
            result = state_settle(d->store);
    }
    bool flush = change->event == REPLICA_EVENT_FLUSH_FAILED;
    return result || !flush || !d->session ? result : state_settle(d->store);
}

void disk_lose(disk *d, unsigned i, const char *op, int error)
{
    disk_change nothing = {
        .op = op, .asked = UINT64_C(1) << i, .event = REPLICA_EVENT_GONE};
    disk_outcome outcome = {0};
    nothing.results[i] = error;
    g_mutex_lock(&d->state_lock);
    move(d, i, REPLICA_EVENT_GONE, &outcome);
    note_unflushed(d, &outcome);
    d->unrecorded |= outcome.moved;
    g_mutex_unlock(&d->state_lock);
    if (outcome.moved == 0)
        return;
    remember(d, &nothing, &outcome);
    record_moved(d, &nothing, &outcome);
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

/* `out` holds what must not win: no vote there any more. */
static void lose_piece(disk *d, const disk_change *change, uint64_t offset, size_t length,
                       uint64_t out)
{
    disk_change piece = *change;
    disk_outcome outcome = {0};
    piece.offset = offset;
    piece.length = length;
    piece.event = REPLICA_EVENT_OUTVOTED;
    g_mutex_lock(&d->state_lock);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(out, i))
            continue;
        note_missed(d, &piece, i);
        move(d, i, piece.event, &outcome);
    }
    d->unrecorded |= outcome.moved;
    g_mutex_unlock(&d->state_lock);
    outcome.missed = out;
    remember(d, &piece, &outcome);
    record_moved(d, &piece, &outcome);
}

/* Returns whether somebody is stale now, and the piece must be looked at again. */
static bool settle_piece(disk *d, const disk_change *change, uint64_t offset,
                         size_t length)
{
    disk_reading reading;
    disk_verdict verdict;
    uint64_t run_end, out = 0;
    uint64_t asked = disk_voter_run(d, offset, offset + length, &run_end);
    disk_gather(d, disk_thread_get(d->n), asked, offset, length, &reading);
    disk_recover(d, &reading);
    disk_vote(d, &reading, NULL, &verdict);
    disk_lose_all(d, &reading, change->op);
    for (unsigned i = 0; i < d->n; i++)
        if (reading.sector_errors[i])
            out |= UINT64_C(1) << i;
    if (disk_set_size(asked & ~out) < d->threshold)
        out = 0;
    for (unsigned k = 0; k < verdict.ranges->len && !out; k++)
        out = contenders(d, &g_array_index(verdict.ranges, vote_range, k), asked);
    disk_verdict_clear(&verdict);
    disk_reading_clear(&reading);

    if (out != 0)
        lose_piece(d, change, offset, length, out);
    return out != 0;
}

static void settle(disk *d, const disk_change *change)
{
    uint64_t end = change->offset + change->length;
    for (uint64_t at = change->offset; at < end;) {
        uint64_t run_end, limit = MIN(end, at + DISK_REQUEST_MAX);
        uint64_t voters = disk_voter_run(d, at, limit, &run_end);
        while (2 * d->threshold <= disk_set_size(voters) &&
               settle_piece(d, change, at, (size_t)(run_end - at)))
            voters = disk_voter_run(d, at, limit, &run_end);
        at = run_end;
    }
}

static int finish_failed(disk *d, const disk_change *change, uint64_t failed)
{
    disk_outcome outcome;
    int r = decide(d, change, failed, &outcome);
    int forgotten = remember(d, change, &outcome);
    if (r == 0 && change->event == REPLICA_EVENT_FLUSH_FAILED && d->session)
        forgotten = forgotten ? forgotten : disk_record_behind(d);
    if (r == 0)
        r = forgotten;
    journal_failures(d, change, failed, r);
    if (outcome.moved != 0)
        record_moved(d, change, &outcome);
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
    return disk_is_gone(r) ? -EIO : r; /* what R5 promises */
}

int disk_change_finish(disk *d, const disk_change *change)
{
    uint64_t failed = change_failed(d, change);
    int r = 0;
    if (failed != 0 || change->asked != disk_all_replicas(d) ||
        atomic_load_explicit(&d->in_sync, memory_order_acquire) != change->asked)
        r = finish_failed(d, change, failed);
    if (change->intended)
        state_write_end(d->store, change->offset, change->length, r == 0);
    return r;
}
