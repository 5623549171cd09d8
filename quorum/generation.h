/*
 * generation.h: whether a replica is still the one that the record knows, by its file
 * (identity.h) and by the mark in its image (formats/qcow2-mark.h). Pure; the table of cases
 * stands atop generation.c.
 */
#ifndef QUORUM_GENERATION_H
#define QUORUM_GENERATION_H

#include "quorum/identity.h"

/* What is recorded of one replica. */
typedef struct generation_record {
    const identity *identity; /* with the mark that was last seen in, or written to, it */
    bool clean;               /* the record is of a clean close */
    uint8_t set_id[16];
    uint64_t replica;    /* the set's number for it */
    uint64_t generation; /* of the last session */
} generation_record;

typedef enum generation_verdict {
    GENERATION_RECORDED, /* as recorded */
    GENERATION_COPY, /* another file, that holds what the recorded one did: as recorded */
    GENERATION_CHANGED, /* the same file, written to since */
    GENERATION_FILE,    /* another file, of which no more is known */
    GENERATION_MOVED, /* another file, with the right mark and times that prove nothing */
    GENERATION_NEW,   /* the record knows no file of it */
    GENERATION_OLDER, /* the mark is of an earlier session of this set */
    GENERATION_NEWER, /* of a later one: the record is the old copy */
    GENERATION_UNCLEAN,   /* of the right session, taken before its end */
    GENERATION_SET,       /* of another set */
    GENERATION_NEIGHBOUR, /* of another replica of this set */
    GENERATION_UNMARKED,  /* there is none, where there was one */
    GENERATION_BEHIND,    /* by generation_behind */
    GENERATION_ELSEWHERE, /* by the record of another set */
} generation_verdict;

generation_verdict generation_compare(const generation_record *recorded,
                                      const identity *now);
/* Without a record: which of n replicas have missed a session by what their marks say of each
 * other. Nobody unless `threshold` of the same set are current. */
uint64_t generation_behind(const identity *now, unsigned n, unsigned threshold);
/* Whether it may vote where the record says so; else it is stale as a whole. */
bool generation_trusted(generation_verdict verdict);
/* For people: "was changed while it was not mounted" and the like. */
const char *generation_reason(generation_verdict verdict);

#endif
