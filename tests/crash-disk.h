/*
 * crash-disk.h: a whole disk under simulated power failures (crash-file.h): its replicas, its
 * state file and its journal lose power at the same moment, each independently of the others.
 *
 * A program that links crash-disk.o is linked with --wrap for the functions that its end
 * defines (Makefile: CRASH_DISK_WRAP). There are no threads: the test takes the worker's steps
 * (disk_worker_step), has replicas rejoin (disk_rejoin_try), and says what time it is. Regions of the state are small, so that a
 * small disk has many. A copy of a file is the same file to identity.h, whose times are
 * counts of changes.
 */
#ifndef TESTS_CRASH_DISK_H
#define TESTS_CRASH_DISK_H

#include "quorum/disk-internal.h"
#include "tests/crash-file.h"
#include "tests/support.h"

#define CRASH_DISK_N      5 /* replicas, at most */
#define CRASH_DISK_SIZE   (251u << 10)
#define CRASH_DISK_INTENT (32u << 10)
#define CRASH_DISK_STALE  4096u

/* A kind of disk. Of each replica the shell command that makes it: $i is its file, $base and
 * $raw are files with what it is to hold. */
typedef struct crash_set {
    const char *name;
    unsigned n, threshold;
    struct {
        const char *format, *command;
    } replicas[CRASH_DISK_N];
} crash_set;

typedef struct crash_disk {
    const crash_set *set;
    char *dir;
    uint64_t stable_times[CRASH_DISK_N], times[CRASH_DISK_N]; /* before it was watched */
    bool watched;
    disk *disk;
    journal *journal;
} crash_disk;

/* The directory that everything is below; made in memory where that can be. */
const char *crash_disk_root(void);
void crash_disk_clean(void);

/* Makes the files, which hold `content`, in a directory of that name. */
crash_disk *crash_disk_make(const crash_set *set, const char *name,
                            const uint8_t *content, uint64_t size);
/* Copies what a power failure now leaves of all files to a directory of that name. */
crash_disk *crash_disk_save(crash_disk *c, const char *name, uint64_t *seed);
/* Watches all files, instead of those that were: what they hold is stable. Replica i is file i;
 * behind them the state and the journal. */
void crash_disk_watch(crash_disk *c);

/* NULL, or what is wrong; the caller frees. */
char *crash_disk_open(crash_disk *c);
char *crash_disk_close(crash_disk *c);

/* What a replica that is not open holds, by a chain of its own. *ret_content is the caller's. */
char *crash_disk_read_replica(const crash_disk *c, unsigned i, uint8_t **ret_content,
                              uint64_t *ret_size);
char *crash_disk_path(const crash_disk *c,
                      unsigned i); /* of replica i; the caller frees */

/* Time passes. */
void crash_disk_wait(gint64 us);

/* Syncs that are left out: of intent bits, of stale marks, of the journal, of
 * all replicas, of the last one. */
typedef enum crash_mutant {
    CRASH_MUTANT_NONE,
    CRASH_MUTANT_INTENT,
    CRASH_MUTANT_STALE,
    CRASH_MUTANT_JOURNAL,
    CRASH_MUTANT_FLUSH,
    CRASH_MUTANT_FLUSH_ONE,
} crash_mutant;
void crash_disk_set_mutant(crash_mutant mutant);

#endif
