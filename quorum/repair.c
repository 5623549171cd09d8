/*
 * repair.c: see repair.h.
 *
 * A piece of the range is cut into runs in which the same replicas hold the same version and
 * the same ones failed. Each run that is not as it should be is a change of its own, with
 * its own outcome and its own records, so that a replica which does not take one of them
 * loses its vote there and nowhere else.
 *
 * Invariants: who is written to voted under the lock that is still held; what is written are
 * the bytes that a winner returned under it; nothing is written where the replica returned
 * these bytes.
 */
#include "quorum/repair.h"
#include "quorum/disk-internal.h"
#include <errno.h>
#include <string.h>

/* ---- Writing what differs ---------------------------------------------------------------- */

static bool somebody_read(const disk *d, const disk_reading *reading, size_t at)
{
    for (unsigned i = 0; i < d->n; i++)
        if (!reading->ballots[i].abstains && disk_sector_error(reading, i, at) == 0)
            return true;
    return false;
}

static bool sector_differs(const disk *d, const disk_reading *reading, unsigned i,
                           size_t at, const uint8_t *right)
{
    if (disk_sector_error(reading, i, at) != 0)
        return somebody_read(d, reading, at);
    return memcmp(reading->ballots[i].data + at, right + at,
                  MIN(VOTE_SECTOR, reading->length - at)) != 0;
}

static int write_and_compare(disk *d, unsigned i, const uint8_t *data, uint64_t offset,
                             size_t length)
{
    chain *c = d->replicas[i].chain;
    uint8_t *back = disk_thread_voted(disk_thread_get(d->n));
    disk_wait_for(d, i);
    int r = chain_write(c, data, offset, length);
    if (r == 0)
        r = chain_read(c, back, offset, length);
    disk_wait_for_ever();
    return r == 0 && memcmp(back, data, length) != 0 ? -EIO : r;
}

/* The next run of sectors of [*at, end) that are to be written to; false: none. */
static bool next_differing(const disk *d, const disk_reading *reading, unsigned i,
                           size_t *at, size_t end, const uint8_t *right, size_t *ret_end)
{
    while (*at < end && !sector_differs(d, reading, i, *at, right))
        *at += VOTE_SECTOR;
    size_t run = *at;
    while (run < end && sector_differs(d, reading, i, run, right))
        run += VOTE_SECTOR;
    *ret_end = MIN(run, end);
    return *at < end;
}

int disk_write_differing(disk *d, const disk_reading *reading, unsigned i, size_t at,
                         size_t end, const uint8_t *right)
{
    int r = 0;
    for (size_t run; r == 0 && next_differing(d, reading, i, &at, end, right, &run);
         at = run)
        r = write_and_compare(d, i, right + at, reading->offset + at, run - at);
    return r;
}

/* ---- Saving what will be overwritten ----------------------------------------------------- */

void disk_set_saver(disk *d, repair_saver saver)
{
    d->saver = saver;
}

int disk_save_commit(disk *d)
{
    return d->saver.commit ? d->saver.commit(d->saver.opaque) : 0;
}

/* One call for what could be read, another for what could not. */
static int save_run(disk *d, const disk_reading *reading, unsigned i, size_t at,
                    size_t end, const uint8_t *right)
{
    int r = 0;
    for (size_t next; at < end && r == 0; at = next) {
        bool readable = disk_sector_error(reading, i, at) == 0;
        next = at + VOTE_SECTOR;
        while (next < end && (disk_sector_error(reading, i, next) == 0) == readable)
            next += VOTE_SECTOR;
        next = MIN(next, end);
        const uint8_t *old = readable ? reading->ballots[i].data + at : NULL;
        r = d->saver.save(d->saver.opaque, i, reading->offset + at, old, right + at,
                          next - at);
    }
    return r;
}

int disk_save_differing(disk *d, const disk_reading *reading, unsigned i, size_t at,
                        size_t end, const uint8_t *right)
{
    int r = 0;
    for (size_t run;
         d->saver.save && r == 0 && next_differing(d, reading, i, &at, end, right, &run);
         at = run)
        r = save_run(d, reading, i, at, run, right);
    return r;
}

/* ---- Runs -------------------------------------------------------------------------------- */

typedef struct run_walk {
    const disk *d;
    const disk_reading *reading;
    const disk_verdict *verdict;
    size_t at;
    unsigned next; /* of the verdict's ranges */
} run_walk;

static bool anybody_failed(const disk *d, const disk_reading *reading, size_t at)
{
    for (unsigned i = 0; i < d->n; i++)
        if (!reading->ballots[i].abstains && disk_sector_error(reading, i, at) != 0)
            return true;
    return false;
}

