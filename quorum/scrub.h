/*
 * scrub.h: all of a disk is looked at while it is in use: what no guest has read for years
 * is compared before the second copy of it is lost too.
 *
 * A disk has one scrub at a time, on a thread of its own. It goes from the first byte to the
 * last, a piece of at most DISK_REQUEST_MAX at a time, each read from all replicas that vote
 * there and voted on under its range lock (repair.h). What differs or cannot be read is in
 * the journal, with the operation "scrub", and is repaired if that was asked for; without
 * that nothing is written.
 *
 * What is looked at: where every replica that votes says by its map that it holds zeroes or
 * nothing, these maps are all that is compared (the tables of a qcow2, the holes of a raw
 * file): nothing is read there, and a bad table that calls data zero in one replica only
 * is found, as the others hold data there. Everything else is read, from the media: the disk
 * is flushed first, and the host's page cache told to forget the files. What it cannot forget,
 * because somebody else has it mapped, is not seen on the medium, nor are tables of images
 * that are cached while they are open, nor the few clusters that libqcow keeps, nor what a
 * server has cached. Replicas that are out are not looked at, nor one where it is stale.
 *
 * It yields to the guests: while requests come in, it rests after each piece for as long as
 * the piece took; and with a speed it does not read more than so much in a second.
 *
 * Threads: all functions from any thread but scrub_new, _stop and _free, which are
 * disk-open.c's. They wait for no replica, but for _stop: for those that the piece under way
 * waits for.
 */
#ifndef QUORUM_SCRUB_H
#define QUORUM_SCRUB_H

#include "quorum/repair.h"

typedef struct scrub_options {
    bool repair;
    uint64_t speed; /* bytes per second; 0: no limit */
} scrub_options;

typedef enum scrub_state {
    SCRUB_NONE, /* none since the disk was opened */
    SCRUB_RUNNING,
    SCRUB_COMPLETED,
    SCRUB_CANCELLED,
    SCRUB_FAILED, /* what could be looked at was; see scrub_status.error */
} scrub_state;

/* Of the one that runs, or of the last one. */
typedef struct scrub_status {
    scrub_state state;
    scrub_options options;
    uint64_t length, offset; /* of the disk; how far it has come */
    uint64_t skipped;        /* of that: zeroes by all maps */
    repair_stats stats;
    int error; /* -errno of the first piece that could not be looked at (W6), or of the
                          flush after repairs */
    gint64 took_us;  /* until now, or until it ended */
    gint64 ended_us; /* since 1970; 0: it runs */
} scrub_status;

/* 0; -EBUSY: one runs; with `repair` -EPERM and -EROFS, as disk_repair_range. */
int scrub_start(disk *d, const scrub_options *options);
/* Asks it to stop; the status tells when it has. -ENOENT: none runs. */
int scrub_cancel(disk *d);
void scrub_get_status(disk *d, scrub_status *ret_status);

typedef struct scrub scrub;
scrub *scrub_new(void);
/* Cancels and waits. */
void scrub_stop(disk *d);
void scrub_free(scrub *s); /* NULL is allowed; none runs */

#endif
