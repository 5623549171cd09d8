/*
 * disk-reconcile.c: regions that were being written to when the last session ended without a
 * close (W6). Before anything of such a region is served, all replicas that vote there are
 * made equal: a sector with a quorum keeps it, one without takes what the first replica that
 * could be read holds; but while somebody is out, for a while yet nothing (rejoin.c). What was decided is in the journal, on stable storage before a byte is
 * overwritten: once all are equal nothing else tells of it.
 *
 * A region is done by whoever touches it first, a request or the worker, under an exclusive
 * lock of all of it; the others find it done. It is flushed to all replicas before it counts
 * as done, so that a second crash finds the decision, or decides anew from the same bytes.
 */
#include "quorum/disk-internal.h"
#include <errno.h>
#include <string.h>

/* How long those who are out are waited for, where there is no quorum without them. */
#define OUTAGE_US (30 * G_USEC_PER_SEC)

void disk_wait_for_all(disk *d)
{
    atomic_store(&d->decide_after_us, g_get_monotonic_time() + OUTAGE_US);
}

/* Whether what has no quorum here may have one when all are back. */
static bool is_too_early(disk *d, const disk_verdict *verdict)
{
    bool all = (disk_members(d) & ~disk_takers(d)) == 0;
    if (all || g_get_monotonic_time() >= atomic_load(&d->decide_after_us))
        return false;
    for (unsigned k = 0; k < verdict->ranges->len; k++)
        if (!g_array_index(verdict->ranges, vote_range, k).winners)
            return true;
    return false;
}

/* What no version won: the first that was read. Returns its index, or n. */
static unsigned first_read(const disk *d, const disk_reading *reading, size_t at)
{
    unsigned i = 0;
    while (i < d->n &&
           (reading->ballots[i].abstains || disk_sector_error(reading, i, at) != 0))
        i++;
    return i;
}

/* Fills in the sectors of a range that nobody won. What nobody could read stays what it is:
 * no read is given it, and the rest of the region is not to be lost with it. */
static void take_first(const disk *d, const disk_reading *reading,
                       const vote_range *range, uint8_t *out)
{
    uint64_t end = range->offset + range->length;
    for (uint64_t at = range->offset; at < end; at += VOTE_SECTOR) {
        unsigned i = first_read(d, reading, at);
        if (i < d->n)
            memcpy(out + at, reading->ballots[i].data + at, MIN(VOTE_SECTOR, end - at));
    }
}

static int save_all(disk *d, const disk_reading *reading, const uint8_t *out)
{
    int r = 0;
    for (unsigned i = 0; i < d->n && r == 0; i++)
        if (!reading->ballots[i].abstains)
            r = disk_save_differing(d, reading, i, 0, reading->length, out);
    return r ? r : disk_save_commit(d);
}

/* All that differ are written to; one that cannot be has missed the piece. */
static int spread(disk *d, const disk_reading *reading, const uint8_t *out)
{
    disk_change change;
    int r = save_all(d, reading, out);
    if (r == 0)
        r = disk_change_begin(d, &change, "reconcile", reading->offset, reading->length);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < d->n; i++)
        change.results[i] =
            reading->ballots[i].abstains || !disk_has_bit(change.asked, i)
                ? 0
                : disk_write_differing(d, reading, i, 0, reading->length, out);
    return disk_change_finish(d, &change);
}

/* Journals what is decided, and makes all equal. `out` holds the winners. */
static int decide(disk *d, const disk_reading *reading, const disk_verdict *verdict,
                  uint8_t *out)
{
    if (is_too_early(d, verdict))
        return -EIO;
    for (unsigned k = 0; k < verdict->ranges->len; k++) {
        const vote_range *range = &g_array_index(verdict->ranges, vote_range, k);
        if (!range->winners)
            take_first(d, reading, range, out);
        disk_report_range(d, reading, range, JOURNAL_RECONCILE, "reconcile",
                          range->winners     ? "the majority's bytes were kept"
                          : !range->n_groups ? "no replica could be read"
                                             : "the first replica's bytes were taken");
    }
    if (d->journal)
        journal_sync(d->journal);
    return spread(d, reading, out);
}

static int reconcile_piece(disk *d, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
    uint64_t voters = disk_voter_run(d, offset, end, ret_end);
    disk_thread *thread = disk_thread_get(d->n);
    disk_reading reading;
    disk_verdict verdict;
    disk_gather(d, thread, voters, offset, (size_t)(*ret_end - offset), &reading);
    if (vote_unanimous(reading.ballots, d->n, disk_set_size(voters), reading.length))
        return 0;
    uint8_t *out = disk_thread_joined(thread);
    disk_recover(d, &reading);
    disk_vote(d, &reading, out, &verdict);
    disk_lose_all(d, &reading, "reconcile");
    int r = decide(d, &reading, &verdict, out);
    disk_verdict_clear(&verdict);
    disk_reading_clear(&reading);
    return r;
}

static int reconcile_locked(disk *d, uint64_t offset, uint64_t end)
{
    int r = 0;
    if (!state_is_unreconciled(d->store, offset, end - offset))
        return 0;
    for (uint64_t at = offset, next; at < end && r == 0; at = next) {
        uint64_t limit = MIN(end, at + DISK_REQUEST_MAX);
        r = reconcile_piece(d, at, limit, &next);
    }
    if (r == 0)
        r = disk_flush_locked(d);
    if (r == 0)
        state_reconciled(d->store, offset, end - offset);
    if (r == 0 && state_is_unreconciled(d->store, offset, end - offset))
        r = -EIO; /* what is recorded has another end: a resize failed */
    return r;
}

int disk_reconcile_region(disk *d, uint64_t offset)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    uint64_t region = state_intent_region(d->store);
    rangelock_release(d->range_lock, &held);
    uint64_t start = offset & ~(region - 1);
    rangelock_acquire(d->range_lock, &held, start, region, RANGELOCK_EXCLUSIVE);
    uint64_t end = MIN(start + region, disk_size(d));
    int r = start < end ? reconcile_locked(d, start, end) : 0;
    rangelock_release(d->range_lock, &held);
    return r;
}

bool disk_next_unreconciled(disk *d, uint64_t offset, uint64_t *ret_offset)
{
    uint64_t length;
    rangelock_held held;
    disk_lock_size(d, &held);
    bool found = state_next_unreconciled(d->store, offset, ret_offset, &length);
    rangelock_release(d->range_lock, &held);
    return found;
}

/* Asked under the lock: a resize may replace what is recorded. */
static bool is_equal(disk *d, uint64_t offset, uint64_t length)
{
    return !d->session || !state_is_unreconciled(d->store, offset, length);
}

int disk_lock_equal(disk *d, rangelock_held *held, uint64_t offset, uint64_t length,
                    rangelock_mode mode)
{
    disk_lock_sectors(d, held, offset, length, mode);
    while (!is_equal(d, offset, length)) {
        uint64_t at, run;
        bool found = state_next_unreconciled(d->store, offset, &at, &run);
        rangelock_release(d->range_lock, held);
        int r = found ? disk_reconcile_region(d, at) : 0;
        if (r < 0)
            return r;
        disk_lock_sectors(d, held, offset, length, mode);
    }
    return 0;
}
