/*
 * repair-noted.c: on-divergence=repair. A read that found replicas differing, or one that
 * could not be read, notes where; the worker repairs it soon after (repair.h). So a read
 * is not slowed by it, and what is repaired was voted on afresh: by then a guest may have
 * written there (W7).
 *
 * Noted is only what can be repaired: what a version has won. The notes are one rangeset,
 * bounded as such; what is noted again while it is repaired is looked at again. A range that
 * cannot be repaired is not tried again before the next read finds it: who does not take
 * a repair is stale there, and no read asks it any more.
 */
#include "quorum/disk-internal.h"
#include "quorum/repair.h"
#include <errno.h>

/* Not whoever is out of reach, and not decoders that disagree: nothing is wrong with what
 * lies on that replica. */
static bool is_repairable(int error)
{
    return error != 0 && !disk_is_gone(error) && error != -EBADMSG;
}

/* state_lock is held. */
static bool note_failures(disk *d, const disk_reading *reading, unsigned i)
{
    bool any = false;
    for (size_t at = 0; at < reading->length; at += VOTE_SECTOR) {
        if (!is_repairable(disk_sector_error(reading, i, at)))
            continue;
        rangeset_add(&d->to_repair, reading->offset + at,
                     MIN(VOTE_SECTOR, reading->length - at));
        any = true;
    }
    return any;
}

void disk_note_repairs(disk *d, const disk_reading *reading, const disk_verdict *verdict)
{
    bool any = false;
    if (!d->on_divergence_repair)
        return;
    g_mutex_lock(&d->state_lock);
    for (unsigned k = 0; verdict && k < verdict->ranges->len; k++) {
        const vote_range *range = &g_array_index(verdict->ranges, vote_range, k);
        if (!range->winners)
            continue;
        rangeset_add(&d->to_repair, reading->offset + range->offset, range->length);
        any = true;
    }
    bool served = !verdict || verdict->result == 0;
    for (unsigned i = 0; i < d->n && served; i++)
        if (!reading->ballots[i].abstains && reading->ballots[i].error != 0)
            any |= note_failures(d, reading, i);
    g_mutex_unlock(&d->state_lock);
    if (any)
        disk_worker_wake(d);
}

static bool take_noted(disk *d, uint64_t *ret_offset, uint64_t *ret_length)
{
    g_mutex_lock(&d->state_lock);
    bool any = rangeset_count(&d->to_repair) > 0;
    if (any) {
        rangeset_range first = rangeset_get(&d->to_repair, 0);
        *ret_offset = first.start;
        *ret_length = MIN(first.end - first.start, DISK_REQUEST_MAX);
        rangeset_remove(&d->to_repair, *ret_offset, *ret_length);
    }
    g_mutex_unlock(&d->state_lock);
    return any;
}

bool disk_repair_step(disk *d)
{
    static const repair_options options = {.from = -1, .op = "read", .reported = true};
    repair_stats stats = {0};
    uint64_t offset, length;
    if (!d->on_divergence_repair || !take_noted(d, &offset, &length))
        return false;
    disk_repair_range(d, offset, length, &options, &stats);
    return true;
}
