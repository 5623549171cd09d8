/*
 * disk-judge.c: the vote where replicas differ or failed to read, and what is told of it.
 *
 * Sectors are voted on in runs within which the same replicas failed (R3), so a replica
 * votes wherever it could be read. Each run of sectors with the same grouping is one
 * journal record: `divergence` if somebody won it, else `quorum-failure`, each version
 * with its digest (R4). Each run of sectors that a replica could not read is a
 * `replica-error`; where two decoders read one image differently (-EBADMSG), a
 * `divergence` of the operation "decode". The action says what became of the request:
 * "served" or, if any of its sectors has no winner (R1), "refused".
 */
#include "quorum/disk-internal.h"
#include <errno.h>

int disk_sector_error(const disk_reading *reading, unsigned i, size_t at)
{
    if (reading->sector_errors[i])
        return reading->sector_errors[i][at / VOTE_SECTOR];
    return reading->ballots[i].error;
}

size_t disk_failure_run(const disk *d, const disk_reading *reading, size_t at)
{
    size_t end = reading->length;
    for (unsigned i = 0; i < d->n; i++) {
        if (reading->ballots[i].abstains || !reading->sector_errors[i])
            continue;
        int error = disk_sector_error(reading, i, at);
        size_t k = at + VOTE_SECTOR;
        while (k < end && disk_sector_error(reading, i, k) == error)
            k += VOTE_SECTOR;
        end = MIN(end, k);
    }
    return end;
}

/* One run. Different results of different runs are -EIO together. */
static void vote_run(disk *d, const disk_reading *reading, size_t at, size_t length,
                     uint8_t *out, disk_verdict *verdict)
{
    vote_ballot ballots[VOTE_REPLICAS_MAX];
    for (unsigned i = 0; i < d->n; i++) {
        ballots[i] = reading->ballots[i];
        if (ballots[i].abstains)
            continue;
        ballots[i].data += at;
        ballots[i].error = disk_sector_error(reading, i, at);
    }
    vote_verdict vote;
    vote_verdict_init(&vote);
    vote_count(ballots, d->n, d->threshold, length, out ? out + at : NULL, &vote);
    for (size_t k = 0; k < vote.n_ranges; k++) {
        vote.ranges[k].offset += at;
        g_array_append_val(verdict->ranges, vote.ranges[k]);
    }
    verdict->winners &= vote.winners;
    if (verdict->result == 0)
        verdict->result = vote.result;
    else if (vote.result != 0 && vote.result != verdict->result)
        verdict->result = -EIO;
    vote_verdict_clear(&vote);
}

void disk_vote(disk *d, const disk_reading *reading, uint8_t *out,
               disk_verdict *ret_verdict)
{
    *ret_verdict = (disk_verdict){
        .winners = disk_all_replicas(d),
        .ranges = g_array_new(FALSE, FALSE, sizeof(vote_range)),
    };
    size_t at = 0;
    while (at < reading->length) {
        size_t end = disk_failure_run(d, reading, at);
        vote_run(d, reading, at, end - at, out, ret_verdict);
        at = end;
    }
}

void disk_verdict_clear(disk_verdict *verdict)
{
    g_clear_pointer(&verdict->ranges, g_array_unref);
}

void disk_journal(disk *d, journal_record record)
{
    if (!d->journal)
        return;
    record.disk = d->name;
    journal_append(d->journal, &record);
}

void disk_account_range(disk *d, const vote_range *range, uint64_t offset)
{
    DISK_COUNT(*(range->winners ? &d->divergences : &d->quorum_failures), 1);
    g_mutex_lock(&d->state_lock);
    rangeset_add(range->winners ? &d->differing : &d->no_quorum, offset, range->length);
    for (unsigned i = 0; i < d->n && range->n_groups > 1; i++) {
        disk_replica *replica = &d->replicas[i];
        if (range->group[i] != VOTE_NO_GROUP && !disk_has_bit(range->winners, i))
            replica->divergent_bytes +=
                rangeset_add(&replica->differing, offset, range->length);
    }
    g_mutex_unlock(&d->state_lock);
}

void disk_report_range(disk *d, const disk_reading *reading, const vote_range *range,
                       journal_event event, const char *op, const char *action)
{
    uint8_t digests[VOTE_REPLICAS_MAX][JOURNAL_DIGEST_SIZE];
    const char *winners[VOTE_REPLICAS_MAX];
    journal_loser losers[VOTE_REPLICAS_MAX];
    journal_record record = {
        .event = event == JOURNAL_DIVERGENCE && !range->winners ? JOURNAL_QUORUM_FAILURE
                                                                : event,
        .op = op,
        .offset = reading->offset + range->offset,
        .length = range->length,
        .winner_replicas = winners,
        .losers = losers,
        .error = range->winners ? 0 : EIO,
        .action = action,
    };
    unsigned n_digests = 0;
    for (unsigned i = 0; i < d->n; i++) {
        unsigned group = range->group[i];
        if (reading->ballots[i].abstains)
            continue;
        if (group != VOTE_NO_GROUP && group >= n_digests)
            journal_digest(reading->ballots[i].data + range->offset, range->length,
                           digests[n_digests++]);
        if (disk_has_bit(range->winners, i)) {
            winners[record.n_winner_replicas++] = d->replicas[i].name;
            record.winner_has_sha256 = true;
            memcpy(record.winner_sha256, digests[group], JOURNAL_DIGEST_SIZE);
            continue;
        }
        journal_loser *loser = &losers[record.n_losers++];
        *loser = (journal_loser){
            .replica = d->replicas[i].name,
            .has_sha256 = group != VOTE_NO_GROUP,
            .error = -disk_sector_error(reading, i, range->offset),
        };
        if (loser->has_sha256)
            memcpy(loser->sha256, digests[group], JOURNAL_DIGEST_SIZE);
    }
    disk_journal(d, record);
}

