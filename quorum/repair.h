/*
 * repair.h: gives replicas that differ, or that cannot be read somewhere, what the majority
 * holds (R2, R3, R4, W7, O4).
 *
 * What is done with a range: it is locked as for a guest's write, read from all replicas
 * that vote there, and voted on afresh, so that nothing is ever written over a newer write.
 * Where a version has won, it is written to those that hold another and to those that could
 * not be read, sector by sector and no further; read back and compared. That is a change
 * like any other (W2, W5): a replica that does not take it is stale there, so it is not
 * asked for it any more. Replicas that are out, or stale there already, are neither read nor
 * written (resync.c fills them), and neither are those that did not answer in time.
 *
 * In the journal: what was found ("divergence", "quorum-failure", "replica-error"), then for
 * each range and outcome a "repair": who won it, who was written to and what that held, with
 * the action "repaired" or "not repaired".
 *
 * Threads: any; other requests may run.
 */
#ifndef QUORUM_REPAIR_H
#define QUORUM_REPAIR_H

#include "quorum/disk.h"

/* Bytes of the disk, each counted once however many replicas it concerns, in as many of
 * these as are true. Never set to 0 here: sums over many calls. */
typedef struct repair_stats {
    uint64_t checked;    /* looked at */
    uint64_t differing;  /* more than one version */
    uint64_t unreadable; /* some replica that votes there could not be read */
    uint64_t repaired;   /* every replica that votes there holds the winner now */
    uint64_t failed;     /* some replica could not be given it */
    uint64_t no_quorum;  /* nobody won: left as it is */
    uint64_t ranges;     /* so many runs were differing, unreadable or both */
} repair_stats;

/* Whoever saves what is overwritten. Called under the range's exclusive lock; must not call into
 * the disk. 0 or -errno. */
typedef struct repair_saver {
    /* Replica `replica` is going to be overwritten there: `old` is what it holds, or NULL if that
     * could not be read, `new` what it will be given. */
    int (*save)(void *opaque, unsigned replica, uint64_t offset, const void *old,
                const void *new, size_t length);
    /* After these, before the first of them is overwritten; maybe after none. */
    int (*commit)(void *opaque);
    void *opaque;
} repair_saver;

/* Asked from now on by all that makes replicas equal: disk_repair_range, what a crash left
 * different (W6), and offline.h; but not by the worker's resync, so for a disk that has none.
 * What cannot be saved is not overwritten, nor anything else of its piece, at most
 * DISK_REQUEST_MAX, and counts as failed. Nothing may run. */
void disk_set_saver(disk *d, repair_saver saver);

typedef struct repair_options {
    bool dry_run;  /* only look and journal, under a shared lock */
    bool reported; /* what is found is in the journal already: only "repair" goes there */
    int from; /* -1: the vote decides. Else this replica is right wherever it votes and
                       can be read, and elsewhere the vote decides, if it may (O4). */
    const char *op; /* of journal records: "scrub", "repair", "read" */
} repair_options;

/* Looks at a range, at most DISK_REQUEST_MAX of it at a time; what lies behind the disk's end is
 * left out. Adds to *stats.
 *
 * 0: all of it was looked at; what came of it is in *stats. -EPERM: the vote is to decide, and
 * a threshold of half the replicas or less is no majority (O4). -EROFS. -EINVAL: `from` is no
 * replica. Another -errno: from there on the range could not be made equal after a crash (W6),
 * and was not looked at. */
int disk_repair_range(disk *d, uint64_t offset, uint64_t length,
                      const repair_options *options, repair_stats *stats);

/* 0 all agree; 1 they differ, and every sector has a majority; 5 some has none; 4 some could
 * not be read or not be repaired: the first of 5, 4, 1, 0, as in quorumfs(1). */
int repair_exit_code(const repair_stats *stats);

#endif
