/*
 * rangeset.h: a set of bytes as disjoint ranges, bounded in memory.
 *
 * Threads: none of its own; the caller locks.
 */
#ifndef QUORUM_RANGESET_H
#define QUORUM_RANGESET_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* Most ranges that one set holds. When one more is needed, neighbours with the smaller
 * gaps between them are merged until half as many are left: the set then covers more than
 * was added, never less. */
#define RANGESET_MAX 65536u

typedef struct rangeset_range {
    uint64_t start, end; /* [start, end), never empty */
} rangeset_range;

/* All zeroes is the empty set; memory is allocated with the first range. */
typedef struct rangeset {
    GArray *ranges; /* of rangeset_range, ascending, neither overlapping nor touching */
} rangeset;

void rangeset_clear(rangeset *set); /* frees; empty afterwards */

/* Returns how many of the bytes were not in the set before. The range must end below
 * UINT64_MAX; length 0 adds nothing. */
uint64_t rangeset_add(rangeset *set, uint64_t offset, uint64_t length);

/* Adds what `from` has within [start, end). */
void rangeset_add_part(rangeset *set, const rangeset *from, uint64_t start, uint64_t end);

/* Returns how many of the bytes were in the set. Where cutting a range in two would need
 * one more than RANGESET_MAX, that range stays whole. */
uint64_t rangeset_remove(rangeset *set, uint64_t offset, uint64_t length);
/* Whether `offset` is in the set, and up to where that holds: at most `end`. */
bool rangeset_run(const rangeset *set, uint64_t offset, uint64_t end, uint64_t *ret_end);
uint64_t rangeset_bytes(const rangeset *set);

unsigned rangeset_count(const rangeset *set);
rangeset_range rangeset_get(const rangeset *set, unsigned index);

#endif