/* Where no range is listed, all that could be read agree, and are enough. */
static void set_agreed(const run_walk *walk, size_t end, vote_range *ret)
{
    *ret = (vote_range){.offset = walk->at, .length = end - walk->at, .n_groups = 1};
    for (unsigned i = 0; i < walk->d->n; i++) {
        bool votes = !walk->reading->ballots[i].abstains &&
                     disk_sector_error(walk->reading, i, walk->at) == 0;
        ret->group[i] = votes ? 0 : VOTE_NO_GROUP;
        ret->winners |= (uint64_t)votes << i;
    }
}

/* The next run with more than one version, without a winner, or with a failure. */
static bool next_run(run_walk *walk, vote_range *ret_run)
{
    const GArray *ranges = walk->verdict->ranges;
    while (walk->at < walk->reading->length) {
        const vote_range *listed = walk->next < ranges->len
                                       ? &g_array_index(ranges, vote_range, walk->next)
                                       : NULL;
        if (listed && listed->offset == walk->at) {
            *ret_run = *listed;
            walk->next++;
            walk->at += listed->length;
            return true;
        }
        size_t end = disk_failure_run(walk->d, walk->reading, walk->at);
        bool failed = anybody_failed(walk->d, walk->reading, walk->at);
        if (listed)
            end = MIN(end, listed->offset);
        if (failed)
            set_agreed(walk, end, ret_run);
        walk->at = end;
        if (failed)
            return true;
    }
    return false;
}

/* ---- One run ----------------------------------------------------------------------------- */

typedef struct repair {
    disk *d;
    const repair_options *options;
    repair_stats *stats;
} repair;

static bool is_majority(const disk *d)
{
    return 2 * d->threshold > d->n;
}

/* Who holds what is right, by these options. */
static uint64_t right_holders(const repair *r, const vote_range *run)
{
    if (r->options->from < 0)
        return run->winners;
    unsigned right = run->group[r->options->from];
    uint64_t holders = 0;
    if (right == VOTE_NO_GROUP)
        return is_majority(r->d) ? run->winners : 0;
    for (unsigned i = 0; i < r->d->n; i++)
        holders |= (uint64_t)(run->group[i] == right) << i;
    return holders;
}

/* Only these take part in what is told of it. */
static void report_outcome(const repair *r, const disk_reading *reading,
                           const vote_range *run, uint64_t losers, const char *action)
{
    disk_reading told = *reading;
    if (losers == 0)
        return;
    for (unsigned i = 0; i < r->d->n; i++)
        if (!disk_has_bit(run->winners | losers, i))
            told.ballots[i].abstains = true;
    disk_report_range(r->d, &told, run, JOURNAL_REPAIR, r->options->op, action);
}

static const uint8_t *right_bytes(const disk_reading *reading, const vote_range *run)
{
    return reading->ballots[__builtin_ctzll(run->winners)].data;
}

/* Who is written to: not whoever does not answer at all. */
static uint64_t find_losers(const repair *r, const disk_reading *reading,
                            const vote_range *run, uint64_t *ret_unreachable)
{
    uint64_t losers = reading->asked & ~run->winners;
    *ret_unreachable = 0;
    for (unsigned i = 0; i < r->d->n; i++) {
        int error =
            disk_has_bit(losers, i) ? disk_sector_error(reading, i, run->offset) : 0;
        if (disk_is_gone(error))
            *ret_unreachable |= UINT64_C(1) << i;
    }
    return losers & ~*ret_unreachable;
}

/* *ret_done: those of `losers` that hold the winner's bytes now. Not 0: too few replicas took
 * the change, and the reading's memory may hold something else by now (disk-change.c). */
static int write_losers(const repair *r, const disk_reading *reading,
                        const vote_range *run, uint64_t losers, uint64_t *ret_done)
{
    disk *d = r->d;
    disk_change change;
    const uint8_t *right = right_bytes(reading, run);
    size_t at = run->offset, end = run->offset + run->length;
    uint64_t done = 0;
    int begun =
        disk_change_begin(d, &change, r->options->op, reading->offset + at, end - at);
    for (unsigned i = 0; i < d->n && begun == 0; i++) {
        change.results[i] = 0;
        if (!disk_has_bit(losers & change.asked, i))
            continue;
        change.results[i] = disk_write_differing(d, reading, i, at, end, right);
        done |= (uint64_t)(change.results[i] == 0) << i;
    }
    report_outcome(r, reading, run, done, "repaired");
    report_outcome(r, reading, run, losers & ~done, "not repaired");
    *ret_done = done;
    change.data = right + at;
    return begun < 0 ? begun : disk_change_finish(d, &change);
}

static void report_run(const repair *r, const disk_reading *reading,
                       const vote_range *run)
{
    if (r->options->reported || (run->n_groups == 1 && run->winners))
        return;
    disk_account_range(r->d, run, reading->offset + run->offset);
    disk_report_range(r->d, reading, run, JOURNAL_DIVERGENCE, r->options->op, "logged");
}

