/*
 * state-exact.c: what a replica missed within a stale region, where that is known exactly.
 *
 * A bit says that a replica missed something in its region. Where two replicas missed
 * different sectors of one region, the bits alone would leave too few that vote on any of it.
 * For such regions the slot lists the ranges. It is one short list for all replicas: where it
 * is full, a region is told by its bit again, which says more, never less.
 */
#include "quorum/state-internal.h"
#include <string.h>

static uint64_t region_start(const state_facts *facts, uint64_t offset)
{
    return offset >> facts->stale_shift << facts->stale_shift;
}

static uint64_t region_end(const state_facts *facts, uint64_t offset)
{
    uint64_t start = region_start(facts, offset);
    return MIN(start + (UINT64_C(1) << facts->stale_shift), facts->size);
}

unsigned state_exact_find(const state_facts *facts, unsigned replica, uint64_t offset)
{
    unsigned k = 0;
    while (k < facts->n_exact &&
           (facts->exact[k].replica < replica ||
            (facts->exact[k].replica == replica &&
             facts->exact[k].offset + facts->exact[k].length <= offset)))
        k++;
    return k;
}

/* The index behind those that begin before `end`. */
static unsigned find_end(const state_facts *facts, unsigned replica, uint64_t end,
                         unsigned from)
{
    while (from < facts->n_exact && facts->exact[from].replica == replica &&
           facts->exact[from].offset < end)
        from++;
    return from;
}

bool state_exact_has(const state_facts *facts, unsigned replica, uint64_t offset)
{
    unsigned first = state_exact_find(facts, replica, region_start(facts, offset));
    return find_end(facts, replica, region_end(facts, offset), first) > first;
}

/* Entries [first, end) give way to those of `ranges`. */
static bool replace(state_facts *facts, unsigned replica, unsigned first, unsigned end,
                    const rangeset *ranges)
{
    unsigned count = ranges ? rangeset_count(ranges) : 0;
    bool fits = facts->n_exact - (end - first) + count <= STATE_EXACT_MAX;
    count = fits ? count : 0;
    memmove(&facts->exact[first + count], &facts->exact[end],
            (facts->n_exact - end) * sizeof facts->exact[0]);
    facts->n_exact = facts->n_exact - (end - first) + count;
    for (unsigned k = 0; k < count; k++) {
        rangeset_range range = rangeset_get(ranges, k);
        facts->exact[first + k] =
            (state_exact){replica, range.start, range.end - range.start};
    }
    return fits;
}

/* Only [offset, end) of the region is missed now. Returns whether something changed. */
static bool add_piece(state_facts *facts, unsigned replica, uint64_t offset, uint64_t end)
{
    uint64_t start = region_start(facts, offset);
    unsigned first = state_exact_find(facts, replica, start);
    unsigned last = find_end(facts, replica, region_end(facts, offset), first);
    rangeset ranges = {0};
    if (first == last)
        return false;
    for (unsigned k = first; k < last; k++)
        rangeset_add(&ranges, facts->exact[k].offset, facts->exact[k].length);
    bool added = rangeset_add(&ranges, offset, end - offset) > 0;
    bool all = rangeset_bytes(&ranges) == region_end(facts, offset) - start;
    if (added)
        replace(facts, replica, first, last, all ? NULL : &ranges);
    rangeset_clear(&ranges);
    return added;
}

bool state_exact_add(state_facts *facts, unsigned replica, uint64_t offset,
                     uint64_t length)
{
    uint64_t end = offset + length;
    bool changed = false;
    while (offset < end) { /* from one region with entries to the next */
        unsigned k = state_exact_find(facts, replica, region_start(facts, offset));
        if (k == facts->n_exact || facts->exact[k].replica != replica)
            break;
        offset = MAX(offset, region_start(facts, facts->exact[k].offset));
        if (offset >= end)
            break;
        uint64_t next = region_end(facts, offset);
        changed |= add_piece(facts, replica, offset, MIN(end, next));
        offset = next;
    }
    return changed;
}

bool state_exact_set(state_facts *facts, unsigned replica, uint64_t offset,
                     const rangeset *missed)
{
    unsigned first = state_exact_find(facts, replica, region_start(facts, offset));
    unsigned last = find_end(facts, replica, region_end(facts, offset), first);
    return replace(facts, replica, first, last, missed);
}

bool state_exact_filter(state_facts *facts, state_exact_keep *keep, void *opaque)
{
    unsigned kept = 0, before = facts->n_exact;
    for (unsigned k = 0; k < before; k++)
        if (keep(opaque, &facts->exact[k]))
            facts->exact[kept++] = facts->exact[k];
    facts->n_exact = kept;
    return kept < before;
}
