/*
 * rangeset.c: see rangeset.h. A sorted array: additions are rare (faults only) and mostly
 * touch what is there already, so a tree would not pay for itself.
 */
#include "quorum/rangeset.h"
#include <stdlib.h>

void rangeset_clear(rangeset *set)
{
    g_clear_pointer(&set->ranges, g_array_unref);
}

unsigned rangeset_count(const rangeset *set)
{
    return set->ranges ? set->ranges->len : 0;
}

rangeset_range rangeset_get(const rangeset *set, unsigned index)
{
    return g_array_index(set->ranges, rangeset_range, index);
}

/* The first range that ends at or after `start`. */
static unsigned lower_bound(const rangeset *set, uint64_t start)
{
    unsigned low = 0, high = rangeset_count(set);
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (rangeset_get(set, middle).end < start)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int compare_gaps(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Merges across the smaller half of the gaps, so that the cost of a sort is paid once for
 * many additions. */
static void coarsen(rangeset *set)
{
    rangeset_range *ranges = (rangeset_range *)(void *)set->ranges->data;
    unsigned count = set->ranges->len, kept = 0;
    g_autofree uint64_t *gaps = g_new(uint64_t, count - 1);
    for (unsigned i = 0; i + 1 < count; i++)
        gaps[i] = ranges[i + 1].start - ranges[i].end;
    qsort(gaps, count - 1, sizeof(*gaps), compare_gaps);
    unsigned half = count / 2, equal = half;
    uint64_t limit = gaps[half - 1];
    while (equal > 0 && gaps[half - equal] < limit) /* how many of the limit's size go */
        equal--;

    for (unsigned i = 1; i < count; i++) {
        uint64_t gap = ranges[i].start - ranges[kept].end;
        bool merge = gap < limit || (gap == limit && equal > 0);
        equal -= merge && gap == limit;
        if (merge)
            ranges[kept].end = ranges[i].end;
        else
            ranges[++kept] = ranges[i];
    }
    g_array_set_size(set->ranges, kept + 1);
}

uint64_t rangeset_add(rangeset *set, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return 0;
    if (!set->ranges)
        set->ranges = g_array_new(FALSE, FALSE, sizeof(rangeset_range));

    rangeset_range merged = {offset, offset + length};
    uint64_t covered = 0;
    unsigned first = lower_bound(set, offset), last = first;
    for (; last < set->ranges->len; last++) {
        rangeset_range old = rangeset_get(set, last);
        if (old.start > offset + length)
            break;
        uint64_t start = MAX(old.start, offset), end = MIN(old.end, offset + length);
        covered += end > start ? end - start : 0;
        merged.start = MIN(merged.start, old.start);
        merged.end = MAX(merged.end, old.end);
    }

    if (last > first) {
        g_array_index(set->ranges, rangeset_range, first) = merged;
        if (last - first > 1)
            g_array_remove_range(set->ranges, first + 1, last - first - 1);
    } else {
        g_array_insert_val(set->ranges, first, merged);
    }
    if (set->ranges->len > RANGESET_MAX)
        coarsen(set);
    return length - covered;
}

void rangeset_add_part(rangeset *set, const rangeset *from, uint64_t start, uint64_t end)
{
    for (unsigned at = lower_bound(from, start + 1);
         at < rangeset_count(from) && rangeset_get(from, at).start < end; at++) {
        rangeset_range range = rangeset_get(from, at);
        uint64_t first = MAX(range.start, start);
        rangeset_add(set, first, MIN(range.end, end) - first);
    }
}

bool rangeset_run(const rangeset *set, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
    unsigned at = lower_bound(set, offset + 1);
    *ret_end = end;
    if (at == rangeset_count(set))
        return false;
    rangeset_range range = rangeset_get(set, at);
    bool inside = range.start <= offset;
    *ret_end = MIN(end, inside ? range.end : range.start);
    return inside;
}

uint64_t rangeset_remove(rangeset *set, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, removed = 0;
    unsigned at = lower_bound(set, offset + 1);
    while (length > 0 && at < rangeset_count(set)) {
        rangeset_range *range = &g_array_index(set->ranges, rangeset_range, at);
        rangeset_range rest = {end, range->end};
        if (range->start >= end)
            break;
        bool keeps_start = range->start<offset, keeps_end = range->end> end;
        if (keeps_start && keeps_end && set->ranges->len == RANGESET_MAX)
            break;
        removed += MIN(range->end, end) - MAX(range->start, offset);
        if (keeps_start) {
            range->end = offset;
            at++;
            if (keeps_end)
                g_array_insert_val(set->ranges, at, rest);
        } else if (keeps_end) {
            range->start = end;
        } else {
            g_array_remove_index(set->ranges, at);
        }
    }
    return removed;
}

uint64_t rangeset_bytes(const rangeset *set)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < rangeset_count(set); i++)
        sum += rangeset_get(set, i).end - rangeset_get(set, i).start;
    return sum;
}