/* All that will be overwritten; false: something cannot be. */
static bool save_reading(const repair *r, const disk_reading *reading,
                         const disk_verdict *verdict)
{
    vote_range run;
    uint64_t unreachable;
    run_walk walk = {.d = r->d, .reading = reading, .verdict = verdict};
    if (!r->d->saver.save || r->options->dry_run)
        return true;
    while (next_run(&walk, &run)) {
        run.winners = right_holders(r, &run);
        uint64_t losers = run.winners ? find_losers(r, reading, &run, &unreachable) : 0;
        for (unsigned i = 0; i < r->d->n; i++)
            if (disk_has_bit(losers, i) &&
                disk_save_differing(r->d, reading, i, run.offset, run.offset + run.length,
                                    right_bytes(reading, &run)) < 0)
                return false;
    }
    return disk_save_commit(r->d) == 0;
}

/* False: the rest of the reading has to be read again. */
static bool repair_run(const repair *r, const disk_reading *reading, vote_range *run,
                       bool saved)
{
    repair_stats *stats = r->stats;
    report_run(r, reading, run);
    run->winners = right_holders(r, run);
    stats->ranges++;
    stats->differing += run->n_groups > 1 ? run->length : 0;
    stats->unreadable += anybody_failed(r->d, reading, run->offset) ? run->length : 0;
    stats->no_quorum += run->winners ? 0 : run->length;
    if (r->options->dry_run || !run->winners)
        return true;

    if (!saved) {
        stats->failed += run->length;
        return true;
    }
    uint64_t unreachable, done = 0;
    uint64_t losers = find_losers(r, reading, run, &unreachable);
    int result = losers ? write_losers(r, reading, run, losers, &done) : 0;
    bool whole = result == 0 && done == losers && !unreachable;
    *(whole ? &stats->repaired : &stats->failed) += run->length;
    return result == 0;
}

/* ---- A range ----------------------------------------------------------------------------- */

/* Returns how much of it is done with. */
static size_t repair_reading(const repair *r, disk_reading *reading)
{
    disk_verdict verdict;
    vote_range run;
    disk_recover(r->d, reading);
    disk_vote(r->d, reading, NULL, &verdict);
    disk_lose_all(r->d, reading, r->options->op);
    if (!r->options->reported)
        disk_report_failures(r->d, reading, r->options->op, "logged");
    run_walk walk = {.d = r->d, .reading = reading, .verdict = &verdict};
    bool saved = save_reading(r, reading, &verdict);
    while (next_run(&walk, &run) && repair_run(r, reading, &run, saved))
        ;
    disk_verdict_clear(&verdict);
    return walk.at;
}

/* Where all vote that vote on its first sector, at most. Under the range's lock. */
static uint64_t repair_piece(const repair *r, uint64_t offset, uint64_t end)
{
    disk *d = r->d;
    disk_reading reading;
    uint64_t voters = disk_voter_run(d, offset, end, &end);
    size_t done = (size_t)(end - offset);
    disk_gather(d, disk_thread_get(d->n), voters, offset, done, &reading);
    if (!vote_unanimous(reading.ballots, d->n, d->threshold, done)) {
        done = repair_reading(r, &reading);
        disk_reading_clear(&reading);
    }
    r->stats->checked += done;
    return offset + done;
}

static int check_options(const disk *d, const repair_options *options)
{
    if (options->from >= (int)d->n)
        return -EINVAL;
    if (options->dry_run)
        return 0;
    if (!d->writable)
        return -EROFS;
    return options->from >= 0 || is_majority(d) ? 0 : -EPERM;
}

static uint64_t sector_end(uint64_t offset)
{
    return (offset + VOTE_SECTOR - 1) & ~(uint64_t)(VOTE_SECTOR - 1);
}

int disk_repair_range(disk *d, uint64_t offset, uint64_t length,
                      const repair_options *options, repair_stats *stats)
{
    const repair r = {d, options, stats};
    int result = check_options(d, options);
    if (offset > IMAGE_SIZE_MAX || length > IMAGE_SIZE_MAX)
        return -EINVAL;
    uint64_t end = sector_end(offset + length);
    offset &= ~(uint64_t)(VOTE_SECTOR - 1);
    while (offset < MIN(end, disk_size(d)) && result == 0) {
        rangelock_held held;
        uint64_t limit = MIN(end, offset + DISK_REQUEST_MAX);
        result =
            disk_lock_equal(d, &held, offset, limit - offset,
                            options->dry_run ? RANGELOCK_SHARED : RANGELOCK_EXCLUSIVE);
        if (result < 0)
            break;
        limit = MIN(limit, disk_size(d));
        while (offset < limit)
            offset = repair_piece(&r, offset, limit);
        rangelock_release(d->range_lock, &held);
    }
    return result;
}

int repair_exit_code(const repair_stats *stats)
{
    if (stats->no_quorum)
        return 5;
    if (stats->unreadable || stats->failed)
        return 4;
    return stats->differing ? 1 : 0;
}
