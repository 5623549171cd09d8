/*
 * pattern.h: whom a rotating read asks first. Pure: who votes and how fast they were in, a
 * set of replicas out. Threads: any number.
 */
#ifndef QUORUM_PATTERN_H
#define QUORUM_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

/* Replicas take turns by stripes of the disk: who reads on in one stripe is answered by the
 * same replicas, and their read-ahead is of use. */
#define PATTERN_STRIPE (1u << 20)
/* Reads after which every stripe is the next replicas' turn: a small busy part of the disk
 * is spread too, and in time every replica is asked for all of it. */
#define PATTERN_EPOCH 4096u

typedef struct pattern_view {
    unsigned n;           /* replicas, at most VOTE_REPLICAS_MAX */
    uint64_t voters;      /* of them */
    unsigned threshold;   /* at least 1 */
    const uint64_t *pace; /* n of them: pattern_pace, 0: not known, as good as fast */
    uint64_t turn;        /* pattern_turn */
    bool probe;           /* somebody slow is to be tried again */
} pattern_view;

typedef struct pattern_choice {
    uint64_t asked;  /* pattern_quota of the voters */
    uint64_t probed; /* the slow one of them, tried again; or empty */
} pattern_choice;

/* So many equal answers are what all voters together would have said, whatever the others
 * hold (R1, R2): the threshold, and more than half of the voters. At most n_voters. */
unsigned pattern_quota(unsigned threshold, unsigned n_voters);

uint64_t pattern_turn(uint64_t offset, uint64_t n_reads);

/* Voters that are much slower than as many as are needed are left out, but for probes. */
pattern_choice pattern_choose(const pattern_view *view);

/* A replica's pace after one more answer: a moving average of nanoseconds for 64 KiB, in which
 * a short read counts for that much too. A probe counts for more, because there are few. */
uint64_t pattern_pace(uint64_t before, uint64_t ns, uint64_t length, bool probe);

#endif