static void report_failed_run(disk *d, unsigned i, uint64_t offset, uint64_t length,
                              int error, const char *op, const char *action)
{
    bool decoders_differ = error == -EBADMSG;
    journal_loser loser = {.replica = d->replicas[i].name, .error = -error};
    disk_journal(
        d, (journal_record){
               .event = decoders_differ ? JOURNAL_DIVERGENCE : JOURNAL_REPLICA_ERROR,
               .op = decoders_differ ? "decode" : op,
               .offset = offset,
               .length = length,
               .losers = &loser,
               .n_losers = 1,
               .error = -error,
               .action = action,
           });
    if (!decoders_differ)
        return;
    DISK_COUNT(d->divergences, 1);
    g_mutex_lock(&d->state_lock);
    rangeset_add(&d->differing, offset, length);
    d->replicas[i].divergent_bytes +=
        rangeset_add(&d->replicas[i].differing, offset, length);
    g_mutex_unlock(&d->state_lock);
}

/* Every failed read is told of, also one that went away when it was tried again. */
static void report_failures_of(disk *d, const disk_reading *reading, unsigned i,
                               const char *op, const char *action)
{
    bool any = false;
    size_t at = 0;
    if (reading->ballots[i].error != -EBADMSG)
        DISK_COUNT(d->replicas[i].read_errors, 1);
    while (at < reading->length) {
        int error = disk_sector_error(reading, i, at);
        size_t end = at + VOTE_SECTOR;
        while (end < reading->length && disk_sector_error(reading, i, end) == error)
            end += VOTE_SECTOR;
        end = MIN(end, reading->length);
        if (error != 0) {
            report_failed_run(d, i, reading->offset + at, end - at, error, op, action);
            any = true;
        }
        at = end;
    }
    if (!any)
        report_failed_run(d, i, reading->offset, reading->length,
                          reading->ballots[i].error, op, action);
}

void disk_report_failures(disk *d, const disk_reading *reading, const char *op,
                          const char *action)
{
    for (unsigned i = 0; i < d->n; i++)
        if (!reading->ballots[i].abstains && reading->ballots[i].error != 0)
            report_failures_of(d, reading, i, op, action);
}

static unsigned first_of_group(const disk *d, const vote_range *range, unsigned group)
{
    unsigned i = 0;
    while (i < d->n && range->group[i] != group)
        i++;
    return i;
}

/* What blkverify adds to the action: the first byte that differs. */
static char *compare_action(const disk *d, const disk_reading *reading,
                            const vote_range *range, const char *action)
{
    if (!d->blkverify || range->n_groups < 2)
        return g_strdup(action);
    unsigned one = first_of_group(d, range, 0), other = first_of_group(d, range, 1);
    const uint8_t *x = reading->ballots[one].data + range->offset;
    const uint8_t *y = reading->ballots[other].data + range->offset;
    size_t at = 0;
    while (at + 1 < range->length && x[at] == y[at])
        at++;
    return g_strdup_printf("%s: byte %" G_GUINT64_FORMAT
                           " is 0x%02x in '%s' and 0x%02x in '%s'",
                           action, reading->offset + range->offset + at, x[at],
                           d->replicas[one].name, y[at], d->replicas[other].name);
}

int disk_judge(disk *d, disk_thread *thread, disk_reading *reading,
               const uint8_t **ret_data)
{
    disk_recover(d, reading);
    return disk_judge_recovered(d, thread, reading, ret_data);
}

int disk_judge_recovered(disk *d, disk_thread *thread, disk_reading *reading,
                         const uint8_t **ret_data)
{
    disk_verdict verdict;
    disk_vote(d, reading, NULL, &verdict);
    int result = verdict.result;

    const char *action = result == 0 ? "served" : "refused";
    for (unsigned k = 0; k < verdict.ranges->len; k++) {
        const vote_range *range = &g_array_index(verdict.ranges, vote_range, k);
        disk_account_range(d, range, reading->offset + range->offset);
        g_autofree char *what = compare_action(d, reading, range, action);
        disk_report_range(d, reading, range, JOURNAL_DIVERGENCE, "read", what);
    }
    disk_report_failures(d, reading, "read", action);
    disk_note_repairs(d, reading, &verdict);
    disk_lose_all(d, reading, "read");

    uint64_t winners = verdict.winners & reading->asked;
    disk_verdict_clear(&verdict);
    if (result < 0) /* R5 promises EIO */
        return disk_is_gone(result) ? -EIO : result;
    if (winners) {
        *ret_data = reading->ballots[__builtin_ctzll(winners)].data;
    } else {
        *ret_data = disk_thread_voted(thread);
        disk_vote(d, reading, thread->voted, &verdict);
        disk_verdict_clear(&verdict);
    }
    return 0;
}
