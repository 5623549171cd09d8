/*
 * vote.c: the vote (R1, R2, R3).
 *
 * The buffers are walked in pieces of 128 KiB: the first voter's piece is compared with
 * each other voter's piece while it is still in the L2 cache (measured: a quarter faster
 * than comparing whole megabytes one replica after the other). Only a piece that differs
 * is looked at sector by sector.
 *
 * A run is a number of bytes on which the grouping is known: a whole piece if all voters
 * agree, else one sector. Neighbouring runs with the same grouping become one range.
 * Groups are numbered in the order of their first replica, so that equal groupings have
 * equal numbers and a tie goes to the lowest number (R2).
 *
 * Allocation: only verdict->ranges, and only if there is something to list.
 */
#include "quorum/vote.h"
#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <string.h>

#define PIECE (128u << 10)
G_STATIC_ASSERT(PIECE % VOTE_SECTOR == 0);

typedef struct electorate {
    const vote_ballot *ballots;
    unsigned n;
    unsigned threshold;
    unsigned count; /* of voters */
    unsigned first; /* the voter listed first; n if nobody votes */
    uint64_t voters;
} electorate;

static bool votes(const vote_ballot *ballot)
{
    return !ballot->abstains && ballot->error == 0;
}

static electorate electorate_of(const vote_ballot *ballots, unsigned n,
                                unsigned threshold)
{
    assert(n <= VOTE_REPLICAS_MAX && threshold >= 1);
    electorate who = {ballots, n, threshold, 0, n, 0};
    for (unsigned i = 0; i < n; i++) {
        if (!votes(&ballots[i]))
            continue;
        if (who.count++ == 0)
            who.first = i;
        who.voters |= UINT64_C(1) << i;
    }
    return who;
}

static bool piece_agrees(const electorate *who, size_t offset, size_t length)
{
    for (unsigned i = who->first + 1; i < who->n; i++) {
        if (votes(&who->ballots[i]) && memcmp(who->ballots[who->first].data + offset,
                                              who->ballots[i].data + offset, length) != 0)
            return false;
    }
    return true;
}

static size_t piece_length(size_t offset, size_t length)
{
    return MIN(length - offset, PIECE);
}

bool vote_unanimous(const vote_ballot *ballots, unsigned n, unsigned threshold,
                    size_t length)
{
    electorate who = electorate_of(ballots, n, threshold);
    if (who.count < threshold)
        return false;
    for (unsigned i = 0; i < n; i++)
        if (!ballots[i].abstains && ballots[i].error != 0)
            return false;
    for (size_t at = 0; at < length; at += PIECE)
        if (!piece_agrees(&who, at, piece_length(at, length)))
            return false;
    return true;
}

/* The grouping of bytes on which all voters are known to agree. */
static void group_all(const electorate *who, vote_range *run)
{
    for (unsigned i = 0; i < who->n; i++)
        run->group[i] = votes(&who->ballots[i]) ? 0 : VOTE_NO_GROUP;
    run->n_groups = who->count > 0;
}

static void group_by_content(const electorate *who, vote_range *run)
{
    const uint8_t *version[VOTE_REPLICAS_MAX];
    run->n_groups = 0;
    for (unsigned i = 0; i < who->n; i++) {
        run->group[i] = VOTE_NO_GROUP;
        if (!votes(&who->ballots[i]))
            continue;
        const uint8_t *mine = who->ballots[i].data + run->offset;
        uint8_t g = 0;
        while (g < run->n_groups && memcmp(version[g], mine, run->length) != 0)
            g++;
        if (g == run->n_groups)
            version[run->n_groups++] = mine;
        run->group[i] = g;
    }
}

