/*
 * verify.h: an offline vote over whole image sets. Changes nothing.
 *
 * One thread per replica reads ahead, the caller's thread compares and makes all
 * callbacks. Ranges that every replica's map calls zero or unallocated are not read; where
 * only some do, the others are read and must be zeroes. Memory: at most 28 MiB, however large
 * the disk. The disk must not be mounted for writing by anybody (its locks see to that).
 */
#ifndef QUORUM_VERIFY_H
#define QUORUM_VERIFY_H

#include "quorum/disk.h"

typedef struct verify_range {
    uint64_t offset, length; /* exactly what differs, sector aligned */
    uint64_t winners;        /* 0: no majority */
    uint64_t losers; /* replicas that returned something else; 0 without a majority */
    uint64_t failed; /* replicas that could not be read here, to the sector */
    uint8_t group[VOTE_REPLICAS_MAX]; /* as in vote_range */
    uint8_t n_groups;                 /* 1: nothing differs, but somebody failed */
} verify_range;

typedef struct verify_summary {
    uint64_t size, checked_bytes,
        skipped_bytes; /* skipped: zero everywhere by the maps */
    /* A range may count in all three. */
    uint64_t differing_bytes, differing_ranges;     /* more than one version */
    uint64_t no_majority_bytes, no_majority_ranges; /* no version has `threshold` */
    uint64_t read_error_bytes, read_error_ranges;   /* some replica failed */
    uint64_t replica_differing_bytes[VOTE_REPLICAS_MAX];
    uint64_t replica_error_bytes[VOTE_REPLICAS_MAX];
    bool interrupted;
} verify_summary;

typedef struct verify_options {
    /* Called in ascending order for each maximal range with the same grouping that differs
     * or cannot be read. May be NULL. */
    void (*on_range)(void *opaque, const verify_range *range);
    /* Called now and then (at most every 100 ms or every 64 MiB). May be NULL. */
    void (*on_progress)(void *opaque, uint64_t done, uint64_t size);
    /* Manifest: called in order for each `manifest_range` bytes with the SHA-256 of the
     * voted data; has_winner false: some sector there has no majority, sha256 says
     * nothing. NULL: not computed. */
    void (*on_digest)(void *opaque, uint64_t offset, uint64_t length,
                      const uint8_t sha256[JOURNAL_DIGEST_SIZE], bool has_winner);
    uint64_t manifest_range;
    void *opaque;
    const volatile int *cancel; /* not 0: stop soon; may be NULL */
} verify_options;

/* Never fails as a whole: read errors are ranges. A replica that is stale somewhere by the
 * disk's record has no vote there, and loses where it holds something else. */
void verify_run(disk *d, const verify_options *options, verify_summary *ret_summary);

/* 0, 1, 4 or 5, as in quorumfs(1). */
int verify_exit_code(const verify_summary *summary);

#endif
