/*
 * vote.h: who is right about each sector (R1, R2, R3). Pure: buffers and errnos in, a
 * verdict out. Threads: any number, on different verdicts.
 */
#ifndef QUORUM_VOTE_H
#define QUORUM_VOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VOTE_SECTOR       512u
#define VOTE_REPLICAS_MAX 64u /* a set of replicas is a uint64_t, bit i is replica i */

typedef struct vote_ballot {
    const uint8_t *data; /* what the replica returned; ignored if error != 0 */
    int error;     /* 0, or the -errno with which it failed: it does not vote (R3) */
    bool abstains; /* stale here, removed or not asked: neither votes nor counts as a
                            failure */
} vote_ballot;

/* A run of neighbouring sectors on which the replicas fell into the same groups. Only
 * runs with a disagreement or without a winner are listed. */
typedef struct vote_range {
    uint64_t offset;  /* from the start of the voted buffer; a multiple of VOTE_SECTOR */
    uint64_t length;  /* a multiple of VOTE_SECTOR, but for a disk's odd tail */
    uint64_t winners; /* replicas that returned the winning bytes; 0: quorum failure */
    /* group[i] numbers replica i's version: equal numbers, equal bytes. Numbers count up
     * from 0 in the order of each version's first replica. VOTE_NO_GROUP: did not vote. */
    uint8_t group[VOTE_REPLICAS_MAX];
    uint8_t n_groups;
} vote_range;
#define VOTE_NO_GROUP 0xff

typedef struct vote_verdict {
    int result;         /* 0: every sector has a winner; else the -errno to return: R3's
                           when too few replied, -EIO when a sector lacks a majority */
    uint64_t winners;   /* replicas that agree with the winner on all of the request; if
                           not 0, any of them may be served as it is */
    vote_range *ranges; /* owned by the verdict; n_ranges of them, ascending */
    size_t n_ranges;
    size_t capacity;
} vote_verdict;

void vote_verdict_init(vote_verdict *verdict);
void vote_verdict_clear(vote_verdict *verdict); /* frees */

/* The agreeing case: at least `threshold` replicas voted, none failed, all bytes equal.
 * One pass of memcmp in pieces that stay in the cache, no allocation. If false, call
 * vote_count. `length` may be any number of bytes; sectors count from data[0]. */
bool vote_unanimous(const vote_ballot *ballots, unsigned n, unsigned threshold,
                    size_t length);

/* The full vote. Fills `out` (length bytes, may be NULL if only the verdict is wanted;
 * must not overlap any ballot) with the winner of each sector when result is 0.
 * A tie goes to the group that holds the replica listed first (R2). Too few replies:
 * result is the errno that most replicas gave, of equals the one given first. */
void vote_count(const vote_ballot *ballots, unsigned n, unsigned threshold, size_t length,
                uint8_t *out, vote_verdict *verdict);

/* Only R3's rule, for writes and flushes: 0 if at least `threshold` of the n results are
 * 0, else the negative errno that most replicas gave, of equals the one given first. */
int vote_errno(const int *results, unsigned n, unsigned threshold);

#endif