/* The largest group, if it reaches the threshold; of equals the one numbered first. */
static uint64_t group_winners(const electorate *who, const vote_range *run)
{
    unsigned size[VOTE_REPLICAS_MAX] = {0};
    for (unsigned i = 0; i < who->n; i++)
        if (run->group[i] != VOTE_NO_GROUP)
            size[run->group[i]]++;
    unsigned best = 0;
    for (unsigned g = 1; g < run->n_groups; g++)
        if (size[g] > size[best])
            best = g;
    if (size[best] < who->threshold)
        return 0;
    uint64_t winners = 0;
    for (unsigned i = 0; i < who->n; i++)
        if (run->group[i] == best)
            winners |= UINT64_C(1) << i;
    return winners;
}

static vote_range *range_add(vote_verdict *verdict)
{
    if (verdict->n_ranges == verdict->capacity) {
        verdict->capacity = verdict->capacity ? verdict->capacity * 2 : 8;
        verdict->ranges = g_renew(vote_range, verdict->ranges, verdict->capacity);
    }
    return &verdict->ranges[verdict->n_ranges++];
}

static void verdict_list(vote_verdict *verdict, const vote_range *run, unsigned n)
{
    if (verdict->n_ranges > 0) {
        vote_range *last = &verdict->ranges[verdict->n_ranges - 1];
        if (last->offset + last->length == run->offset &&
            memcmp(last->group, run->group, n) == 0) {
            last->length += run->length;
            return;
        }
    }
    *range_add(verdict) = *run;
}

/* Takes a grouped run into the verdict and its winning bytes into `out`. */
static void verdict_count(vote_verdict *verdict, const electorate *who, vote_range *run,
                          uint8_t *out)
{
    run->winners = group_winners(who, run);
    verdict->winners &= run->winners;
    if (run->winners == 0)
        verdict->result = -EIO;
    else if (out)
        memcpy(out + run->offset,
               who->ballots[__builtin_ctzll(run->winners)].data + run->offset,
               run->length);
    if (run->winners == 0 || run->n_groups > 1)
        verdict_list(verdict, run, who->n);
}

/* R3 over the ballots: as vote_errno, but who abstains gave no result at all. */
static int ballots_errno(const electorate *who)
{
    int results[VOTE_REPLICAS_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < who->n; i++)
        if (!who->ballots[i].abstains)
            results[n++] = who->ballots[i].error;
    return vote_errno(results, n, who->threshold);
}

void vote_count(const vote_ballot *ballots, unsigned n, unsigned threshold, size_t length,
                uint8_t *out, vote_verdict *verdict)
{
    electorate who = electorate_of(ballots, n, threshold);
    vote_range run;
    memset(run.group, VOTE_NO_GROUP, sizeof run.group);
    verdict->result = 0;
    verdict->winners = who.voters;
    verdict->n_ranges = 0;
    for (size_t at = 0; at < length;) {
        size_t end = at + piece_length(at, length);
        if (piece_agrees(&who, at, end - at)) {
            run.offset = at;
            run.length = end - at;
            group_all(&who, &run);
            verdict_count(verdict, &who, &run, out);
            at = end;
        }
        for (; at < end; at += run.length) {
            run.offset = at;
            run.length = MIN(end - at, VOTE_SECTOR);
            group_by_content(&who, &run);
            verdict_count(verdict, &who, &run, out);
        }
    }
    if (who.count < threshold) {
        verdict->result = ballots_errno(&who);
        verdict->winners = 0;
    }
}

int vote_errno(const int *results, unsigned n, unsigned threshold)
{
    unsigned good = 0, most = 0;
    int voted = -EIO; /* too few were asked: nobody gave an errno */
    for (unsigned i = 0; i < n; i++) {
        unsigned same = 0;
        for (unsigned k = i; k < n; k++)
            same += results[k] == results[i];
        if (results[i] == 0) {
            good++;
        } else if (same > most) {
            most = same;
            voted = results[i];
        }
    }
    return good >= threshold ? 0 : voted;
}

void vote_verdict_init(vote_verdict *verdict)
{
    memset(verdict, 0, sizeof *verdict);
}

void vote_verdict_clear(vote_verdict *verdict)
{
    g_free(verdict->ranges);
    vote_verdict_init(verdict);
}
