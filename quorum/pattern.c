/*
 * pattern.c: the order in which replicas take turns.
 *
 * With v voters of which q are asked, turn t asks q neighbours from the (t mod v)th on, round
 * the ring of voters: over v turns each is asked q times.
 *
 * Slow is who takes more than twice as long as the qth fastest, and SLACK_NS on top, below
 * which differences are not worth a thought. At least q are not slow, so there is always
 * somebody to ask. A reader waits for the slowest of those it asked, and all of them are
 * charged with that; but as everybody is asked together with others in turn, the one that
 * is never fast stands out, and once it is left out the others' figures become their own.
 */
#include "quorum/pattern.h"
#include "quorum/vote.h"

#define SLACK_NS  100000u
#define PACE_UNIT (64u << 10)

unsigned pattern_quota(unsigned threshold, unsigned n_voters)
{
    unsigned quota = n_voters / 2 + 1;
    if (quota < threshold)
        quota = threshold;
    return quota < n_voters ? quota : n_voters;
}

uint64_t pattern_turn(uint64_t offset, uint64_t n_reads)
{
    return offset / PATTERN_STRIPE + n_reads / PATTERN_EPOCH;
}

static unsigned set_size(uint64_t set)
{
    return (unsigned)__builtin_popcountll(set);
}

/* `count` members of the set, from the one with this rank on, and round. */
static uint64_t ring_slice(uint64_t set, unsigned rank, unsigned count)
{
    uint64_t rest = set, slice = 0;
    while (rank-- > 0)
        rest &= rest - 1;
    while (count-- > 0) {
        if (rest == 0)
            rest = set & ~slice;
        uint64_t lowest = rest & -rest;
        slice |= lowest;
        rest ^= lowest;
    }
    return slice;
}

/* Of the voters, those that are fast enough: at least `quota`. */
static uint64_t fast_voters(const pattern_view *view, unsigned quota)
{
    uint64_t sorted[VOTE_REPLICAS_MAX] = {0}, fast = 0;
    unsigned count = 0;
    for (unsigned i = 0; i < view->n; i++) {
        if (!(view->voters >> i & 1))
            continue;
        unsigned at = count++;
        for (; at > 0 && sorted[at - 1] > view->pace[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = view->pace[i];
    }
    uint64_t limit = 2 * sorted[quota - 1] + SLACK_NS;
    for (unsigned i = 0; i < view->n; i++)
        if (view->voters >> i & 1 && view->pace[i] <= limit)
            fast |= UINT64_C(1) << i;
    return fast;
}

pattern_choice pattern_choose(const pattern_view *view)
{
    pattern_choice choice = {view->voters, 0};
    unsigned quota = pattern_quota(view->threshold, set_size(view->voters));
    if (quota == set_size(view->voters))
        return choice;
    uint64_t fast = fast_voters(view, quota), slow = view->voters & ~fast;
    if (view->probe && slow != 0) {
        choice.probed = ring_slice(slow, (unsigned)(view->turn % set_size(slow)), 1);
        quota--;
    }
    unsigned rank = (unsigned)(view->turn % set_size(fast));
    choice.asked = choice.probed | ring_slice(fast, rank, quota);
    return choice;
}

uint64_t pattern_pace(uint64_t before, uint64_t ns, uint64_t length, bool probe)
{
    uint64_t sample = (uint64_t)((double)ns * PACE_UNIT / (double)(PACE_UNIT + length));
    unsigned weight = probe ? 2 : 8;
    return before ? before - before / weight + sample / weight : sample;
}
